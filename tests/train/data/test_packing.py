from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from llmctl.data.tokenized.storage import TokenSequence
from llmctl.engine.models import resolve
from llmctl.errors import ConfigError
from llmctl.train.data.collate import SftCollator, packing_is_isolated
from llmctl.train.data.packing import pack_best_fit
from llmctl.train.kernels.cross_entropy import IGNORE_INDEX
from tests.tiny import SHAPE


@given(st.lists(st.integers(1, 64), max_size=200))
def test_every_sample_is_in_one_row_and_no_row_exceeds_the_capacity(lengths: list[int]) -> None:
    rows = pack_best_fit(np.array(lengths, dtype=np.int32), 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    # A property of best fit: no two rows fit into one.
    used = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(used) < 2 or used[0] + used[1] > 64


def test_rows_of_short_samples_are_almost_full() -> None:
    lengths = np.random.default_rng(0).integers(20, 400, 5000).astype(np.int32)
    rows = pack_best_fit(lengths, 2048)
    assert lengths.sum() / (len(rows) * 2048) > 0.995


def test_a_sample_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="65 tokens does not fit a packed row of 64"):
        pack_best_fit(np.array([3, 65], dtype=np.int32), 64)


def random_samples(vocabulary: int, *lengths: int) -> list[TokenSequence]:
    rng = np.random.default_rng(1)
    made = []
    for length in lengths:
        ids = rng.integers(3, vocabulary, length).astype(np.int32)
        made.append(TokenSequence(ids, rng.random(length) < 0.6))
    return made


def token_losses(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Return the losses of all targets in the order of rows, shape (targets,)."""
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1].float()
    chosen = labels != IGNORE_INDEX
    return cross_entropy(logits[chosen], labels[chosen], reduction="none")


def tiny_model(
    model_type: str,
    attention: str = "sdpa",
    *,
    scale: int = 8,
    dtype: torch.dtype = torch.float32,
    **shape: Any,
) -> Any:
    """Return a random model; `scale` multiplies its matrices."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(model_type, **(SHAPE | {"vocab_size": 300} | shape))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(scale)
    return model.eval()


def assert_same_losses(model: Any, samples: list[TokenSequence]) -> None:
    collator = SftCollator(pad_id=0, multiple_of=8)
    alone = torch.cat([token_losses(model, collator([sample])) for sample in samples])
    rows = [tuple(samples[:3]), tuple(samples[3:4]), tuple(samples[4:])]
    for batch in (collator(samples), collator(rows), collator([tuple(samples)])):
        torch.testing.assert_close(token_losses(model, batch), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("model_type", "shape"), [("llama", {}), ("mistral", {"sliding_window": 4}), ("qwen3", {})]
)
def test_packed_and_padded_samples_have_the_losses_they_have_alone(
    model_type: str, shape: dict[str, Any], attention: str
) -> None:
    assert_same_losses(
        tiny_model(model_type, attention, **shape), random_samples(300, 17, 1, 30, 5, 2, 40, 9)
    )


@pytest.mark.slow
@pytest.mark.real_model
def test_packed_samples_of_the_real_model_have_the_losses_they_have_alone() -> None:
    model = AutoModelForCausalLM.from_pretrained(
        resolve.resolve_model("smollm2-135m").path, dtype=torch.float32
    )
    assert packing_is_isolated(model, SftCollator(pad_id=2))
    # The ids of plain English words, whose losses are small enough to compare to 1e-5.
    text = np.array([504, 3575, 282, 4649, 314, 7042, 30, 657, 314, 260, 2240], dtype=np.int32)
    samples = [
        TokenSequence(np.tile(text, n), np.ones(11 * n, dtype=np.bool_)) for n in (1, 3, 2, 1, 2)
    ]
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        assert_same_losses(model, samples)


ISOLATED: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 4},
    "gpt_neox": {},
    "mixtral": {"num_local_experts": 4},
}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16, "mamba_n_groups": 1}
LEAKING: dict[str, dict[str, Any]] = {
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 1},
    "falcon_h1": {**_MAMBA2, "mamba_d_ssm": 64},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    "granitemoehybrid": {**_MAMBA2, "layer_types": ["mamba", "attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "qwen3_next": {
        "num_hidden_layers": 4,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "rwkv": {"attention_hidden_size": 32},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},  # ignores position_ids
}


@pytest.mark.parametrize("scale", [1, 8], ids=["small-weights", "large-weights"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", [*ISOLATED, *LEAKING])
def test_models_whose_packed_samples_influence_each_other_are_detected(
    model_type: str, dtype: torch.dtype, scale: int
) -> None:
    shape = (ISOLATED | LEAKING)[model_type]
    attention = "eager" if model_type in ("mamba", "mamba2", "rwkv") else "sdpa"
    model = tiny_model(model_type, attention, scale=scale, dtype=dtype, **shape)
    assert packing_is_isolated(model, SftCollator(pad_id=0)) == (model_type in ISOLATED)


def test_the_check_of_packing_does_not_change_the_model() -> None:
    model = tiny_model("llama").train().requires_grad_(False)
    packing_is_isolated(model, SftCollator(pad_id=0))
    assert model.training
    assert not model.get_input_embeddings()._forward_hooks
    assert all(p.grad is None for p in model.parameters())
