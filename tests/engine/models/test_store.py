"""Tests of the model store."""

import threading
from pathlib import Path

import pytest

from llmctl.engine.models import store
from llmctl.errors import ModelNotFoundError
from llmctl.types import Progress
from tests.engine.models.fake_sources import isolate, model_files, write_files

ORIGIN = {
    "repo": "owner/name",
    "source": "package-index",
    "revision": "x==1",
    "sha256": "0" * 64,
    "licence": "MIT",
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return isolate(tmp_path, monkeypatch)


def install(name: str, files: dict[str, bytes]) -> Path:
    with store.exclusive_lock(name), store.staging_folder(name) as staging:
        folder = write_files(staging / "model", files)
        store.Manifest.of(folder, name=name, **ORIGIN).write(folder)
        return store.install(folder, name)


def test_a_staging_folder_is_not_listed_and_is_deleted() -> None:
    with store.staging_folder("m") as staging:
        write_files(staging, model_files())
        assert store.names() == []
    assert not staging.exists()


def test_an_installed_model_is_found_with_its_manifest() -> None:
    folder = install("m", model_files())
    assert store.find("m") == folder
    manifest = store.Manifest.read(folder)
    assert manifest is not None
    assert (manifest.name, manifest.repo, manifest.revision) == ("m", "owner/name", "x==1")
    assert manifest.files == {name: len(content) for name, content in model_files().items()}
    assert manifest.bytes == sum(manifest.files.values())
    assert manifest.created.endswith("+00:00")


def test_a_truncated_file_makes_a_model_damaged() -> None:
    folder = install("m", model_files())
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"damaged: model\.safetensors"):
        store.find("m")


def test_installing_again_replaces_the_model() -> None:
    install("m", model_files() | {"old.json": b"{}"})
    folder = install("m", model_files())
    assert not (folder / "old.json").exists()
    assert list((folder.parent / ".aside").iterdir()) == []


@pytest.mark.parametrize("name", ["..", ".", "../models/m", "/etc", ""])
def test_a_name_cannot_leave_the_store(name: str) -> None:
    install("m", model_files())
    with pytest.raises(ModelNotFoundError):
        store.find(name)
    with pytest.raises(ModelNotFoundError):
        store.remove(name)


def test_remove_returns_the_freed_bytes() -> None:
    folder = install("m", model_files())
    size = sum(f.stat().st_size for f in folder.iterdir())
    assert store.remove("m") == size
    assert store.names() == []
    assert not folder.exists()


def test_remove_of_a_link_keeps_its_target(home: Path) -> None:
    target = write_files(home / "elsewhere", model_files())
    store.models_folder().mkdir(parents=True)
    (store.models_folder() / "linked").symlink_to(target)
    assert store.find("linked")
    assert store.remove("linked") == 0
    assert store.names() == []
    assert (target / "config.json").exists()


def test_remove_does_not_follow_links(home: Path) -> None:
    target = write_files(home / "elsewhere", {"precious": b"1"})
    folder = install("m", model_files())
    (folder / "sub").symlink_to(target)
    store.remove("m")
    assert (target / "precious").exists()


def test_clean_staging_keeps_folders_in_use() -> None:
    abandoned = store.models_folder() / ".aside" / "abandoned" / "x"
    write_files(abandoned, model_files())
    started = threading.Event()
    done = threading.Event()

    def build() -> None:
        with store.exclusive_lock("active"), store.staging_folder("active") as staging:
            write_files(staging, model_files())
            started.set()
            done.wait(10)
            assert (staging / "config.json").exists()

    thread = threading.Thread(target=build)
    thread.start()
    assert started.wait(10)
    store.clean_staging()
    root = store.models_folder() / ".aside"
    assert [path.name for path in root.iterdir()] == ["active"]
    assert list(root.rglob("config.json"))
    done.set()
    thread.join()


def test_waiting_for_a_lock_is_reported() -> None:
    stages: list[str] = []
    held, reported = threading.Event(), threading.Event()

    def first() -> None:
        with store.exclusive_lock("m"):
            held.set()
            reported.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(10)

    def report(progress: Progress) -> None:
        stages.append(progress.stage)
        reported.set()

    with store.exclusive_lock("m", report):
        assert stages == ["waiting for another process that installs m"]
    thread.join()
