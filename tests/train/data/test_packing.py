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
def test_every_sample_is_in_one_row_and_no_row_is_too_long(lengths: list[int]) -> None:
    rows = pack_best_fit(np.array(lengths, dtype=np.int32), 64)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 64 for row in rows)
    # The mark of best fit: no two rows could have shared one.
    used = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(used) < 2 or used[0] + used[1] > 64


def test_short_samples_leave_almost_nothing_empty() -> None:
    lengths = np.random.default_rng(0).integers(20, 400, 5000).astype(np.int32)
    rows = pack_best_fit(lengths, 2048)
    assert lengths.sum() / (len(rows) * 2048) > 0.995


def test_a_sample_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="65 tokens does not fit a packed row of 64"):
        pack_best_fit(np.array([3, 65], dtype=np.int32), 64)


def some_samples(vocabulary: int, *lengths: int) -> list[TokenSequence]:
    rng = np.random.default_rng(1)
    made = []
    for length in lengths:
        ids = rng.integers(3, vocabulary, length).astype(np.int32)
        made.append(TokenSequence(ids, rng.random(length) < 0.6))
    return made


def token_losses(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """Losses of all learnt tokens in order of rows, shape (learnt,)."""
    labels = batch.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1].float()
    losses = cross_entropy(
        logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORE_INDEX
    )
    return losses[labels != IGNORE_INDEX]


def tiny_model(model_type: str, attention: str = "sdpa", **shape: Any) -> Any:
    torch.manual_seed(3)
    config = AutoConfig.for_model(model_type, **(SHAPE | {"vocab_size": 300} | shape))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
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
        tiny_model(model_type, attention, **shape), some_samples(300, 17, 1, 30, 5, 2, 40, 9)
    )


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


def test_a_model_that_carries_a_state_along_the_row_is_found_out() -> None:
    collator = SftCollator(pad_id=0)
    assert packing_is_isolated(tiny_model("llama"), collator)
    mamba = AutoConfig.for_model("mamba", hidden_size=32, num_hidden_layers=2, vocab_size=300)
    assert not packing_is_isolated(AutoModelForCausalLM.from_config(mamba), collator)


def test_trying_a_model_leaves_its_mode_as_it_was() -> None:
    model = tiny_model("llama").train()
    packing_is_isolated(model, SftCollator(pad_id=0))
    assert model.training
