"""Adapters of every kind have PEFT's numbers when served and when merged, or are refused."""

import json
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from tokenizers import normalizers

from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loading.adapter_config import unsupported_per_request
from llmctl.errors import ConfigError
from llmctl.types import GenerationRequest, ModelSpec, SamplingParams
from tests.adapter_kinds import EXPERTS, LORA, REFUSED, exported, logprobs, merged, save, served
from tests.compat.architectures import build
from tests.tiny import byte_tokenizer, save_gguf_model, save_tiny_model

NOT_MERGED = {"lora_bias": "has biases"}
GROWN = "grown vocabulary, modules_to_save"
ALWAYS_TESTED = {"embed_tokens", "lm_head", GROWN, "layer_replication"}


@pytest.fixture(scope="module", params=["tied", "untied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / request.param
    return save_tiny_model(folder, tie_word_embeddings=request.param == "tied")


KINDS = [kind for kind in LORA if kind not in REFUSED]


@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[] if k in ALWAYS_TESTED else [pytest.mark.slow]) for k in KINDS],
)
def test_an_adapter_has_the_numbers_of_peft(base: Path, kind: str, tmp_path: Path) -> None:
    expected = save(kind, base, tmp_path / "adapter")
    assert served(base, tmp_path / "adapter") == pytest.approx(expected, abs=1e-4)
    if kind in NOT_MERGED:
        with pytest.raises(ConfigError, match=NOT_MERGED[kind]):
            merged(base, tmp_path / "adapter", tmp_path / "merged")
    else:
        assert merged(base, tmp_path / "adapter", tmp_path / "merged") == pytest.approx(
            expected, abs=1e-4
        )


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of Qwen3 and Gemma 3, tied and untied."""
    root = tmp_path_factory.mktemp("shapes")
    types: dict[str, dict[str, int]] = {
        "qwen3": {"head_dim": 128},
        "gemma3_text": {"sliding_window": 8},
    }
    return {
        f"{kind}, {'tied' if tied else 'untied'}": save_gguf_model(
            root / f"{kind}-{tied}", kind, tie_word_embeddings=tied, **options
        )
        for kind, options in types.items()
        for tied in (True, False)
    }


NOT_RUN_BY_PEFT = {"layer_replication"}
"""On Qwen3 and Gemma 3."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", [k for k in KINDS if k not in NOT_RUN_BY_PEFT])
@pytest.mark.parametrize(
    "shape", ["qwen3, tied", "qwen3, untied", "gemma3_text, tied", "gemma3_text, untied"]
)
def test_an_adapter_of_another_shape_has_the_numbers_of_peft(
    shapes: dict[str, Path], shape: str, kind: str, tmp_path: Path
) -> None:
    base, adapter = shapes[shape], tmp_path / "adapter"
    expected = save(kind, base, adapter)
    assert served(base, adapter) == pytest.approx(expected, abs=1e-4)
    if kind not in NOT_MERGED:
        write = exported if shape.startswith("qwen3") else merged
        assert write(base, adapter, tmp_path / "merged") == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", EXPERTS)
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_an_adapter_of_fused_experts_has_the_numbers_of_peft(
    model_type: str, kind: str, tmp_path: Path
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    build(model_type).save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    expected = save(f"experts: {kind}", base, adapter)
    assert served(base, adapter) == pytest.approx(expected, abs=1e-4)
    assert merged(base, adapter, tmp_path / "merged") == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", [*REFUSED, "IA3", "prompt tuning"])
def test_an_adapter_without_a_meaning_here_is_refused(
    base: Path, kind: str, tmp_path: Path
) -> None:
    save(kind, base, tmp_path / "adapter")
    with pytest.raises(ConfigError, match=REFUSED.get(kind, "only LoRA adapters")) as caught:
        served(base, tmp_path / "adapter")
    assert re.search(r"save_pretrained|use it with PEFT", str(caught.value.hint))


DESCRIPTIVE = {
    *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
    *("revision", "inference_mode", "runtime_config"),
}
SETTINGS_OF_TRAINING = {"loftq_config", "qalora_group_size", "megatron_core"}
REFUSED_CONFIGS: dict[str, tuple[object, str]] = {
    "arrow_config": ({"top_k": 1}, "chooses between other adapters"),
    "megatron_config": ({"a": 1}, "for a model of Megatron"),
    "use_future": (True, "which PEFT .* does not have"),
    "future_config": ({"a": 1}, "which PEFT .* does not have"),
    "init_lora_weights": ("loftq", "on CUDA only"),
    "peft_type": ("FUTURE", "cannot be read"),
    "r": (0, "`r` should be a positive integer"),
    "rank_pattern": (["q_proj"], "rank_pattern is not an object"),
}


def test_every_option_of_peft_is_tried_or_refused() -> None:
    default, tried = LoraConfig(), {"target_modules"}
    for kind in LORA:
        config = LORA[kind]()
        tried |= {
            f.name for f in fields(config) if getattr(config, f.name) != getattr(default, f.name)
        }
    expected = {f.name for f in fields(LoraConfig)} - DESCRIPTIVE - SETTINGS_OF_TRAINING
    assert expected == tried - DESCRIPTIVE | (expected & REFUSED_CONFIGS.keys())


def change(adapter: Path, **options: object) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.mark.parametrize("option", REFUSED_CONFIGS)
def test_an_option_without_a_meaning_here_is_refused(
    base: Path, option: str, tmp_path: Path
) -> None:
    if option == "init_lora_weights" and torch.cuda.is_available():
        pytest.skip("PEFT computes LoftQ's weights on CUDA")
    save("linear layers", base, tmp_path)
    value, reason = REFUSED_CONFIGS[option]
    change(tmp_path, **{option: value})
    if value == "loftq":
        change(tmp_path, loftq_config={"loftq_bits": 4, "loftq_iter": 1})
    with pytest.raises(ConfigError, match=reason):
        served(base, tmp_path)


@pytest.mark.parametrize(
    "option",
    [
        {"rank_pattern": {"q_proj(": 2}},
        {"alpha_pattern": {"q_proj": 2, "[": 3}},
        {"target_modules": "(q_proj|v_proj"},
        {"exclude_modules": "*"},
        {"layers_to_transform": [0], "layers_pattern": "layers)"},
        {"modules_to_save": ["norm["]},
    ],
    ids=lambda option: list(option)[-1],
)
def test_a_pattern_that_is_not_valid_is_an_error_with_its_file(
    base: Path, option: dict[str, object], tmp_path: Path
) -> None:
    save("linear layers", base, tmp_path)
    change(tmp_path, **option)
    with pytest.raises(ConfigError, match="is not a valid regular expression") as caught:
        unsupported_per_request(str(tmp_path))
    assert f"{tmp_path}/adapter_config.json: {list(option)[-1]}: " in str(caught.value)


def test_an_unknown_option_is_logged(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save("linear layers", base, tmp_path)
    change(tmp_path, future="yes", old_option=None)
    assert unsupported_per_request(str(tmp_path)) is None
    (message,) = caplog.messages
    assert message.endswith("PEFT ignores the option future")


def test_repeated_layers_generate_the_same_text_with_a_cache(base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    save("layer_replication", base, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    peft_model = PeftModel.from_pretrained(model, str(tmp_path)).eval()
    ids = torch.tensor([[72, 101, 108, 108]])
    with torch.inference_mode():
        for _ in range(12):  # without a cache
            following = peft_model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
            ids = torch.cat([ids, following], dim=1)
    spec = ModelSpec(str(base), adapter=str(tmp_path), device="cpu", dtype="float32")
    with HFRunner(spec) as engine:
        engine.load()
        sampling = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True, logprobs=0)
        prompt = tuple(ids[0, :4].tolist())
        stream = engine.submit(GenerationRequest(prompt=prompt, sampling=sampling))
        found = [entry.chosen.token_id for chunk in stream for entry in chunk.logprobs]
    assert found == ids[0, 4:].tolist()


def test_an_adapter_brings_its_own_tokenizer_and_template(base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from llmctl.engine.loading.load import load_model

    save(GROWN, base, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = "{{ messages[0]['content'] }}<a>"
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(ModelSpec(str(base), adapter=str(tmp_path), device="cpu", dtype="float32"))
    assert len(loaded.tokenizer("<a>").input_ids) == 1
    note = f"{tmp_path} brings its own tokenizer: 3 more tokens, another chat template"
    assert note in loaded.info.notes
    assert (
        loaded.info.template_fingerprint
        != load_model(ModelSpec(str(base), device="cpu", dtype="float32")).info.template_fingerprint
    )


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda _: None, None),
        (lambda own: setattr(own, "padding_side", "left"), None),
        (lambda own: own.add_tokens(["<a>", "<b>"]), "2 more tokens"),
        (lambda own: setattr(own, "eos_token", "<|im_start|>"), "another end token"),
        (lambda own: setattr(own, "chat_template", "{{ 1 }}"), "another chat template"),
        (
            lambda own: setattr(own.backend_tokenizer, "normalizer", normalizers.Lowercase()),
            "another division of text",
        ),
    ],
)
def test_an_adapter_with_another_tokenizer_than_is_used_is_logged(
    base: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[Any], None],
    difference: str | None,
) -> None:
    save("linear layers", base, tmp_path)
    own = byte_tokenizer()
    change(own)
    own.save_pretrained(tmp_path)
    with HFRunner(ModelSpec(str(base), device="cpu", dtype="float32")) as engine:
        engine.load()
        engine.load_adapter("one", str(tmp_path))
        found = [m for m in caplog.messages if "another tokenizer" in m]
    assert len(found) == (difference is not None)
    assert difference is None or difference in found[0]


@pytest.mark.slow
def test_an_adapter_of_single_experts_is_added_to_the_fused_ones(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = build("qwen3_moe")
    model.save_pretrained(base)
    byte_tokenizer().save_pretrained(base)
    weights, parameters = {}, dict(model.named_parameters())
    torch.manual_seed(1)
    for layer in range(model.config.num_hidden_layers):
        experts = f"model.layers.{layer}.mlp.experts"
        down = parameters[f"{experts}.down_proj"].data
        width = down.shape[-1]
        gate, up = parameters[f"{experts}.gate_up_proj"].data.split(width, dim=1)
        for name, matrices in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
            for number, matrix in enumerate(matrices):
                first, second = 0.3 * torch.randn(4, matrix.shape[1]), torch.randn(len(matrix), 4)
                matrix += 2 * second @ first  # with the scaling, alpha / r
                key = f"base_model.model.{experts}.{number}.{name}"
                weights[f"{key}.lora_A.weight"] = first
                weights[f"{key}.lora_B.weight"] = second
    adapter.mkdir()
    save_file(weights, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}
    targets = ["gate_proj", "up_proj", "down_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"target_modules": targets}))
    expected = logprobs(model)
    assert served(base, adapter) == pytest.approx(expected, abs=1e-4)
    assert merged(base, adapter, tmp_path / "merged") == pytest.approx(expected, abs=1e-4)


def test_patterns_that_match_the_same_layer_are_logged(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save("linear layers", base, tmp_path)
    change(tmp_path, alpha_pattern={"layers.0.self_attn.q_proj": 4, "q_proj": 16, "v_proj": 2})
    assert unsupported_per_request(str(tmp_path)) is None
    (record,) = caplog.records
    assert "'q_proj' and 'layers.0.self_attn.q_proj' of alpha_pattern" in record.getMessage()
