"""Tests of adapters as models, with base model, tokenizer and chat template."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.models import inventory, resolve
from llmctl.engine.models.weight_files import fingerprint
from llmctl.errors import ConfigError, ModelLoadError, ModelNotFoundError
from llmctl.services.estimate import estimate
from llmctl.types import (
    GenerationRequest,
    MemoryPlan,
    Message,
    ModelSpec,
    Quant,
    SamplingParams,
)
from tests.adapters import save_adapter, save_trained_adapter
from tests.engine.models.fake_sources import COMMIT, isolate, model_files, write_cached
from tests.tiny import CHATML, save_tiny_model

LAYERS = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base") / "tiny", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "v1"
    return save_trained_adapter(folder, base, model_id="m-5eed", target_modules=LAYERS)


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "v1"))


def spec(folder: Path, **options: Any) -> ModelSpec:
    return ModelSpec(str(folder), device="cpu", **({"dtype": "float32"} | options))


def ids_of(engine: HFRunner, adapter: str | None = None) -> list[int]:
    request = GenerationRequest(
        (Message("user", "hello"),),
        adapter=adapter,
        sampling=SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True, logprobs=0),
    )
    with engine.submit(request) as stream:
        return [entry.chosen.token_id for chunk in stream for entry in chunk.logprobs]


def peft_ids(base: Path, adapter: Path) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted: Any = PeftModel.from_pretrained(model, str(adapter)).eval()
    adapted.generation_config.eos_token_id = None
    inputs: Any = AutoTokenizer.from_pretrained(base).apply_chat_template(
        [{"role": "user", "content": "hello"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output: Any = adapted.generate(**inputs, do_sample=False, max_new_tokens=12)
    ids: list[int] = output[0, inputs.input_ids.shape[1] :].tolist()
    return ids


def test_an_adapter_generates_as_in_peft_and_has_its_metadata(base: Path, adapter: Path) -> None:
    with HFRunner(spec(adapter)) as engine:
        engine.load()
        info = engine.info()
        assert (info.model_id, info.logged_model_id) == ("v1", "m-5eed")
        assert info.training_run_id == "5eed"
        assert info.weights_fingerprint == fingerprint(base)
        assert info.adapter_fingerprint == fingerprint(adapter)
        assert not any("trained on" in note for note in info.notes)
        assert ids_of(engine) == peft_ids(base, adapter)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "modules_to_save": ["lm_head", "embed_tokens"]},
        {"lora_bias": False, "modules_to_save": ["norm"]},
    ],
)
def test_adapters_with_other_parts_are_added_permanently(
    base: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    adapter = save_trained_adapter(tmp_path / "v1", base, target_modules=LAYERS, **config)
    with HFRunner(spec(adapter)) as engine:
        engine.load()
        assert ids_of(engine) == peft_ids(base, adapter)
        assert any("is added permanently" in note for note in engine.info().notes)
        with pytest.raises(ConfigError, match="cannot be combined"):
            engine.load_adapter("x", str(adapter))


@pytest.mark.parametrize(("quant", "dora"), [("4bit", False), ("4bit", True), ("8bit", False)])
def test_the_base_model_is_quantised(base: Path, tmp_path: Path, quant: Quant, dora: bool) -> None:
    adapter = save_trained_adapter(tmp_path / "v1", base, target_modules=LAYERS, use_dora=dora)
    with HFRunner(spec(adapter, quant=quant)) as engine:
        engine.load()
        assert len(ids_of(engine)) == 12
        assert engine.info().quant == quant


def test_dora_with_8bit_is_rejected_with_a_hint(base: Path, tmp_path: Path) -> None:
    adapter = save_trained_adapter(tmp_path / "v1", base, target_modules=LAYERS, use_dora=True)
    with (
        HFRunner(spec(adapter, quant="8bit")) as engine,
        pytest.raises(ConfigError, match="does not support --quant 8bit") as caught,
    ):
        engine.load()
    assert "--quant 4bit" in caught.value.hint


def test_a_changed_chat_template_must_be_given_explicitly(adapter: Path) -> None:
    other = CHATML.replace("<|im_start|>assistant", "<|im_start|>assistant:")
    (adapter / "chat_template.jinja").write_text(other)
    values = json.loads((adapter / "llmctl.json").read_text())
    with HFRunner(spec(adapter)) as engine, pytest.raises(ConfigError, match="chat template"):
        engine.load()
    chosen = spec(adapter, chat_template=str(adapter / "chat_template.jinja"))
    with HFRunner(chosen) as engine:
        engine.load()
        assert engine.info().template_fingerprint != values["template"]
        assert any("as --chat-template requires" in line for line in engine.info().notes)


def test_a_base_model_with_another_template_is_rejected(adapter: Path, tmp_path: Path) -> None:
    other = CHATML.replace("assistant", "bot")
    strange = save_tiny_model(tmp_path / "strange", chat_template=other, tie_word_embeddings=False)
    for file in (*adapter.glob("tokenizer*"), *adapter.glob("chat_template*")):
        file.unlink()  # or the adapter's own template would be used
    with (
        HFRunner(spec(strange, adapter=str(adapter))) as engine,
        pytest.raises(ConfigError, match="trained with the chat template") as caught,
    ):
        engine.load()
    assert f"--model {adapter}" in caught.value.hint
    with HFRunner(spec(strange)) as engine:
        engine.load()
        with pytest.raises(ConfigError, match="trained with the chat template"):
            engine.load_adapter("v1", str(adapter))


def test_other_base_weights_are_reported_in_a_note(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    other = save_tiny_model(tmp_path / "other", tie_word_embeddings=False, rms_norm_eps=1e-5)
    model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.bfloat16)
    model.save_pretrained(other)
    with HFRunner(spec(other, adapter=str(adapter))) as engine:
        engine.load()
        assert any(f"was trained on {base}" in note for note in engine.info().notes)


def test_an_adapter_of_another_tool_loads_with_a_note(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "theirs", base, target_modules=LAYERS)
    with HFRunner(spec(folder)) as engine:
        engine.load()
        assert any("no llmctl.json" in note for note in engine.info().notes)
        assert ids_of(engine) == peft_ids(base, folder)


def test_two_adapters_at_once_are_rejected(adapter: Path) -> None:
    with (
        HFRunner(spec(adapter, adapter=str(adapter))) as engine,
        pytest.raises(ConfigError, match="is an adapter itself") as caught,
    ):
        engine.load()
    assert "llmctl models merge" in caught.value.hint


def test_a_missing_base_model_is_named_with_a_hint(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    values = json.loads((adapter / "llmctl.json").read_text())
    values["base"]["model"] = str(tmp_path / "gone")
    (adapter / "llmctl.json").write_text(json.dumps(values))
    with pytest.raises(
        ModelNotFoundError, match=r"gone of the adapter .* does not exist"
    ) as caught:
        resolve.resolve_model(str(adapter))
    assert f"--adapter {adapter}" in caught.value.hint
    assert resolve.resolve_model(str(base)).base is None


def test_an_adapter_of_an_adapter_is_rejected(adapter: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(adapter, tmp_path / "v2"))
    values = json.loads((second / "llmctl.json").read_text())
    values["base"]["model"] = str(adapter)
    (second / "llmctl.json").write_text(json.dumps(values))
    with pytest.raises(ModelLoadError, match="is an adapter itself"):
        resolve.resolve_model(str(second))


def test_a_base_model_from_the_hub_is_resolved_at_its_revision(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = isolate(tmp_path, monkeypatch)
    values = json.loads((adapter / "llmctl.json").read_text())
    values["base"] |= {"model": "owner/name", "source": "hub", "revision": COMMIT}
    (adapter / "llmctl.json").write_text(json.dumps(values))
    with pytest.raises(ModelNotFoundError, match=r"owner/name of the adapter .* is not available"):
        resolve.resolve_local(str(adapter))
    snapshot = write_cached(home / "hf", "owner/name", model_files())
    found = resolve.resolve_local(str(adapter))
    assert (found.model_id, found.path) == ("v1", adapter)
    assert (found.full_model.model_id, found.full_model.path) == ("owner/name", snapshot)


def test_adapters_are_listed_with_their_metadata(base: Path, adapter: Path, tmp_path: Path) -> None:
    info = inventory.show(str(adapter))
    assert info.adapter is not None
    assert (info.adapter.kind, info.adapter.rank, info.adapter.base) == ("lora", 4, str(base))
    assert info.adapter.data == "manners.jsonl, 200 rows"
    assert info.parameters is not None
    assert info.weight_memory is not None
    shutil.copytree(base, tmp_path / "whole")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("{")
    listed = {Path(info.model_id).name: info for info in inventory.list_folder(tmp_path)}
    assert sorted(listed) == ["broken", "v1", "whole"]
    assert listed["broken"].state == "partial"
    assert listed["whole"].adapter is None


def test_the_memory_estimate_includes_the_adapter(base: Path, adapter: Path) -> None:
    plans = [estimate(spec(folder)).plan for folder in (base, adapter)]
    assert all(isinstance(plan, MemoryPlan) for plan in plans)
    metadata = inventory.show(str(adapter)).adapter
    assert metadata is not None
    assert metadata.parameters is not None
    assert plans[1].weights_bytes - plans[0].weights_bytes == 4 * metadata.parameters
