"""A tracking store for each test: created once, because that takes seconds, and copied."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmctl.monitor import Tracker, open_tracker
from llmctl.monitor.store import TrackingStore, open_store, store_uri
from llmctl.types import RunKind, RunStart

Opener = Callable[..., Tracker]


@pytest.fixture
def home(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """llmctl's folder, with an empty tracking store."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copy(empty_store, folder)
    monkeypatch.setenv("LLMCTL_HOME", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    return folder


@pytest.fixture
def store(home: Path) -> TrackingStore:
    """The store of `home`, through MLflow's client."""
    assert home.is_dir()
    return open_store(store_uri())


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def begin(home: Path, warnings: list[str]) -> Opener:
    """A function that opens a tracker on the store of `home`."""
    assert home.is_dir()

    def opener(
        kind: RunKind = "finetune",
        model: str = "smollm2-135m",
        uri: str | None = None,
        **fields: object,
    ) -> Tracker:
        start = RunStart(kind, model, **fields)  # type: ignore[arg-type]
        return open_tracker(start, tracking_uri=uri, warn=warnings.append)

    return opener
