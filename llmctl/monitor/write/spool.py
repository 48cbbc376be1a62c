"""Spools: events on the disk that were not delivered yet. They survive the process.

Each run being written has a file of JSON lines in `tracking/` of llmctl's folder: first a header
with the run and its process, then the events. A folder of the same name beside it holds copies of
the logged files. After complete delivery both are deleted.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from llmctl.atomic_files import write_atomically
from llmctl.config import store_home
from llmctl.monitor.write.events import Event, decode, encode
from llmctl.monitor.write.liveness import is_alive, process_identity
from llmctl.monitor.write.sanitize import valid_text
from llmctl.types import RunStart

_START_FIELDS: Final = ("kind", "model", "parent_run_id", "resume_run_id")
_open_files: set[Path] = set()
"""Spool files that this process writes."""


@dataclass(frozen=True, slots=True)
class SpoolContents:
    """The contents of a spool."""

    start: RunStart
    name: str
    started_ms: int
    process: str
    """Identity of the process that wrote it, a value of `liveness.process_identity`."""
    run_id: str | None
    """None: the run could not be created yet."""
    events: tuple[Event, ...]


def spool_folder() -> Path:
    """Return the folder of all spools. It may not exist."""
    return store_home() / "tracking"


class Spool:
    """The spool of one run. Every method that writes may raise `OSError`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.files_folder = file.with_suffix(".files")

    @classmethod
    def create(cls, uri: str, start: RunStart, name: str, started_ms: int) -> Self:
        """Create the spool of a new run."""
        # A hash, because the address may contain a password.
        spool = cls(spool_folder() / f"{_store_digest(uri)}-{secrets.token_hex(4)}.jsonl")
        spool.file.parent.mkdir(parents=True, exist_ok=True)
        header = {
            "process": process_identity(),
            # Parameters and tags are events.
            "start": {field: getattr(start, field) for field in _START_FIELDS},
            "name": name,
            "started_ms": started_ms,
        }
        spool._append(json.dumps(header) + "\n")
        _open_files.add(spool.file)
        return spool

    def append(self, events: Iterable[Event]) -> None:
        """Append events."""
        self._append("".join(f"{encode(event)}\n" for event in events))

    def set_run_id(self, run_id: str) -> None:
        """Append the id of the run, once the store has it."""
        self._append(json.dumps({"run_id": run_id}) + "\n")

    def replace(self, run_id: str | None, events: Iterable[Event]) -> None:
        """Replace all events."""
        with self.file.open(encoding="utf-8") as old:
            header = old.readline()
        known = "" if run_id is None else json.dumps({"run_id": run_id}) + "\n"
        text = header + known + "".join(f"{encode(event)}\n" for event in events)
        # Written often, to survive the death of the process; a power failure is not covered.
        write_atomically(self.file, text, sync=False)

    def copy_in(self, path: Path) -> Path:
        """Copy a file or folder into the spool; return the copy."""
        target = self.new_path(valid_text(path.name))
        if path.is_dir():
            shutil.copytree(path, target)
        else:
            shutil.copyfile(path, target)
        return target

    def new_path(self, name: str) -> Path:
        """Return an unused path for a file of this name."""
        folder = self.files_folder / secrets.token_hex(4)
        folder.mkdir(parents=True)
        return folder / name

    def read(self) -> SpoolContents:
        """Read the spool. A line truncated by a crash is left out.

        Raises:
            ValueError: the file is not a spool.
        """
        header, *lines = self.file.read_text(encoding="utf-8").split("\n")
        try:
            fields: dict[str, Any] = json.loads(header)
            run_id, events = None, []
            for line in filter(None, lines):
                with suppress(ValueError):
                    if line.startswith("{"):
                        run_id = json.loads(line)["run_id"]
                    else:
                        events.append(decode(line))
            start = RunStart(**fields.pop("start"))
            return SpoolContents(start, run_id=run_id, events=tuple(events), **fields)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{self.file} is not a spool") from error

    def remove(self) -> None:
        """Delete the file and the copies beside it."""
        shutil.rmtree(self.files_folder, ignore_errors=True)
        with suppress(OSError):
            self.file.unlink(missing_ok=True)
        self.abandon()

    def touch(self) -> None:
        """Update the modification time, the heartbeat for other machines."""
        with suppress(OSError):
            self.file.touch()

    def abandon(self) -> None:
        """Leave the spool to the next llmctl that opens the store."""
        _open_files.discard(self.file)

    def _append(self, text: str) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(text)


def orphaned_spools(uri: str) -> list[Spool]:
    """Return the spools of dead processes for this store, oldest first."""
    found = []
    for file in _files(uri):
        with suppress(OSError, ValueError, AttributeError):
            changed = file.stat().st_mtime
            with file.open(encoding="utf-8") as opened:
                process = str(json.loads(opened.readline()).get("process", ""))
            ours = process == process_identity() and file not in _open_files
            if ours or not is_alive(process, changed):
                found.append((changed, Spool(file)))
    return [spool for _, spool in sorted(found, key=lambda pair: pair[0])]


def count_waiting_runs(uri: str) -> int:
    """Return the number of runs that this store does not hold yet."""
    count = 0
    for file in _files(uri):
        with suppress(OSError, ValueError, AttributeError), file.open(encoding="utf-8") as lines:
            start = json.loads(next(lines, "")).get("start", {})
            known = start.get("resume_run_id") or any(line.startswith("{") for line in lines)
            count += not known
    return count


def _files(uri: str) -> Iterable[Path]:
    return spool_folder().glob(f"{_store_digest(uri)}-*.jsonl")


def _store_digest(uri: str) -> str:
    return hashlib.sha256(uri.encode("utf-8", "surrogateescape")).hexdigest()[:12]
