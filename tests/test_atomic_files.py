"""Atomic writing of files and folders."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmctl.atomic_files import atomic_folder, atomic_path, install_folder, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(file: Path, error: type[BaseException]) -> None:
    file.write_text("half")
    raise error


def fill(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "part").write_text(text)
    return folder


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    for text in ("one\n", "二\n"):
        write_atomically(file, text)
        assert file.read_text(encoding="utf-8") == text
    assert names(tmp_path) == ["f.json"]


def test_bytes_of_a_path_that_are_not_utf8_are_escaped_and_read_back(tmp_path: Path) -> None:
    path = os.fsdecode(b"caf\xe9")
    write_atomically(tmp_path / "a.json", json.dumps({"path": path}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": path}


def test_the_mode_of_a_file_is_restricted_from_the_beginning(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "secret", mode=0o600) as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600
        temporary.write_text("key")
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_keeps_the_old_file_and_leaves_no_temporary_file(
    tmp_path: Path, error: type[BaseException]
) -> None:
    file = tmp_path / "f"
    file.write_text("old")
    with pytest.raises(error), atomic_path(file) as temporary:
        write_half(temporary, error)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["f"]


def test_a_name_of_maximum_length_can_be_written(tmp_path: Path) -> None:
    file = tmp_path / ("名" * 85)  # 255 bytes
    write_atomically(file, "text")
    assert names(tmp_path) == [file.name]


def test_leftovers_of_killed_processes_are_deleted_after_a_day(tmp_path: Path) -> None:
    stale, recent, other = (
        tmp_path / name for name in (".f.01234567.tmp", ".f.89abcdef.tmp", ".g.01234567.tmp")
    )
    for file in (stale, recent, other):
        file.write_text("half")
    two_days_ago = time.time() - 2 * 86400
    for file in (stale, other):
        os.utime(file, (two_days_ago, two_days_ago))
    write_atomically(tmp_path / "f", "whole")
    assert names(tmp_path) == [".f.89abcdef.tmp", ".g.01234567.tmp", "f"]


def test_a_folder_appears_complete_and_replaces_an_old_one(tmp_path: Path) -> None:
    final = tmp_path / "model"
    for text in ("one", "two"):
        with atomic_folder(final) as folder:
            assert folder.name == final.name
            (folder / "part").write_text(text)
            assert not final.exists() or (final / "part").read_text() == "one"
        assert (final / "part").read_text() == text
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_keeps_the_old_folder_and_leaves_no_staging_folder(
    tmp_path: Path, error: type[BaseException]
) -> None:
    final = fill(tmp_path / "model", "old")
    with pytest.raises(error), atomic_folder(final) as folder:
        write_half(folder / "part", error)
    assert (final / "part").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_the_old_folder_is_moved_back_if_the_new_one_cannot_be_renamed(tmp_path: Path) -> None:
    final = fill(tmp_path / "model", "old")
    with pytest.raises(FileNotFoundError):
        install_folder(tmp_path / "missing", final)
    assert (final / "part").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_link_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    target = fill(tmp_path / "target", "theirs")
    final = tmp_path / "model"
    final.symlink_to(target)
    install_folder(fill(tmp_path / "built", "ours"), final)
    assert not final.is_symlink()
    assert (final / "part").read_text() == "ours"
    assert (target / "part").read_text() == "theirs"


def test_a_given_staging_folder_is_used_and_kept(tmp_path: Path) -> None:
    staging = tmp_path / ".staging"
    staging.mkdir()
    with atomic_folder(tmp_path / "model", staging=staging) as folder:
        assert folder.parent == staging
    assert names(tmp_path) == [".staging", "model"]
    assert names(staging) == []


@pytest.mark.slow
def test_ctrl_c_while_a_large_file_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "from llmctl.atomic_files import atomic_path\n"
        # A shell starts commands in the background with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with atomic_path(Path(sys.argv[1])) as temporary, temporary.open('w') as file:\n"
        "    print(flush=True)\n"
        "    for _ in range(30_000):\n"
        "        file.write('x')\n"
        "        time.sleep(0.001)\n"
    )
    file = tmp_path / "f"
    file.write_text("old")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.wait(30) != 0
    assert file.read_text() == "old"
    assert names(tmp_path) == ["f"]
