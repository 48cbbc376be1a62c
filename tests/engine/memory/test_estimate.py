import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedConfig

from llmctl.engine.batching.forward.cache_layout import cache_layout
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loading.load import load_model, read_shape
from llmctl.engine.memory.cache_sizes import LayerKV
from llmctl.engine.memory.estimate import ModelShape, format_gib, shape_from_config
from llmctl.engine.memory.plan import estimate_plan, plan_memory, plan_weights
from llmctl.engine.memory.request import MemoryRequest, TargetDevice
from llmctl.engine.models import resolve
from llmctl.engine.models.catalog import find_entry
from llmctl.errors import ConfigError, ContextLengthError, ModelLoadError, OutOfMemoryError
from llmctl.types import (
    GenerationRequest,
    MemoryLimits,
    ModelSpec,
    Quant,
)
from tests.compat.architectures import build
from tests.tiny import SHAPE, save_tiny_model

LLAMA_3B: dict[str, Any] = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
QWEN_7B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
}
GEMMA_4B: dict[str, Any] = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262208,
    "sliding_window": 1024,
    "max_position_embeddings": 131072,
}
HYBRID_4B: dict[str, Any] = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 248320,
    "max_position_embeddings": 262144,
}
QWEN_3_5_0_8B: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3584,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "vocab_size": 248320,
    "tie_word_embeddings": True,
    "max_position_embeddings": 262144,
}
GPT_OSS_20B: dict[str, Any] = {
    "num_hidden_layers": 24,
    "num_local_experts": 32,
    "max_position_embeddings": 131072,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
"""Multi-head latent attention."""


def shape(model_type: str, config: dict[str, Any]) -> ModelShape:
    return shape_from_config(
        AutoConfig.for_model(model_type, **config), config["max_position_embeddings"]
    )


def memory_request(
    shape: ModelShape,
    free_gib: float,
    device: str = "cuda",
    quant: Quant = "none",
    **limits: Any,
) -> MemoryRequest:
    target = TargetDevice(device, torch.bfloat16, int(free_gib * 2**30))
    return MemoryRequest(shape, target, quant, MemoryLimits(**limits))


@pytest.fixture(scope="module")
def qwen() -> ModelShape:
    return shape("qwen2", QWEN_7B)


@pytest.fixture(scope="module")
def llama() -> ModelShape:
    return shape("llama", LLAMA_3B)


def test_kv_bytes_of_a_llama(llama: ModelShape) -> None:
    assert llama.cache.attention == (LayerKV(8, 128, 128),) * 28
    assert llama.kv_bytes(1, 2, "none") == 2 * 28 * 8 * 128 * 2 == 114_688
    assert llama.kv_bytes(5000, 2, "none") == 5000 * 114_688
    assert llama.batched


def test_kv_bytes_of_grouped_query_attention(qwen: ModelShape) -> None:
    assert qwen.kv_bytes(1, 2, "none") == 2 * 28 * 4 * 128 * 2 == 57_344
    assert qwen.kv_bytes(1, 4, "none") == 2 * 57_344


def test_kv_bytes_in_8_bits_include_a_scale_per_head(qwen: ModelShape) -> None:
    assert qwen.kv_bytes(1, 2, "8bit") == 2 * 28 * 4 * (128 + 4) == 29_568
    # It does not depend on the model's dtype.
    assert qwen.kv_bytes(1, 4, "8bit") == 29_568


def test_sliding_windows_limit_only_the_cache_of_generate() -> None:
    gemma = shape("gemma3_text", GEMMA_4B)
    windows = [layer.window for layer in gemma.cache.attention]
    assert (windows.count(1023), windows.count(None)) == (29, 5)
    per_layer = 2 * 4 * 256 * 2
    # Batched rows keep complete prefixes, for reuse by later requests.
    assert gemma.batched
    assert gemma.kv_bytes(8000, 2, "none") == 34 * 8000 * per_layer
    alone = replace(gemma, batched=False)
    assert alone.kv_bytes(8000, 2, "none") == (5 * 8000 + 29 * 1023) * per_layer
    assert alone.kv_bytes(100, 2, "none") == 34 * 100 * per_layer


@pytest.mark.slow
def test_only_the_attention_layers_of_a_hybrid_model_have_keys_and_values() -> None:
    hybrid = shape("qwen3_5_text", HYBRID_4B)
    assert len(hybrid.cache.attention) == 8
    assert hybrid.cache.stateful_layers == 24
    # The state of a gated delta net is (value heads, key dim, value dim); its convolution keeps
    # the last four inputs. States are in float32. A row has three saved copies.
    state = 24 * (32 * 128 * 128 * 4 + (2 * 16 * 128 + 32 * 128) * 4 * 2)
    assert hybrid.state_bytes(2) == 4 * state
    assert hybrid.kv_bytes(1, 2, "none") == 2 * 8 * 4 * 256 * 2 == 32_768
    plan = plan_memory(memory_request(hybrid, 40, max_rows=8))
    assert plan.max_rows == 8
    assert plan.kv_budget_bytes <= 8 * (plan.context_length * 32_768 + 4 * state)
    assert plan.kv_budget_tokens <= 8 * plan.context_length
    assert "24 layers keep a state" in plan.notes[-1]


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {}),
        ("qwen2", {"num_key_value_heads": 1}),
        ("gemma3_text", {"sliding_window": 16, "num_hidden_layers": 7}),
        ("qwen3_5_text", {"num_hidden_layers": 4}),
        ("deepseek_v3", LATENT | {"first_k_dense_replace": 2}),
        ("minicpm3", LATENT),
    ],
)
@pytest.mark.parametrize("tokens", [3, 40])
def test_kv_bytes_equal_the_size_of_a_real_cache(
    model_type: str, overrides: dict[str, Any], tokens: int
) -> None:
    settings = SHAPE | {"vocab_size": 64, "pad_token_id": 0} | overrides
    config = AutoConfig.for_model(model_type, **settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    cache: Any = DynamicCache(config=config)
    with torch.inference_mode():
        model(input_ids=torch.ones(1, tokens, dtype=torch.long), past_key_values=cache)
    tensors = [
        tensor
        for layer in cache.layers
        for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None))
        if tensor is not None
    ]
    alone = replace(shape_from_config(config, 256), batched=False)
    assert alone.kv_bytes(tokens, 4, "none") == sum(tensor.nbytes for tensor in tensors)
    assert tensors


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "model_type",
    [
        *("gemma3_text", "llama4_text", "gemma4_text", "deepseek_v3", "gpt_oss", "qwen3_5_text"),
        *("lfm2", "mamba2", "falcon_h1", "kimi_linear", "jamba", "granitemoehybrid", "gpt2"),
    ],
)
def test_the_plan_counts_what_the_cache_of_a_row_takes(model_type: str, dtype: torch.dtype) -> None:
    model = build(model_type, dtype)
    planned = shape_from_config(model.config, 256)
    used = cache_layout(model).shape
    assert planned.kv_bytes(1, dtype.itemsize, "none") == used.token_bytes
    assert planned.cache.state_bytes(dtype.itemsize) == used.state_bytes


