"""Fixtures of the training tests: rows, finished runs, and stores of their own."""

import gc
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from llmctl.config.settings import Setting
from llmctl.services.finetuning.run import FinetuneRequest, finetune
from llmctl.types import TrainEval, TrainEvent, TrainNote, TrainPlan, TrainReport, TrainStep

SMALL: dict[str, object] = {
    "dtype": "float32",
    "device": "cpu",
    "batch_size": 8,
    "micro_batch_size": 4,
    "rank": 4,
    "learning_rate": 1e-3,
    "eval_fraction": 0.2,
    "epochs": 2,
    "max_steps": 10,
    "eval_every": 4,
    "samples": 1,
    "sample_tokens": 4,
}
"""Settings of a short run."""
CONSTANT: dict[str, object] = {"scheduler": "constant"}
"""With it the losses of a step do not depend on the number of steps."""
DROPOUT: dict[str, object] = {"dropout": 0.1, "micro_batch_size": 2}
FAST_LEARNING: dict[str, object] = {"learning_rate": 4e-3, "max_steps": 6, "eval_every": 6}


class EventRecorder:
    """A listener that keeps the events of a training."""

    def __init__(self) -> None:
        self.events: list[TrainEvent] = []
        self.on_event: Callable[[TrainEvent], None] = lambda _: None

    def __call__(self, event: TrainEvent) -> None:
        self.events.append(event)
        self.on_event(event)

    @property
    def plan(self) -> TrainPlan:
        return next(event for event in self.events if isinstance(event, TrainPlan))

    @property
    def losses(self) -> dict[int, float]:
        return {event.step: event.loss for event in self.events if isinstance(event, TrainStep)}

    @property
    def evals(self) -> dict[int, float]:
        return {event.step: event.loss for event in self.events if isinstance(event, TrainEval)}

    @property
    def notes(self) -> str:
        return "\n".join(event.text for event in self.events if isinstance(event, TrainNote))


def raise_signal_at(step: int, number: signal.Signals) -> EventRecorder:
    """Return a recorder that raises a signal after a step."""
    recorder = EventRecorder()

    def stop(event: TrainEvent) -> None:
        if isinstance(event, TrainStep) and event.step == step:
            signal.raise_signal(number)

    recorder.on_event = stop
    return recorder


@dataclass(frozen=True)
class FinishedRun:
    """A finished training. Its folder is shared by tests: copy it to change it."""

    folder: Path
    report: TrainReport
    recorder: EventRecorder


RunFinetune = Callable[..., TrainReport]
PlanFinetune = Callable[..., TrainPlan]


def make_run_finetune(model: Path, rows: Path, output: Path) -> RunFinetune:
    """Return a function that runs `llmctl finetune` in this process, with the settings `SMALL`."""

    def run(
        recorder: EventRecorder | None = None,
        *,
        output: Path = output,
        request: dict[str, Any] | None = None,
        **settings: object,
    ) -> TrainReport:
        has_settings = (request or {}).keys() & {"resume", "from_run"}
        defaults = {} if has_settings else {"model": str(model), "data": str(rows), **SMALL}
        chosen = {**defaults, "output": str(output), **settings}
        report = finetune(
            FinetuneRequest(
                options={name: Setting(value, "option") for name, value in chosen.items()},
                **({"track": False} | (request or {})),
            ),
            recorder or EventRecorder(),
        )
        assert isinstance(report, TrainReport)
        return report

    return run


def write_rows(file: Path) -> Path:
    """Write 48 short conversations of different lengths."""
    with file.open("w", encoding="utf-8") as out:
        for number in range(48):
            question = f"Count to {number % 9}{', please' * (number % 4)}."
            answer = " ".join(map(str, range(number % 9 + 1)))
            turns = [("user", question), ("assistant", answer)]
            out.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}))
            out.write("\n")
    return file


@pytest.fixture(scope="session", autouse=True)
def fast_garbage_collection() -> None:
    """Leave the imported libraries out of the collections that every training runs."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tokenized rows and runs out of the user's store."""
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl")


@pytest.fixture
def run_finetune(tiny_folder: Path, rows: Path, tmp_path: Path) -> RunFinetune:
    return make_run_finetune(tiny_folder, rows, tmp_path / "out")


@pytest.fixture
def plan_finetune(run_finetune: RunFinetune) -> PlanFinetune:
    """Return a function that makes the plan of a run, and stops before its weights are loaded."""

    class Planned(BaseException):
        pass

    def stop(event: TrainEvent) -> None:
        if isinstance(event, TrainPlan):
            raise Planned

    def plan(**arguments: Any) -> TrainPlan:
        recorder = EventRecorder()
        recorder.on_event = stop
        with pytest.raises(Planned):
            run_finetune(recorder, **arguments)
        return recorder.plan

    return plan


@pytest.fixture(scope="session")
def finish_run(
    tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., FinishedRun]:
    """Return a function that runs a training in a folder of its own."""

    def run(**settings: object) -> FinishedRun:
        base, recorder = tmp_path_factory.mktemp("finished"), EventRecorder()
        start = make_run_finetune(tiny_folder, write_rows(base / "rows.jsonl"), base / "out")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLMCTL_HOME", str(base / "store"))
            return FinishedRun(base / "out", start(recorder, **settings), recorder)

    return run


@pytest.fixture(scope="session")
def finished_run(finish_run: Callable[..., FinishedRun]) -> FinishedRun:
    """A run with the settings `SMALL` and `CONSTANT`."""
    return finish_run(**CONSTANT)


@pytest.fixture(scope="session")
def full_run(finish_run: Callable[..., FinishedRun]) -> FinishedRun:
    """A run of method `full`, with a sample reply."""
    return finish_run(
        method="full", **FAST_LEARNING, sample_prompts=["Count to 3."], dtype="bfloat16"
    )


@pytest.fixture(scope="session")
def dropout_run(finish_run: Callable[..., FinishedRun]) -> FinishedRun:
    """A run with the settings `SMALL` and `DROPOUT`, so with a cosine learning rate."""
    return finish_run(**DROPOUT)


OnForward = Callable[[Callable[[int], torch.Tensor | float]], None]


@pytest.fixture
def on_forward(monkeypatch: pytest.MonkeyPatch) -> OnForward:
    """Return a function that changes what the tiny model computes in training.

    Its argument is called with the rows of each batch of a training step; it raises, or returns a
    factor for the model's output.
    """
    forward = LlamaForCausalLM.forward

    def install(hook: Callable[[int], torch.Tensor | float]) -> None:
        def hooked(self: Any, input_ids: Any = None, **inputs: Any) -> Any:
            factor = hook(len(input_ids)) if self.training and torch.is_grad_enabled() else 1.0
            output = forward(self, input_ids=input_ids, **inputs)
            output.logits = output.logits * factor
            return output

        monkeypatch.setattr(LlamaForCausalLM, "forward", hooked)

    return install
