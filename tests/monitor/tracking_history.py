"""A tracking store with runs: cleaning, two fine-tunings, evaluation, serving and a failure."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmctl.monitor import Tracker, open_tracker
from llmctl.types import (
    TAG_KEY_METRIC,
    DatasetRef,
    RequestTrace,
    RunKind,
    RunStart,
    RunStatus,
)

RAW = DatasetRef("客服.jsonl", "/data/客服.jsonl", "aa" * 32, 1200, "sharegpt")
CLEAN = DatasetRef("客服.clean.jsonl", "/data/客服.clean.jsonl", "bb" * 32, 1100, "messages")
QUESTIONS = DatasetRef("ceval", "ceval/ceval-exam", "cc" * 32, 1346)


@dataclass(frozen=True, slots=True)
class TrackingHistory:
    """The folder of llmctl, and the ids of its runs by short names."""

    home: Path
    empty: Path
    """The store before the first run."""
    ids: dict[str, str]
    adapter: Path

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LLMCTL_HOME", str(self.home))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def empty_home(
    tracking_history: TrackingHistory, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """Create a folder of llmctl with an empty store, and use it."""
    folder.mkdir()
    shutil.copy(tracking_history.empty, folder / "mlflow.db")
    monkeypatch.setenv("LLMCTL_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def start_tracker(kind: RunKind, model: str = "smollm2-135m", **fields: object) -> Tracker:
    def warn(text: str) -> None:
        raise AssertionError(text)

    return open_tracker(RunStart(kind, model, **fields), warn=warn)  # type: ignore[arg-type]


def end_tracker(tracker: Tracker, status: RunStatus = "finished", error: str = "") -> str:
    run_id = tracker.run_id
    assert run_id is not None
    tracker.end(status, error)
    return run_id


def create_history(folder: Path, empty: Path) -> TrackingHistory:
    """Write the runs to a new folder, as the commands do."""
    home = folder / "home"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("LLMCTL_HOME", str(home))
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        home.mkdir()
        shutil.copy(empty, home / "mlflow.db")
        ids, adapter = _history(folder)
    return TrackingHistory(home, empty, ids, adapter)


def _history(folder: Path) -> tuple[dict[str, str], Path]:
    ids = {}
    clean = start_tracker("clean", "", name="清洗-客服")
    clean.log_dataset(RAW, "source")
    clean.log_dataset(CLEAN, "output")
    clean.log_text("# 1,100 rows\n", "reports/report.md")
    ids["clean"] = end_tracker(clean)

    adapter = folder / "adapter"
    adapter.mkdir()
    for name, rate in (("slow", 1e-5), ("fast", 1e-4)):
        model_id = _finetune(ids, name, rate, adapter)
    measured = start_tracker("eval", params={"suite": "ceval"}, tags={TAG_KEY_METRIC: "eval/ceval"})
    measured.use_model(model_id)
    measured.log_dataset(QUESTIONS, "evaluation")
    measured.log_metrics({"eval/ceval": 0.31}, model_id=model_id)
    ids["eval"] = end_tracker(measured)

    serve = start_tracker("serve")
    serve.use_model(model_id)
    for number in range(3):
        serve.log_trace(RequestTrace(f"chatcmpl-{number}", 1_800_000_000.0, 1.0, model_id=model_id))
    ids["serve"] = end_tracker(serve)

    broken = start_tracker("finetune", "/models/我的模型", name="broken [bold]run[/x]")
    for step, value in enumerate((2.0, math.nan, math.inf)):
        broken.log_metrics({"train/loss": value}, step=step)
    ids["broken"] = end_tracker(broken, "failed", "the loss is NaN")
    return ids, adapter


def _finetune(ids: dict[str, str], name: str, rate: float, adapter: Path) -> str:
    params = {"lr": rate, "lora": {"rank": 16}, "batch": 8}
    finetune = start_tracker("finetune", name=f"微调-{name}", params=params)
    finetune.log_dataset(CLEAN, "training")
    for step in range(0, 50, 5):
        loss = 1 + math.exp(-step * rate * 1000)
        finetune.log_metrics({"train/loss": loss, "train/learning_rate": rate}, step=step)
    finetune.log_metrics({"eval/loss": 1.5 - 1000 * rate}, step=45)
    finetune.log_text(f"lr: {rate}\n", "config.yaml")
    model_id = finetune.log_model(f"adapter-{name}", adapter)
    assert model_id is not None
    ids[name] = end_tracker(finetune)
    return model_id
