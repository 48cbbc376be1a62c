"""Speed and peak memory of `llmctl finetune` and TRL on a CPU.

Run `pip install trl` and `python tests/benchmarks/finetune_speed.py DATA.jsonl`. Both sides get the
same rows, model, rank, batch size, length, dtype, optimizer and number of steps, each in its own
process, and alternate; a round is one run of each. TRL runs with its default, gradient
checkpointing; `--no-checkpointing` disables it, which is faster on a CPU.

Tokens are counted without padding, over the last 10 steps.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Side = Callable[[argparse.Namespace], None]
_STEPS = 10
"""Last steps of a run that are measured."""


def _report(tokens_per_s: float) -> None:
    """Print the measurement of a child process as a JSON line for the parent."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"tokens_per_s": tokens_per_s, "peak_bytes": peak}))


def run_llmctl(args: argparse.Namespace) -> None:
    """Train with llmctl."""
    from llmctl.config.settings import Setting
    from llmctl.services.finetuning.run import FinetuneRequest, finetune
    from llmctl.types import TrainEvent, TrainStep

    speeds: list[float] = []

    def listener(event: TrainEvent) -> None:
        if isinstance(event, TrainStep):
            speeds.append(event.tokens_per_s)  # over the last 10 steps

    settings = {
        "model": args.model,
        "data": args.data,
        "output": str(Path(args.folder) / "llmctl"),
        "rank": args.rank,
        "batch_size": args.batch,
        "micro_batch_size": args.batch,
        "max_length": args.length,
        "max_steps": args.steps,
        "epochs": 1000,
        "dtype": args.dtype,
        "device": "cpu",
        "eval_fraction": 0,
        "save_every": 10**6,
    }
    chosen = {name: Setting(value, "benchmark") for name, value in settings.items()}
    finetune(FinetuneRequest(options=chosen, track=False, overwrite=True), listener)
    _report(speeds[-1])


def run_trl(args: argparse.Namespace) -> None:
    """Train with TRL on the same rows, as its documentation says."""
    import time

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, TrainerCallback

    trl: Any = importlib.import_module("trl")

    from llmctl.data.io.reader import read_examples
    from llmctl.data.rows.row_errors import RowErrorLog
    from llmctl.engine.models.resolve import resolve_model

    found = read_examples([args.data], on_row_error=RowErrorLog())
    rows = [
        {
            "prompt": [{"role": m.role, "content": m.content} for m in example.messages[:-1]],
            "completion": [{"role": "assistant", "content": example.messages[-1].content}],
        }
        for example in found
    ]
    config = trl.SFTConfig(
        output_dir=str(Path(args.folder) / "trl"),
        per_device_train_batch_size=args.batch,
        gradient_accumulation_steps=1,
        max_steps=args.steps,
        max_length=args.length,
        learning_rate=2e-4,
        lr_scheduler_type="cosine",
        max_grad_norm=0.3,
        gradient_checkpointing=args.checkpointing,
        bf16=args.dtype == "bfloat16",
        use_cpu=True,
        seed=42,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(
        resolve_model(args.model).path, dtype=getattr(torch, args.dtype)
    )
    trainer: Any = trl.SFTTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(
            r=args.rank,
            lora_alpha=2 * args.rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        ),
    )
    seconds: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.start)

    original = trainer.training_step

    def training_step(model: Any, inputs: Any, *rest: Any) -> Any:
        tokens.append(int(inputs["attention_mask"].sum()))
        return original(model, inputs, *rest)

    trainer.training_step = training_step
    trainer.add_callback(Clock())
    trainer.train()
    _report(sum(tokens[-_STEPS:]) / sum(seconds[-_STEPS:]))


SIDES: dict[str, Side] = {"llmctl": run_llmctl, "trl": run_trl}


def _run_side(side: str, arguments: list[str]) -> dict[str, float]:
    """Run one side in a child process; return its measurement."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *arguments, "--side", side, "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    measured: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def main() -> None:
    """Alternate the sides, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-checkpointing", dest="checkpointing", action="store_false")
    parser.add_argument("--side", choices=SIDES)
    parser.add_argument("--folder", default="")
    args = parser.parse_args()
    if args.side:
        SIDES[args.side](args)
        return
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(args.rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            results[side].append(_run_side(side, sys.argv[1:]))
            print(number + 1, side, results[side][-1], file=sys.stderr)
    speed = {s: statistics.median(m["tokens_per_s"] for m in ms) for s, ms in results.items()}
    peak = {s: statistics.median(m["peak_bytes"] for m in ms) for s, ms in results.items()}
    print("| side | tokens/s | peak memory |\n| --- | --- | --- |")
    for side in SIDES:
        print(f"| {side} | {speed[side]:,.0f} | {peak[side] / 1e9:.2f} GB |")
    print(f"\n{speed['llmctl'] / speed['trl']:.2f} times the speed")


if __name__ == "__main__":
    main()
