"""Tests of the hub as a source, against a local server with the hub's protocol."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmctl.engine.models.hub import Hub
from llmctl.engine.models.resolve import resolve_model
from llmctl.errors import ModelLoadError, ModelNotFoundError, UnsafeModelError
from llmctl.types import Progress, ignore_progress
from tests.engine.models.fake_sources import (
    COMMIT,
    FakeHub,
    isolate,
    model_files,
    safetensors_bytes,
    write_cached,
)

REPO = "owner/name"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return isolate(tmp_path, monkeypatch)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub(REPO, model_files()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        yield server
        server.shutdown()


@pytest.fixture
def black_hole(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield endpoint


def test_a_download_is_silent_and_used_from_the_shared_cache(hub: FakeHub, home: Path) -> None:
    found = resolve_model(REPO)
    assert (found.model_id, found.source, found.revision) == (REPO, "hub", COMMIT)
    assert found.path == home / f"hf/hub/models--owner--name/snapshots/{COMMIT}"
    assert {f.name for f in found.path.iterdir()} == set(model_files())
    hub.shutdown()
    assert resolve_model(REPO) == found


def test_only_required_files_are_downloaded_with_all_shards(hub: FakeHub) -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    required = model_files(shards[0]) | {
        shards[1]: safetensors_bytes(b=(2, 2)),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "modeling_name.py": b"#",
    }
    hub.files = {
        **required,
        "README.md": b"# name",
        "pytorch_model.bin": b"pickle",
        "consolidated.safetensors": b"again",
        "original/consolidated.pth": b"and again",
        "onnx/model.onnx": b"and again",
    }
    folder = resolve_model(REPO).path
    assert set(hub.downloaded) == {f.name for f in folder.iterdir()} == set(required)


def test_progress_counts_bytes_up_to_the_total(hub: FakeHub) -> None:
    hub.files = model_files() | {"model.safetensors": safetensors_bytes(up=(128, 256))}
    hub.chunk_delay = 0.01
    reports: list[Progress] = []
    resolve_model(REPO, progress=reports.append)
    counted = [report for report in reports if report.unit == "B"]
    total = sum(len(content) for content in hub.files.values())
    assert counted
    assert {report.total for report in counted} == {total}
    done = [report.done or 0 for report in counted]
    assert done == sorted(done)
    assert all(value <= total for value in done)


def test_ctrl_c_stops_a_download_and_the_next_call_completes_it(hub: FakeHub) -> None:
    hub.files = model_files() | {"model.safetensors": safetensors_bytes(up=(1024, 1024))}
    hub.chunk_delay = 0.01  # 2 MB, 1 KB at a time: 20 s

    def interrupt(report: Progress) -> None:
        if report.unit == "B" and report.done:
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        resolve_model(REPO, progress=interrupt)
    assert time.monotonic() - began < 10
    hub.chunk_delay = 0
    assert resolve_model(REPO).path.is_dir()


def test_an_incomplete_snapshot_is_completed(hub: FakeHub, home: Path) -> None:
    small = {name: content for name, content in model_files().items() if "model." not in name}
    write_cached(home / "hf", REPO, small)
    resolve_model(REPO)
    assert hub.downloaded == ["model.safetensors"]


def test_a_missing_repository_is_reported(hub: FakeHub) -> None:
    assert hub.endpoint
    with pytest.raises(ModelNotFoundError, match="owner/other does not exist, or it is private"):
        resolve_model("owner/other")


def test_a_missing_revision_is_reported(hub: FakeHub) -> None:
    assert hub.endpoint
    with pytest.raises(ModelNotFoundError, match="owner/name has no revision v9"):
        resolve_model(f"{REPO}@v9")


@pytest.mark.parametrize(("status", "code"), [(401, "GatedRepo"), (403, "GatedRepo"), (403, None)])
def test_a_gated_repository_is_reported_with_a_hint(
    hub: FakeHub, status: int, code: str | None
) -> None:
    hub.status, hub.error_code = status, code
    with pytest.raises(ModelNotFoundError, match="is gated") as caught:
        resolve_model(REPO)
    assert "hf auth login" in caught.value.hint
    assert f"{hub.endpoint}/{REPO}" in caught.value.hint


def test_an_http_error_is_reported_by_status(hub: FakeHub) -> None:
    hub.status = 500
    with pytest.raises(ModelNotFoundError, match="it answered with status 500"):
        resolve_model(REPO)


def test_pickle_weights_are_rejected_unless_allowed(hub: FakeHub) -> None:
    hub.files = model_files("pytorch_model.bin")
    with pytest.raises(UnsafeModelError, match=r"owner/name .* pytorch_model\.bin"):
        resolve_model(REPO)
    assert hub.downloaded == []
    assert (resolve_model(REPO, allow_pickle=True).path / "pytorch_model.bin").exists()
    with pytest.raises(UnsafeModelError):
        resolve_model(REPO)


def test_an_adapter_repository_is_rejected(hub: FakeHub) -> None:
    hub.files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    with pytest.raises(ModelLoadError, match="is an adapter, not a model"):
        resolve_model(REPO)


def test_a_repository_without_a_tokenizer_is_rejected(hub: FakeHub) -> None:
    files = model_files()
    del files["tokenizer.json"]
    hub.files = files
    with pytest.raises(ModelNotFoundError, match="the repository lacks a tokenizer"):
        resolve_model(REPO)
    assert hub.downloaded == []


def test_a_hub_that_does_not_answer_is_reported_after_the_timeout(
    black_hole: str, home: Path
) -> None:
    assert Hub.from_environment().probe_timeout_s < 5
    hub = Hub(black_hole, home / "hub", offline=False, probe_timeout_s=0.2)
    began = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="cannot be reached"):
        hub.download(REPO, "main", allow_pickle=False, progress=ignore_progress)
    assert time.monotonic() - began < 2


def test_offline_mode_uses_no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="HF_HUB_OFFLINE is set"):
        resolve_model(REPO)
    assert hub.downloaded == []
