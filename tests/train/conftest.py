"""What the tests of training share: a store of their own, a tiny model, and rows to learn."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.settings import Setting
from llmctl.services.finetuning.run import FinetuneRequest, finetune
from llmctl.types import TrainEval, TrainEvent, TrainNote, TrainPlan, TrainReport, TrainStep


class EventRecorder:
    """Keeps what a training tells."""

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


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep prepared rows and runs out of the user's store."""
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "store"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """48 short conversations of different lengths."""
    file = tmp_path / "rows.jsonl"
    with file.open("w", encoding="utf-8") as out:
        for number in range(48):
            question = f"Count to {number % 9}{', please' * (number % 4)}."
            answer = " ".join(map(str, range(number % 9 + 1)))
            turns = [("user", question), ("assistant", answer)]
            out.write(json.dumps({"messages": [{"role": r, "content": c} for r, c in turns]}))
            out.write("\n")
    return file


RunFinetune = Callable[..., TrainReport]


@pytest.fixture
def teach(tiny_folder: Path, rows: Path, tmp_path: Path) -> RunFinetune:
    """Return a function that runs `llmctl finetune` in this process, on the tiny model."""

    def run(
        watched: EventRecorder | None = None,
        *,
        output: Path = tmp_path / "out",
        request: dict[str, Any] | None = None,
        **settings: object,
    ) -> TrainReport:
        begins = not (request or {}).get("resume") and not (request or {}).get("from_run")
        small: dict[str, object] = {
            "model": str(tiny_folder),
            "data": str(rows),
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
        chosen = {**(small if begins else {}), "output": str(output), **settings}
        report = finetune(
            FinetuneRequest(
                options={name: Setting(value, "option") for name, value in chosen.items()},
                **({"track": False} | (request or {})),
            ),
            watched or EventRecorder(),
        )
        assert isinstance(report, TrainReport)
        return report

    return run