@pytest.mark.parametrize(
    ("name", "model_type", "config"),
    [
        ("llama-3.2-3b", "llama", LLAMA_3B),
        ("qwen2.5-7b", "qwen2", QWEN_7B),
        ("deepseek-r1-7b", "qwen2", QWEN_7B),
        ("qwen3.5-0.8b", "qwen3_5_text", QWEN_3_5_0_8B),
        ("gpt-oss-20b", "gpt_oss", GPT_OSS_20B),
    ],
)
def test_counted_parameters_equal_those_of_the_catalogue(
    name: str, model_type: str, config: dict[str, Any]
) -> None:
    counted, entry = shape(model_type, config), find_entry(name)
    assert entry is not None
    assert counted.linear_parameters == entry.linear_parameters
    assert counted.linear_parameters + counted.other_parameters == entry.parameters


def test_weight_bytes_by_quantisation(qwen: ModelShape) -> None:
    assert qwen.weight_bytes(2, "none") == 2 * 7_615_616_512
    assert qwen.weight_bytes(2, "8bit") == 6_525_288_448 + 2 * 1_090_328_064
    assert qwen.weight_bytes(2, "4bit") == int(6_525_288_448 * 0.516) + 2 * 1_090_328_064


def test_activation_bytes_are_the_sum_of_their_parts(
    qwen: ModelShape,
) -> None:
    chunk = 512 * (6 * 3584 + 2 * 18944) * 2
    scores = 4096 * (5 * 256 * 28 + 512) * 2
    logits = 16 * 152064 * 4 * 4
    assert qwen.activation_bytes(4096, 16, 2, "none") == chunk + scores + logits
    dequantised = 3584 * 18944 * 2
    assert qwen.activation_bytes(4096, 16, 2, "4bit") == chunk + scores + logits + dequantised


def test_a_missing_config_value_is_named() -> None:
    with pytest.raises(ModelLoadError, match="hidden_size"):
        shape_from_config(PreTrainedConfig.from_dict({"num_hidden_layers": 2}), 2048)


