"""How fast does `llmctl finetune` teach beside TRL? Tokens per second and peak memory, on a CPU.

Run `pip install trl` and `python tests/benchmarks/finetune_speed.py DATA.jsonl`. Both sides get the
same rows, model, rank, batch, length, dtype, optimizer and number of steps, each in a process of
its own, and take turns; a round is one of each. TRL is run as it comes, which recomputes
activations, and once more without that (`--no-checkpointing`), as it is faster so on a CPU.

Tokens are those of the rows, without padding; the first step of each process is left out.
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


def _report(seconds: list[float], tokens: list[int]) -> None:
    """Print what a child measured; the parent reads the line."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    speed = sum(tokens[1:]) / sum(seconds[1:])
    print(json.dumps({"tokens_per_s": speed, "peak_bytes": peak, "steps": len(seconds)}))


def run_llmctl(args: argparse.Namespace) -> None:
    """Teach with llmctl."""
    import time

    from llmctl.config.settings import Setting
    from llmctl.services.finetuning.run import FinetuneRequest, finetune
    from llmctl.train.trainer import SftTrainer
    from llmctl.types import TrainEvent, TrainStep

    seconds: list[float] = []
    tokens: list[int] = []
    last = [0.0, 0]
    trainers: list[SftTrainer] = []
    begin = SftTrainer.train

    def train(self: SftTrainer, *rest: Any, **named: Any) -> Any:
        trainers.append(self)
        last[0] = time.perf_counter()
        return begin(self, *rest, **named)

    SftTrainer.train = train  # type: ignore[assignment, method-assign]

    def listener(event: TrainEvent) -> None:
        if isinstance(event, TrainStep):
            now, done = time.perf_counter(), trainers[0].tokens
            seconds.append(now - last[0])
            tokens.append(done - int(last[1]))
            last[:] = now, done

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
    _report(seconds, tokens)


def run_trl(args: argparse.Namespace) -> None:
    """Teach with TRL, as its documentation says, on the same rows."""
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

    plain = trainer.training_step

    def training_step(model: Any, inputs: Any, *rest: Any) -> Any:
        tokens.append(int(inputs["attention_mask"].sum()))
        return plain(model, inputs, *rest)

    trainer.training_step = training_step
    trainer.add_callback(Clock())
    trainer.train()
    _report(seconds, tokens)


SIDES: dict[str, Side] = {"llmctl": run_llmctl, "trl": run_trl}


def _child(side: str, words: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, *words, "--side", side, "--folder", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    measured: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured


def main() -> None:
    """Let the sides take turns, and print the medians."""
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
    found: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(args.rounds):
        for side in SIDES if number % 2 == 0 else reversed(SIDES):
            found[side].append(_child(side, sys.argv[1:]))
            print(number + 1, side, found[side][-1], file=sys.stderr)
    speed = {s: statistics.median(m["tokens_per_s"] for m in ms) for s, ms in found.items()}
    peak = {s: statistics.median(m["peak_bytes"] for m in ms) for s, ms in found.items()}
    print("| side | tokens/s | peak memory |\n| --- | --- | --- |")
    for side in SIDES:
        print(f"| {side} | {speed[side]:,.0f} | {peak[side] / 1e9:.2f} GB |")
    print(f"\n{speed['llmctl'] / speed['trl']:.2f} times the speed")


if __name__ == "__main__":
    main()
