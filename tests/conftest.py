"""What many tests share: no network by accident, and models loaded once per run."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Before anything imports the hub's library: a test that needs a hub says so itself.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A shell starts background commands with SIGINT ignored, and the processes of tests inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Workers of pytest-xdist share the cores: more threads than cores slow all of them down.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from llmctl.types import ModelSpec

if TYPE_CHECKING:  # torch is imported by the tests that need it
    from llmctl.engine.hf_runner import HFRunner
    from tests.monitor.tracking_history import TrackingHistory


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Iterator["HFRunner"]:
    """The tiny model in float32, for numbers that compare exactly."""
    from llmctl.engine.hf_runner import HFRunner

    with HFRunner(ModelSpec(str(tiny_folder), dtype="float32", device="cpu")) as engine:
        engine.load()
        yield engine


@pytest.fixture(scope="session")
def smollm() -> Iterator["HFRunner"]:
    """The real default model, fetched once through the catalogue into the user's own store."""
    from llmctl.engine.hf_runner import HFRunner

    with HFRunner(ModelSpec("smollm2-135m", dtype="float32", device="cpu")) as engine:
        engine.load()
        yield engine


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tracking store without runs, to be copied; made once for all workers, in seconds."""
    from llmctl.monitor.store import create_sqlite_store
    from llmctl.types import ignore_progress

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    file = shared / "empty-store" / "mlflow.db"
    create_sqlite_store(file, ignore_progress)  # returns at once if another worker has made it
    return file


@pytest.fixture
def own_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home folder of llmctl for one test; for a slow one, with an empty tracking store."""
    home = tmp_path / "store"
    home.mkdir()
    monkeypatch.setenv("LLMCTL_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if request.node.get_closest_marker("slow"):
        shutil.copy(request.getfixturevalue("empty_store"), home)


@pytest.fixture(scope="session")
def tracking_history(
    tmp_path_factory: pytest.TempPathFactory, empty_store: Path
) -> "TrackingHistory":
    """A tracking store with the history of an adapter in it; to be read, never written."""
    from tests.monitor.tracking_history import create_history

    return create_history(tmp_path_factory.mktemp("remembered"), empty_store)