def test_a_plan_does_not_exceed_the_free_memory(qwen: ModelShape) -> None:
    for free in (6.5, 7.2, 11.0, 15.2, 24.0):
        for quant in get_args(Quant):
            plan = estimate_plan(memory_request(qwen, free, quant=quant))
            if plan.context_length:
                planned = plan.weights_bytes + plan.activation_bytes + plan.reserve_bytes
                assert planned + plan.kv_budget_bytes <= plan.free_bytes
                assert plan.kv_budget_tokens >= plan.context_length


def test_an_8_gb_gpu_runs_7b_in_4_bits_with_the_context_that_fits(qwen: ModelShape) -> None:
    plan = plan_memory(memory_request(qwen, 7.2, quant="4bit"))
    assert plan.reserve_bytes == 600 * 2**20
    weights = int(6_525_288_448 * 0.516) + 2 * 1_090_328_064
    fixed = 512 * (6 * 3584 + 2 * 18944) * 2 + 16 * 152064 * 16 + 3584 * 18944 * 2
    left = int(7.2 * 2**30) - weights - 600 * 2**20 - fixed
    # Keys and values, scores and mask of one further token.
    per_token = 57_344 + (5 * 256 * 28 + 512) * 2
    assert plan.context_length == left // per_token // 256 * 256 == 9984
    assert plan.max_rows == 16
    assert plan.kv_budget_bytes == left - 9984 * (per_token - 57_344)
    assert plan.kv_budget_tokens == plan.kv_budget_bytes // 57_344
    assert plan.notes == ("memory holds 9,984 of 32,768 tokens of context",)
    assert [(o.quant, o.fits) for o in plan.alternatives] == [
        ("none", False),
        ("8bit", False),
        ("4bit", True),
    ]
    assert [o.context_length for o in plan.alternatives] == [0, 0, 9984]


def test_the_kv_budget_is_limited_to_what_all_rows_can_use(llama: ModelShape) -> None:
    plan = plan_memory(memory_request(llama, 60, context_length=4096, max_rows=3))
    assert plan.context_length == 4096
    assert plan.kv_budget_bytes == 3 * 4096 * 114_688
    assert plan.kv_budget_tokens == 3 * 4096


def test_an_8_bit_cache_allows_a_longer_context(qwen: ModelShape) -> None:
    plain = plan_memory(memory_request(qwen, 7.2, quant="4bit"))
    small = plan_memory(memory_request(qwen, 7.2, quant="4bit", kv_quant="8bit"))
    assert small.kv_bytes_per_token == 29_568
    assert small.context_length > plain.context_length


def test_on_a_cpu_the_cache_is_limited_to_half_of_the_free_memory(llama: ModelShape) -> None:
    plan = plan_memory(memory_request(llama, 20, device="cpu", context_length=32768))
    assert plan.reserve_bytes == 2**30
    assert plan.kv_budget_bytes == 10 * 2**30


def test_the_size_of_the_cache_can_be_set(llama: ModelShape) -> None:
    plan = plan_memory(memory_request(llama, 20, device="cpu", kv_bytes=2**30))
    assert plan.kv_budget_bytes == 2**30
    assert plan.context_length == 9216
    # What the rows cannot use caches prefixes.
    limits: dict[str, Any] = {"context_length": 1024, "kv_bytes": 4 * 2**30}
    roomy = plan_memory(memory_request(llama, 40, max_rows=1, **limits))
    assert roomy.kv_budget_bytes == 4 * 2**30
    less = plan_memory(memory_request(llama, 8, **limits))
    assert less.kv_budget_bytes < 4 * 2**30
    assert "of the 4.0 GiB for the KV cache fit" in less.notes[0]


def test_a_context_beyond_the_models_is_reduced_with_a_note(qwen: ModelShape) -> None:
    plan = plan_memory(memory_request(qwen, 40, context_length=99_999))
    assert plan.context_length == 32_768
    assert plan.notes == ("the model supports 32,768 tokens of context, not 99,999",)


