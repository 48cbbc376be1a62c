"""Predicted memory equals measured memory, and suggestions fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llmctl.config import TrainConfig
from llmctl.engine.loading.trainable import ModelMetadata, load_for_training, load_model_metadata
from llmctl.train.setup.memory import TrainMemoryEstimator
from llmctl.train.setup.memory_trace import StorageTracker, trace_step
from llmctl.train.setup.trainable_parameters import (
    count_trainable,
    make_trainable,
    optimize_for_training,
)
from llmctl.types import ModelSpec
from tests.tiny import save_tiny_model

ROWS, LENGTH = 3, 64
CASES: dict[str, dict[str, Any]] = {
    "lora": {},
    "bfloat16": {"dtype": "bfloat16"},
    "dora": {"method": "dora"},
    "full": {"method": "full"},
    "full in bfloat16": {"method": "full", "dtype": "bfloat16"},
    "dropout": {"dropout": 0.1},
    "checkpointing": {"gradient_checkpointing": True},
    "eager": {"attention": "eager"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=6)


def resolved(**settings: Any) -> TrainConfig:
    chosen: dict[str, Any] = {
        "data": ("x",),
        "output": "y",
        "device": "cpu",
        "dtype": "float32",
        "rank": 4,
        "attention": "sdpa",
        "optimizer": "adamw",
        "gradient_checkpointing": False,
        "micro_batch_size": ROWS,
        "batch_size": 2 * ROWS,
    }
    return TrainConfig(**(chosen | settings))


def metadata(folder: Path, config: TrainConfig) -> ModelMetadata:
    return load_model_metadata(
        ModelSpec(str(folder), quant=config.weights_quant, dtype=config.dtype, device="cpu")
    )


def weights_type(config: TrainConfig) -> torch.dtype:
    dtype: torch.dtype = torch.float32 if config.method == "full" else getattr(torch, config.dtype)
    return dtype


def allocated(config: TrainConfig, known: ModelMetadata) -> tuple[int, int]:
    """Run a real step; return the bytes allocated at the output layer, and the peak."""
    model = load_for_training(known, dtype=weights_type(config), attention=config.attention)
    trainable_model = make_trainable(model, config, None)
    mixed = optimize_for_training(trainable_model, config, "cpu")
    mode = torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed and config.dtype != "float32")
    tracker = StorageTracker(trainable_model)
    ids = torch.zeros((ROWS, LENGTH), dtype=torch.long)
    with tracker:
        with mode:
            output = model.base_model(input_ids=ids, use_cache=False)[0]
        saved = tracker.peak = tracker.now
        output.sum().backward()
    return saved, tracker.peak


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_traced_step_allocates_what_a_real_step_does(folder: Path, case: str) -> None:
    config = resolved(**CASES[case])
    known = metadata(folder, config)
    found = trace_step(
        config, known, rows=ROWS, length=LENGTH, dtype=weights_type(config), accumulates=False
    )
    saved, peak = allocated(config, known)
    assert found.saved == pytest.approx(saved, rel=0.01)
    assert found.peak == pytest.approx(max(saved, peak), rel=0.02)


@pytest.mark.slow
def test_memory_grows_with_rows_and_length_and_shrinks_with_checkpointing(
    folder: Path,
) -> None:
    config = resolved()
    memory = TrainMemoryEstimator(metadata(folder, config))

    def activations(length: int = LENGTH, **settings: Any) -> int:
        plan = memory.predict(replace(config, **settings), length=length, supervised=8)
        return plan.parts["activations"]

    plain = activations()
    assert activations(gradient_checkpointing=True) < plain / 4
    assert activations(length=LENGTH // 2) < plain * 0.6
    assert plain / 4 < activations(micro_batch_size=1) < plain / 2


@pytest.mark.slow
def test_weights_gradients_and_optimizer_states_follow_from_counts(folder: Path) -> None:
    config = resolved(rank=8)
    known = metadata(folder, config)
    memory = TrainMemoryEstimator(known)
    trainable = count_trainable(config, known)
    parts = memory.predict(config, length=LENGTH, supervised=8).parts
    assert parts["adapter"] == parts["gradients"] == 4 * trainable
    assert parts["optimizer"] == 8 * trainable
    small = memory.predict(replace(config, optimizer="adamw_8bit"), length=LENGTH, supervised=8)
    assert small.parts["optimizer"] < 2.1 * trainable
    shape = known.shape
    assert parts["weights"] == 4 * (shape.linear_parameters + shape.other_parameters)
    four = memory.predict(replace(config, method="qlora"), length=LENGTH, supervised=8)
    assert four.parts["weights"] < parts["weights"] / 2
    whole = memory.predict(replace(config, method="full"), length=LENGTH, supervised=8)
    assert "adapter" not in whole.parts
    two = TrainMemoryEstimator(known, world_size=2).predict(
        replace(config, batch_size=4 * ROWS), length=LENGTH, supervised=8
    )
    assert two.parts["gradients"] == 2 * parts["gradients"]


def test_both_replies_of_a_pair_are_in_a_batch(folder: Path) -> None:
    config = resolved()
    memory = TrainMemoryEstimator(metadata(folder, config))
    single = memory.predict(config, length=LENGTH, supervised=8)
    pair = memory.predict(replace(config, method="dpo"), length=LENGTH, supervised=16)
    assert pair.parts["activations"] == pytest.approx(2 * single.parts["activations"], rel=0.05)


@pytest.mark.slow
def test_a_training_that_does_not_fit_is_refused_with_settings_that_do(folder: Path) -> None:
    config = resolved(micro_batch_size=16, batch_size=32)
    known = metadata(folder, config)
    row = {"length": 256, "supervised": 200}
    roomy = TrainMemoryEstimator(known).predict(config, **row)
    assert roomy.fits
    # The memory of the process itself changes a little between two predictions.
    short = 2**24
    memory = TrainMemoryEstimator(known, free_bytes=roomy.peak_bytes + roomy.reserve_bytes - short)
    tight = memory.predict(config, **row)
    assert not tight.fits
    found = memory.suggest(config, **row)
    assert found[0].options == "--micro-batch-size 8"
    assert all(way.plan.fits for way in found)
    error = memory.out_of_memory_error(tight, found)
    assert "activations" in str(error)
    assert "a micro-batch of 16 rows of up to 256 tokens" in str(error)
    assert "--micro-batch-size 8" in error.hint
    least = replace(config, micro_batch_size=1, batch_size=1, gradient_checkpointing=True)
    full_device = TrainMemoryEstimator(known, free_bytes=1)
    assert full_device.suggest(least, **row) == ()
    estimate = full_device.predict(least, **row)
    assert "smaller model" in full_device.out_of_memory_error(estimate, ()).hint


def test_the_peak_is_the_sum_of_its_parts(folder: Path) -> None:
    config = resolved()
    plan = TrainMemoryEstimator(metadata(folder, config)).predict(
        config, length=LENGTH, supervised=8
    )
    assert plan.peak_bytes == sum(plan.parts.values())
    assert all(plan.parts.values())
