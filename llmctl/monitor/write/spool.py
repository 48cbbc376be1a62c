"""What waits on the disk while the store cannot take it, and outlives the process if it must.

One file of JSON lines per run being written, in `tracking/` of llmctl's folder: first who writes
which run to which store, then the rows. Beside it a folder of the same name holds copies of the
files that were logged. A run that ends with everything delivered leaves neither.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from llmctl.config import store_home
from llmctl.monitor.write.events import Row, decode, encode
from llmctl.monitor.write.liveness import is_alive, process_identity
from llmctl.types import RunStart

_START_FIELDS: Final = ("kind", "model", "parent_run_id", "resume_run_id")


@dataclass(frozen=True, slots=True)
class SpoolContents:
    """What a spool holds."""

    start: RunStart
    name: str
    started_ms: int
    process: str
    """Who wrote it, as `liveness.this_process` says it."""
    run_id: str | None
    """None: the run itself could not be made yet."""
    rows: tuple[Row, ...]


def spool_folder() -> Path:
    """Return the folder of all spools. It may not exist yet."""
    return store_home() / "tracking"


class Spool:
    """The waiting rows of one run. Every method that writes raises `OSError` where it cannot."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.files_folder = file.with_suffix(".files")

    @classmethod
    def create(cls, uri: str, start: RunStart, name: str, started_ms: int) -> Self:
        """Make the spool of a new run, which is on the disk from the first moment."""
        # A hash, because an address may hold a password.
        spool = cls(spool_folder() / f"{_store_mark(uri)}-{secrets.token_hex(4)}.jsonl")
        spool.file.parent.mkdir(parents=True, exist_ok=True)
        head = {
            "process": process_identity(),
            # Parameters and tags are rows of their own.
            "start": {field: getattr(start, field) for field in _START_FIELDS},
            "name": name,
            "started_ms": started_ms,
        }
        spool.file.write_text(json.dumps(head, ensure_ascii=False) + "\n", encoding="utf-8")
        _ours.add(spool.file)
        return spool

    def append(self, rows: Iterable[Row]) -> None:
        """Add rows, so that they survive this process."""
        self._write("a", "".join(f"{encode(row)}\n" for row in rows))

    def know_run(self, run_id: str) -> None:
        """Note which run the rows belong to, once the store has it."""
        self._write("a", json.dumps({"run_id": run_id}) + "\n")

    def replace(self, run_id: str | None, rows: Iterable[Row]) -> None:
        """Hold these rows and no others."""
        with self.file.open(encoding="utf-8") as old:
            head = old.readline()
        known = "" if run_id is None else json.dumps({"run_id": run_id}) + "\n"
        text = head + known + "".join(f"{encode(row)}\n" for row in rows)
        aside = self.file.with_suffix(".new")
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, self.file)

    def keep_copy(self, path: Path) -> Path:
        """Copy a file or folder as it is now; return the copy."""
        target = self.place(path.name)
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
        return target

    def place(self, name: str) -> Path:
        """Return the path for a file of this name; no other has it."""
        folder = self.files_folder / secrets.token_hex(4)
        folder.mkdir(parents=True)
        return folder / name

    def read(self) -> SpoolContents:
        """Return all that waits. A line cut off by a crash is left out.

        Raises:
            ValueError: it is no spool.
        """
        head, *lines = self.file.read_text(encoding="utf-8").split("\n")
        try:
            fields: dict[str, Any] = json.loads(head)
            run_id, rows = None, []
            for line in lines:
                if line.startswith("{"):
                    with suppress(ValueError):
                        run_id = json.loads(line)["run_id"]
                elif line:
                    with suppress(ValueError):
                        rows.append(decode(line))
            return SpoolContents(
                RunStart(**fields["start"]),
                fields["name"],
                fields["started_ms"],
                fields["process"],
                run_id,
                tuple(rows),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{self.file} is no spool") from error

    def remove(self) -> None:
        """Delete it and the copies beside it."""
        shutil.rmtree(self.files_folder, ignore_errors=True)
        with suppress(OSError):
            self.file.unlink(missing_ok=True)
        _ours.discard(self.file)

    def touch(self) -> None:
        """Show that its writer lives, to machines that cannot see the process."""
        with suppress(OSError):
            self.file.touch()

    def abandon(self) -> None:
        """Leave it to whoever opens the store next."""
        _ours.discard(self.file)

    def _write(self, mode: str, text: str) -> None:
        with self.file.open(mode, encoding="utf-8") as file:
            file.write(text)


_ours: set[Path] = set()
"""Spools that this process still writes."""


def orphaned_spools(uri: str) -> list[Spool]:
    """Return the spools for this store whose writers are gone, oldest first."""
    found = []
    for file in spool_folder().glob(f"{_store_mark(uri)}-*.jsonl"):
        if file in _ours:
            continue
        with suppress(OSError, ValueError):
            changed = file.stat().st_mtime
            with file.open(encoding="utf-8") as opened:
                process = str(json.loads(opened.readline()).get("process", ""))
            if process == process_identity() or not is_alive(process, changed):
                found.append((changed, Spool(file)))
    return [spool for _, spool in sorted(found, key=lambda pair: pair[0])]


def _store_mark(uri: str) -> str:
    return hashlib.sha256(uri.encode()).hexdigest()[:12]
