"""How is OpenCompass run? Once, as a child that ends with us, its log in a file."""

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmctl.atomic_files import atomic_path
from llmctl.engine import subprocess_runner
from llmctl.errors import LlmctlError
from llmctl.evaluation.opencompass.child.http import KEY_VARIABLE

LOG = "opencompass.log"
PACKAGE = "llmctl_oc"
_START = f"from {PACKAGE}.driver import main; main()"


class OpenCompassError(LlmctlError):
    """OpenCompass itself failed; the message is its own."""


def launch(
    python: Path,
    folder: Path,
    request: Mapping[str, object],
    on_event: Callable[[dict[str, Any]], None],
    *,
    api_key: str,
    data: Path,
) -> None:
    """Run OpenCompass to its end, telling each of its events as it comes.

    Args:
        python: of the overlay.
        folder: receives our part of it, the request, the log and all that OpenCompass writes.
        request: see `child/driver.py`.
        data: a folder whose `data` OpenCompass reads where no other path is named.

    Raises:
        OpenCompassError: it ended before its end. Events that it told have been told.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _copy_child(folder / PACKAGE)
    events = folder / "events.jsonl"
    events.write_text("", encoding="utf-8")
    asked = folder / "request.json"
    content = {**request, "events": str(events), "work": str(folder)}
    asked.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    # OpenCompass writes into the folder it runs in.
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    environment = {
        "PYTHONPATH": str(folder),
        "COMPASS_DATA_CACHE": str(data),
        KEY_VARIABLE: api_key,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
    }
    ended = False

    def told(event: dict[str, Any]) -> None:
        nonlocal ended
        ended = ended or event["event"] == "end"
        on_event(event)

    log = folder / LOG
    tail = _Tail(events, told)
    try:
        subprocess_runner.run(
            ["-c", _START, str(asked)],
            log,
            environment=environment,
            tick=tail,
            python=str(python),
            folder=scratch,
        )
    except subprocess.CalledProcessError as error:
        tail()
        raise OpenCompassError(
            f"OpenCompass failed: {_reason(error.output)}", hint=f"its log is {log}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    tail()
    if not ended:
        raise OpenCompassError("OpenCompass stopped half-way", hint=f"its log is {log}")


class _Tail:
    """Tells the lines that have come to a file since the last call."""

    def __init__(self, file: Path, tell: Callable[[dict[str, Any]], None]) -> None:
        self._file = file
        self._tell = tell
        self._read = 0

    def __call__(self) -> None:
        with self._file.open("rb") as stream:
            stream.seek(self._read)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self._tell(json.loads(line))


def _copy_child(target: Path) -> None:
    source = Path(__file__).parent / "child"
    target.mkdir(exist_ok=True)
    for file in source.glob("*.py"):
        with atomic_path(target / file.name, sync=False) as temporary:  # copied for each run
            shutil.copyfile(file, temporary)


def _reason(output: str) -> str:
    """Return the line that says why: the last exception, or the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if not lines:
        return "it said nothing"
    errors = [line for line in lines if "Error: " in line.split(" ", 2)[0] + " "]
    return (errors or lines)[-1]
