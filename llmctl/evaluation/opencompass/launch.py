"""Runs OpenCompass as a child process that ends with llmctl and logs to a file."""

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

Event = dict[str, Any]


class OpenCompassError(LlmctlError):
    """OpenCompass failed; the message is its own."""


def launch(
    python: Path,
    folder: Path,
    request: Mapping[str, object],
    on_event: Callable[[Event], None],
    *,
    api_key: str,
    data: Path,
) -> None:
    """Run OpenCompass to its end and pass on its events as they arrive.

    Args:
        python: of OpenCompass' virtual environment.
        folder: for the child package, the request, the log and the files of OpenCompass.
        request: see `child/driver.py`.
        on_event: receives each event.
        api_key: key of the server, passed in an environment variable.
        data: a folder whose `data` OpenCompass reads if a dataset has no other path.

    Raises:
        OpenCompassError: it failed. Events that arrived before were passed on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _copy_child(folder / PACKAGE)
    events = folder / "events.jsonl"
    events.write_text("", encoding="utf-8")
    request_file = folder / "request.json"
    content = {**request, "events": str(events), "work": str(folder)}
    request_file.write_text(json.dumps(content, indent=1), encoding="utf-8")
    # OpenCompass writes into its working directory.
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

    def handle(event: Event) -> None:
        nonlocal ended
        ended = ended or event["event"] == "end"
        on_event(event)

    log = folder / LOG
    read_events = _EventReader(events, handle)
    try:
        subprocess_runner.run(
            ["-c", _START, str(request_file)],
            log,
            environment=environment,
            tick=read_events,
            python=str(python),
            folder=scratch,
        )
    except subprocess.CalledProcessError as error:
        read_events()
        raise OpenCompassError(
            f"OpenCompass failed: {_last_error(error.output)}", hint=f"its log is {log}"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    read_events()
    if not ended:
        raise OpenCompassError("OpenCompass ended too early", hint=f"its log is {log}")


class _EventReader:
    """Passes on the events that were appended to a file since the last call."""

    def __init__(self, file: Path, handle: Callable[[Event], None]) -> None:
        self._file = file
        self._handle = handle
        self._offset = 0

    def __call__(self) -> None:
        with self._file.open("rb") as stream:
            stream.seek(self._offset)
            content = stream.read()
        complete = content[: content.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in complete.splitlines():
            self._handle(json.loads(line))


def _copy_child(target: Path) -> None:
    source = Path(__file__).parent / "child"
    target.mkdir(exist_ok=True)
    for file in source.glob("*.py"):
        with atomic_path(target / file.name, sync=False) as temporary:  # copied for each run
            shutil.copyfile(file, temporary)


def _last_error(output: str) -> str:
    """Return the line of the last exception, or else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if not lines:
        return "it printed nothing"
    errors = [line for line in lines if "Error: " in line.split(" ", 2)[0] + " "]
    return (errors or lines)[-1]