@pytest.mark.parametrize(
    ("free_gib", "quant", "limits", "hint"),
    [
        (10.0, "none", {}, "try --quant 4bit"),
        (8.9, "8bit", {}, "try --quant 4bit"),
        (7.2, "4bit", {"context_length": 32768}, "try --context-length 9984"),
        (7.2, "4bit", {"context_length": 10240}, "--context-length 9984, or --kv-cache-dtype 8bit"),
        (18.0, "none", {"context_length": 32768}, "try --quant 4bit"),
        (6.15, "4bit", {}, "try --context-length 1280"),
        (6.5, "none", {"context_length": 16384}, "try --quant 4bit --context-length 4352"),
        (7.2, "4bit", {"kv_bytes": 2**20}, "try --kv-memory 112MiB"),
        (3.0, "none", {}, "choose a smaller model"),
    ],
)
def test_the_error_of_a_model_that_does_not_fit_suggests_settings(
    qwen: ModelShape, free_gib: float, quant: Quant, limits: dict[str, Any], hint: str
) -> None:
    request = memory_request(qwen, free_gib, quant=quant, **limits)
    with pytest.raises(OutOfMemoryError) as caught:
        plan_memory(request)
    assert hint in caught.value.hint
    assert f"{format_gib(request.target.free_bytes)} free" in str(caught.value)
    plan = estimate_plan(request)
    assert (plan.context_length, plan.kv_budget_bytes, plan.kv_budget_tokens) == (0, 0, 0)


def test_the_cache_limit_on_a_cpu_is_named_if_it_is_exceeded(llama: ModelShape) -> None:
    # The weights are small, and the context is too short to be reduced.
    small = replace(llama, context_length=500, quantisable=False, stored_bytes=0)
    free = int(1.5 * 500 * 114_688)
    tight = MemoryRequest(small, TargetDevice("cpu", torch.bfloat16, free), "none", MemoryLimits())
    with pytest.raises(OutOfMemoryError, match="half of the free memory is 41 MiB") as caught:
        plan_memory(tight)
    # 8 bits need 132 of 256 bytes per head, still too much with the activations.
    assert caught.value.hint.startswith("no setting")


def test_without_a_config_only_weights_are_planned() -> None:
    target = TargetDevice("cuda", torch.bfloat16, 8 * 2**30)
    plan = plan_weights(6_525_288_448, 1_090_328_064, target, "4bit")
    assert plan.weights_bytes == int(6_525_288_448 * 0.516) + 2 * 1_090_328_064
    assert [(o.quant, o.fits, o.context_length) for o in plan.alternatives] == [
        ("none", False, 0),
        ("8bit", False, 0),
        ("4bit", True, None),
    ]


@pytest.mark.parametrize(
    "wrong", [{"context_length": 0}, {"max_rows": 0}, {"kv_bytes": -1}, {"kv_quant": "2bit"}]
)
def test_invalid_limits_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        MemoryLimits(**wrong)


def test_a_loaded_model_keeps_to_its_plan(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    limits = MemoryLimits(context_length=64, max_rows=2)
    spec = ModelSpec(str(folder), device="cpu", dtype="float32", limits=limits)
    loaded = load_model(spec)
    assert loaded.plan.context_length == loaded.info.context_length == 64
    assert loaded.plan.kv_budget_tokens == 2 * 64
    assert loaded.plan.weights_bytes == 4 * loaded.info.parameter_count
    with HFRunner(spec) as engine:
        engine.load()
        with pytest.raises(ContextLengthError, match="64 tokens"):
            engine.submit(GenerationRequest(prompt="x" * 100))


def test_weights_quantised_on_disk_count_with_their_file_size(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    spec = ModelSpec(str(folder), device="cpu")
    found = resolve.resolve_model(spec.model)
    measured = read_shape(spec, found)
    on_disk = sum(file.stat().st_size for file in folder.iterdir())
    assert measured.weight_bytes(2, "none") == on_disk
    plan = estimate_plan(
        MemoryRequest(measured, TargetDevice("cpu", torch.bfloat16, 2**30), "none", spec.limits)
    )
    assert [other.quant for other in plan.alternatives] == ["none"]
    with pytest.raises(ConfigError, match="already quantised"):
        read_shape(replace(spec, quant="4bit"), found)


@pytest.mark.real_model
def test_the_plan_of_the_real_model_follows_from_its_published_shape() -> None:
    spec = ModelSpec("smollm2-135m", device="cpu")
    measured = read_shape(spec, resolve.resolve_model(spec.model))
    assert measured.kv_bytes(1, 2, "none") == 2 * 30 * 3 * 64 * 2 == 23_040
    plan = plan_memory(memory_request(measured, 8, device="cpu"))
    assert plan.context_length == 8192
    assert plan.kv_budget_tokens == 16 * 8192
    assert plan.weights_bytes == 2 * 134_515_008


@pytest.mark.parametrize("model_type", ["gpt_oss", "qwen3_moe", "llama"])
def test_the_plan_leaves_the_settings_of_a_model_as_they_are(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **(SHAPE | EXPERTS))
    before = config.to_dict() | {"experts": config._experts_implementation}
    shape_from_config(config, 64)
    assert config.to_dict() | {"experts": config._experts_implementation} == before
