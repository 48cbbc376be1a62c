"""An adapter's folder is a model: its base, tokenizer and template are found from there."""

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


@pytest.fixture
def taught(base: Path, tmp_path: Path) -> Path:
    return save_trained_adapter(tmp_path / "v1", base, model_id="m-5eed", target_modules=LAYERS)


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


def test_it_answers_as_peft_does_and_says_what_it_is(base: Path, taught: Path) -> None:
    with HFRunner(spec(taught)) as engine:
        engine.load()
        info = engine.info()
        assert (info.model_id, info.logged_model_id) == ("v1", "m-5eed")
        assert ids_of(engine) == peft_ids(base, taught)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"use_dora": True, "use_rslora": True, "modules_to_save": ["lm_head", "embed_tokens"]},
        {"lora_bias": False, "modules_to_save": ["norm"]},
    ],
)
def test_adapters_of_more_than_two_matrices_are_put_on_for_good(
    base: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    taught = save_trained_adapter(tmp_path / "v1", base, target_modules=LAYERS, **config)
    with HFRunner(spec(taught)) as engine:
        engine.load()
        assert ids_of(engine) == peft_ids(base, taught)
        assert any("on for good" in note for note in engine.info().notes)
        with pytest.raises(ConfigError, match="on top of"):
            engine.load_adapter("x", str(taught))


@pytest.mark.parametrize(("quant", "dora"), [("4bit", False), ("4bit", True), ("8bit", False)])
def test_quantisation_is_the_base_models(
    base: Path, tmp_path: Path, quant: Quant, dora: bool
) -> None:
    taught = save_trained_adapter(tmp_path / "v1", base, target_modules=LAYERS, use_dora=dora)
    with HFRunner(spec(taught, quant=quant)) as engine:
        engine.load()
        assert len(ids_of(engine)) == 12
        assert engine.info().quant == quant


def test_dora_on_eight_bits_is_refused_with_what_does(base: Path, tmp_path: Path) -> None:
    taught = save_trained_adapter(tmp_path / "v1", base, target_modules=LAYERS, use_dora=True)
    with (
        HFRunner(spec(taught, quant="8bit")) as engine,
        pytest.raises(ConfigError, match="does not go with --quant 8bit") as caught,
    ):
        engine.load()
    assert "--quant 4bit" in caught.value.hint


def test_template_and_tokenizer_are_the_adapters_own(taught: Path) -> None:
    other = CHATML.replace("<|im_start|>assistant", "<|im_start|>assistant:")
    (taught / "chat_template.jinja").write_text(other)
    note = json.loads((taught / "llmctl.json").read_text())
    with HFRunner(spec(taught)) as engine, pytest.raises(ConfigError, match="chat template"):
        engine.load()
    chosen = spec(taught, chat_template=str(taught / "chat_template.jinja"))
    with HFRunner(chosen) as engine:
        engine.load()
        assert engine.info().template_fingerprint != note["template"]
        assert any("as --chat-template asks" in line for line in engine.info().notes)


def test_on_a_base_with_another_template_it_is_refused(taught: Path, tmp_path: Path) -> None:
    other = CHATML.replace("assistant", "bot")
    strange = save_tiny_model(tmp_path / "strange", chat_template=other, tie_word_embeddings=False)
    with (
        HFRunner(spec(strange, adapter=str(taught))) as engine,
        pytest.raises(ConfigError, match="learnt with the chat template") as caught,
    ):
        engine.load()
    assert f"--model {taught}" in caught.value.hint
    with HFRunner(spec(strange)) as engine:
        engine.load()
        with pytest.raises(ConfigError, match="learnt with the chat template"):
            engine.load_adapter("v1", str(taught))


def test_other_weights_of_the_base_are_said_and_used(
    base: Path, taught: Path, tmp_path: Path
) -> None:
    other = save_tiny_model(tmp_path / "other", tie_word_embeddings=False, rms_norm_eps=1e-5)
    model = AutoModelForCausalLM.from_pretrained(other, dtype=torch.bfloat16)
    model.save_pretrained(other)
    with HFRunner(spec(other, adapter=str(taught))) as engine:
        engine.load()
        assert any(f"was taught on {base}" in note for note in engine.info().notes)
    with HFRunner(spec(base, adapter=str(taught))) as engine:
        engine.load()
        assert not any("taught" in note for note in engine.info().notes)


def test_an_adapter_of_another_tool_loads_with_a_note(base: Path, tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "theirs", base, target_modules=LAYERS)
    with HFRunner(spec(folder)) as engine:
        engine.load()
        assert any("no llmctl.json" in note for note in engine.info().notes)
        assert ids_of(engine) == peft_ids(base, folder)


def test_two_adapters_at_once_are_refused(taught: Path) -> None:
    with (
        HFRunner(spec(taught, adapter=str(taught))) as engine,
        pytest.raises(ConfigError, match="is an adapter itself") as caught,
    ):
        engine.load()
    assert "llmctl models merge" in caught.value.hint


def test_a_base_that_is_gone_is_named_with_the_way_out(
    base: Path, taught: Path, tmp_path: Path
) -> None:
    note = json.loads((taught / "llmctl.json").read_text())
    note["base"]["model"] = str(tmp_path / "gone")
    (taught / "llmctl.json").write_text(json.dumps(note))
    with pytest.raises(ModelNotFoundError, match="gone, where nothing is any more") as caught:
        resolve.resolve_model(str(taught))
    assert f"--adapter {taught}" in caught.value.hint
    assert resolve.resolve_model(str(base)).base is None


def test_an_adapter_of_an_adapter_is_refused(taught: Path, tmp_path: Path) -> None:
    second = Path(shutil.copytree(taught, tmp_path / "v2"))
    note = json.loads((second / "llmctl.json").read_text())
    note["base"]["model"] = str(taught)
    (second / "llmctl.json").write_text(json.dumps(note))
    with pytest.raises(ModelLoadError, match="which is an adapter itself"):
        resolve.resolve_model(str(second))


def test_a_base_named_by_hub_id_is_found_at_the_revision_it_had(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = isolate(tmp_path, monkeypatch)
    note = json.loads((taught / "llmctl.json").read_text())
    note["base"] |= {"model": "owner/name", "source": "hub", "revision": COMMIT}
    (taught / "llmctl.json").write_text(json.dumps(note))
    with pytest.raises(ModelNotFoundError, match=r"owner/name, which is not to be had"):
        resolve.resolve_local(str(taught))
    snapshot = write_cached(home / "hf", "owner/name", model_files())
    found = resolve.resolve_local(str(taught))
    assert (found.model_id, found.path) == ("v1", taught)
    assert (found.whole.model_id, found.whole.path) == ("owner/name", snapshot)


def test_lists_and_cards_know_adapters(base: Path, taught: Path, tmp_path: Path) -> None:
    card = inventory.show(str(taught))
    assert card.adapter is not None
    assert (card.adapter.kind, card.adapter.rank, card.adapter.base) == ("lora", 4, str(base))
    assert card.adapter.data == "manners.jsonl, 200 rows"
    assert card.parameters is not None
    assert card.weight_memory is not None
    shutil.copytree(base, tmp_path / "whole")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("{")
    listed = {Path(card.model_id).name: card for card in inventory.list_folder(tmp_path)}
    assert sorted(listed) == ["broken", "v1", "whole"]
    assert listed["broken"].state == "partial"
    assert listed["whole"].adapter is None


def test_the_estimate_counts_the_adapter(base: Path, taught: Path) -> None:
    plans = [estimate(spec(folder)).plan for folder in (base, taught)]
    assert all(isinstance(plan, MemoryPlan) for plan in plans)
    facts = inventory.show(str(taught)).adapter
    assert facts is not None
    assert facts.parameters is not None
    assert plans[1].weights_bytes - plans[0].weights_bytes == 4 * facts.parameters
