import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import DataCollatorWithFlattening

from llmctl.data.tokenized.storage import TokenSequence
from llmctl.train.data.collate import LengthGroupedBatchSampler, SftCollator
from llmctl.train.kernels.cross_entropy import IGNORE_INDEX


def sample(*ids: int, loss_mask: str = "") -> TokenSequence:
    marks = loss_mask or "x" * len(ids)
    return TokenSequence(np.array(ids, dtype=np.int32), np.array([m == "x" for m in marks]))


def test_labels_are_the_targets_and_padding_is_found_by_length_not_by_id() -> None:
    end = 7  # of the reply, and also the padding
    batch = SftCollator(pad_id=end)(
        [sample(1, 2, 3, end, loss_mask="..xx"), sample(4, end, loss_mask=".x")]
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, end], [4, end, end, end]]
    assert batch["labels"].tolist() == [
        [IGNORE_INDEX, IGNORE_INDEX, 3, end],
        [IGNORE_INDEX, end, IGNORE_INDEX, IGNORE_INDEX],
    ]
    assert batch.keys() == {"input_ids", "labels", "use_cache"}
    assert all(v.dtype == torch.int64 for v in batch.values() if isinstance(v, torch.Tensor))


def test_the_width_of_a_batch_is_rounded_up_to_a_multiple() -> None:
    rows = [sample(*range(1, 10)), sample(1)]
    assert SftCollator(pad_id=0)(rows)["input_ids"].shape == (2, 9)
    assert SftCollator(pad_id=0, multiple_of=8)(rows)["input_ids"].shape == (2, 16)


def test_packed_samples_have_positions_of_their_own_and_no_loss_at_their_first_token() -> None:
    packed = [(sample(1, 2, 3), sample(4, 5)), (sample(6),)]
    batch = SftCollator(pad_id=0, multiple_of=8)(packed)
    ignored = IGNORE_INDEX
    assert batch["input_ids"].tolist()[0] == [1, 2, 3, 4, 5, 0, 0, 0]
    assert batch["labels"].tolist()[0] == [ignored, 2, 3, ignored, 5, ignored, ignored, ignored]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6]]
    assert "attention_mask" not in batch
    assert batch["use_cache"] is False


def test_sample_boundaries_for_flash_attention_equal_those_of_transformers() -> None:
    samples = (sample(1, 2, 3), sample(4, 5), sample(6, 7, 8, 9))
    theirs = DataCollatorWithFlattening(return_flash_attn_kwargs=True)(
        [{"input_ids": s.ids.tolist()} for s in samples], return_tensors="pt"
    )
    ours = SftCollator(pad_id=0, flash=True)([samples])
    for name in ("input_ids", "position_ids", "cu_seq_lens_q", "cu_seq_lens_k"):
        assert torch.equal(ours[name], torch.as_tensor(theirs[name])), name
    assert ours["max_length_q"] == ours["max_length_k"] == int(theirs["max_length_q"])
    two_rows = SftCollator(pad_id=0, flash=True)([samples[:2], samples[2:]])
    assert two_rows["cu_seq_lens_q"].tolist() == [0, 3, 5, 9, 10]  # the last is padding


LENGTHS: NDArray[np.int32] = np.random.default_rng(0).integers(5, 500, 1003).astype(np.int32)


def test_an_epoch_has_every_sample_once_in_an_order_set_by_the_seed() -> None:
    one, same, other = (LengthGroupedBatchSampler(LENGTHS, 8, seed=s) for s in (1, 1, 2))
    batches = list(one)
    assert sorted(i for batch in batches for i in batch) == list(range(1003))
    assert len(batches) == len(one) == 126
    assert batches == list(same)
    assert batches != list(other)
    same.set_epoch(1)
    assert batches != list(same)


def test_an_epoch_continues_after_the_skipped_batches() -> None:
    sampler = LengthGroupedBatchSampler(LENGTHS, 8, seed=1)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, skip=100)
    assert list(sampler) == whole[100:]
    assert len(sampler) == 26


def test_batches_have_similar_lengths_and_the_longest_comes_first() -> None:
    batches = list(LengthGroupedBatchSampler(LENGTHS, 8, seed=1))
    padded = sum(len(b) * int(LENGTHS[b].max()) for b in batches)
    assert LENGTHS.sum() / padded > 0.97
    assert LENGTHS[batches[0]].max() == LENGTHS.max()
    widths = [int(LENGTHS[b].max()) for b in batches]
    assert np.corrcoef(widths, range(len(widths)))[0, 1] == pytest.approx(0, abs=0.3)


def test_an_incomplete_batch_comes_last_or_is_dropped() -> None:
    kept, dropped = (
        LengthGroupedBatchSampler(LENGTHS, 8, seed=1, drop_last=d) for d in (False, True)
    )
    assert [len(b) for b in kept] == [8] * 125 + [3]
    assert [len(b) for b in dropped] == [8] * 125
    assert len(dropped) == 125


def test_sampler_and_collator_work_in_a_data_loader() -> None:
    data = [sample(*range(1, n)) for n in (4, 9, 5, 3, 8)]
    lengths = np.array([len(s.ids) for s in data], dtype=np.int32)
    loader: DataLoader[TokenSequence] = DataLoader(
        data,  # type: ignore[arg-type]
        batch_sampler=LengthGroupedBatchSampler(lengths, 2, seed=0),
        collate_fn=SftCollator(pad_id=0),
    )
    assert sum(batch["input_ids"].shape[0] for batch in loader) == 5
