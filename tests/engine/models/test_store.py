"""How models get into the store and out of it."""

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
    with store.exclusive_lock(name), store.staging_folder(name) as workshop:
        folder = write_files(workshop / "model", files)
        store.Manifest.of(folder, name=name, **ORIGIN).write(folder)
        return store.install(folder, name)


def test_what_is_built_aside_is_no_model_until_installed() -> None:
    with store.staging_folder("m") as workshop:
        write_files(workshop, model_files())
        assert store.names() == []
    assert not workshop.exists()


def test_an_installed_model_is_found_with_its_manifest() -> None:
    folder = install("m", model_files())
    assert store.find("m") == folder
    manifest = store.Manifest.read(folder)
    assert manifest is not None
    assert (manifest.name, manifest.repo, manifest.revision) == ("m", "owner/name", "x==1")
    assert manifest.files == {name: len(content) for name, content in model_files().items()}
    assert manifest.bytes == sum(manifest.files.values())
    assert manifest.created.endswith("+00:00")


def test_a_model_whose_file_was_cut_short_is_damaged() -> None:
    folder = install("m", model_files())
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"damaged: model\.safetensors"):
        store.find("m")


def test_installing_again_replaces_the_old_model_whole() -> None:
    install("m", model_files() | {"old.json": b"{}"})
    folder = install("m", model_files())
    assert not (folder / "old.json").exists()
    assert list((folder.parent / ".aside").iterdir()) == []


@pytest.mark.parametrize("name", ["..", ".", "../models/m", "/etc", ""])
def test_no_name_leads_out_of_the_store(name: str) -> None:
    install("m", model_files())
    with pytest.raises(ModelNotFoundError):
        store.find(name)
    with pytest.raises(ModelNotFoundError):
        store.remove(name)


def test_removing_frees_what_the_model_took() -> None:
    folder = install("m", model_files())
    size = sum(f.stat().st_size for f in folder.iterdir())
    assert store.remove("m") == size
    assert store.names() == []
    assert not folder.exists()


def test_removing_a_link_leaves_what_it_points_to(home: Path) -> None:
    target = write_files(home / "elsewhere", model_files())
    store.models_folder().mkdir(parents=True)
    (store.models_folder() / "linked").symlink_to(target)
    assert store.find("linked")
    assert store.remove("linked") == 0
    assert store.names() == []
    assert (target / "config.json").exists()


def test_a_link_inside_a_removed_model_is_not_followed(home: Path) -> None:
    target = write_files(home / "elsewhere", {"precious": b"1"})
    folder = install("m", model_files())
    (folder / "sub").symlink_to(target)
    store.remove("m")
    assert (target / "precious").exists()


def test_sweeping_takes_what_the_dead_left_and_spares_the_living() -> None:
    dead = store.models_folder() / ".aside" / "dead" / "x"
    write_files(dead, model_files())
    alive = threading.Event()
    done = threading.Event()

    def build() -> None:
        with store.exclusive_lock("alive"), store.staging_folder("alive") as workshop:
            write_files(workshop, model_files())
            alive.set()
            done.wait(10)
            assert (workshop / "config.json").exists()

    thread = threading.Thread(target=build)
    thread.start()
    assert alive.wait(10)
    store.clean_staging()
    aside = store.models_folder() / ".aside"
    assert [path.name for path in aside.iterdir()] == ["alive"]
    assert list(aside.rglob("config.json"))
    done.set()
    thread.join()


def test_the_second_to_want_a_name_is_told_that_it_waits() -> None:
    stages: list[str] = []
    held, told = threading.Event(), threading.Event()

    def first() -> None:
        with store.exclusive_lock("m"):
            held.set()
            told.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    assert held.wait(10)

    def note(progress: Progress) -> None:
        stages.append(progress.stage)
        told.set()

    with store.exclusive_lock("m", note):
        assert stages == ["waiting for another llmctl that is fetching m"]
    thread.join()
