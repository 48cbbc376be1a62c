"""Predicted and measured peak memory of trainings, on Linux or any system with CUDA.

Run `python tests/benchmarks/train_memory.py [--device cuda] [--model NAME]`: each case is two steps
of a real training in its own process. It prints both peaks and their difference. The peak is the
resident set of the process, or the memory that torch reserved on the GPU.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmctl.config import TrainConfig
from llmctl.config.settings import ResolvedConfig
from llmctl.data.tokenized.storage import TokenDataset, TokenSequence, TokenWriter
from llmctl.engine.loading.trainable import load_model_metadata
from llmctl.train.distributed import ProcessInfo
from llmctl.train.run import TrainRun
from llmctl.train.setup.defaults import resolve_for_model
from llmctl.train.setup.memory import TrainMemoryEstimator
from llmctl.train.setup.plan import TrainingJob
from llmctl.train.stop import StopRequest
from llmctl.types import ModelSpec, SourceLocation

CASES: tuple[tuple[str, int, dict[str, Any]], ...] = (
    ("LoRA, bfloat16", 256, {"dtype": "bfloat16"}),
    ("LoRA, float32", 128, {"dtype": "float32"}),
    ("LoRA, float32, checkpointing", 128, {"dtype": "float32", "gradient_checkpointing": True}),
    ("LoRA, bfloat16, one long row", 512, {"dtype": "bfloat16", "micro_batch_size": 1}),
    ("LoRA, bfloat16, one short row", 64, {"dtype": "bfloat16", "micro_batch_size": 1}),
    ("QLoRA", 128, {"dtype": "bfloat16", "method": "qlora"}),
    ("LoRA on 8 bits", 128, {"dtype": "bfloat16", "quant": "8bit"}),
    ("DoRA, float32", 128, {"dtype": "float32", "method": "dora", "micro_batch_size": 2}),
    ("all weights, bfloat16", 128, {"dtype": "bfloat16", "method": "full", "micro_batch_size": 2}),
    ("all weights, float32", 128, {"dtype": "float32", "method": "full", "micro_batch_size": 2}),
)
"""Name, tokens per row, and settings."""


def _rows(folder: Path, count: int, length: int) -> TokenDataset:
    chance = np.random.default_rng(0)
    with TokenWriter(folder) as writer:
        for number in range(count):
            ids = chance.integers(10, 400, length).astype(np.int32)
            learn = np.arange(length) >= length // 2
            writer.add(TokenSequence(ids, learn, SourceLocation("rows", number)), held_out=False)
    return TokenDataset(folder, held_out=False)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(model: str, device: str, case: int) -> None:
    """Predict, train, and print both peaks in bytes."""
    _, length, chosen = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        settings = {"micro_batch_size": 4, "model": model, "device": device, **chosen}
        settings["batch_size"] = 2 * settings["micro_batch_size"]
        config = TrainConfig(data=("rows",), output=folder, **settings)
        spec = ModelSpec(model, quant=config.weights_quant, dtype=config.dtype, device=device)
        metadata = load_model_metadata(spec)
        origins = dict.fromkeys([*settings, "max_length"], "benchmark")
        config = resolve_for_model(ResolvedConfig(config, origins), metadata).config
        predicted = TrainMemoryEstimator(metadata).predict(
            config, length=length, supervised=length // 2
        )
        rows = Path(folder) / "rows"
        rows.mkdir()
        data = _rows(rows, 2 * config.batch_size, length)
        job = TrainingJob(config, metadata, data, None, [], 2, Path(folder) / "out", ProcessInfo())
        run = TrainRun(job, lambda _: None, StopRequest(), lambda _: None)
        run.load()
        run.train()
        print(predicted.peak_bytes, _peak(metadata.device))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", type=int)
    given = parser.parse_args()
    if given.case is not None:
        measure(given.model, given.device, given.case)
        return
    print(f"{'':32}{'predicted':>12}{'measured':>12}{'error':>8}")
    for number, (name, length, _) in enumerate(CASES):
        child = [sys.executable, __file__, "--model", given.model, "--device", given.device]
        done = subprocess.run(
            [*child, "--case", str(number)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(f"{name:32}failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        predicted, measured = map(int, done.stdout.split()[-2:])
        error = predicted / measured - 1
        label = f"{name}, {length}"
        print(f"{label:32}{predicted / 1e6:9,.0f} MB{measured / 1e6:9,.0f} MB{error:8.1%}")


if __name__ == "__main__":
    main()
