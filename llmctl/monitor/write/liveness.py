"""Which processes still write their runs, and what becomes of the runs of those that died.

A process killed by `kill -9`, or with its machine, cannot say so: its run stays RUNNING. So every
run carries who writes it (`llmctl.host_pid`) and when that process was last heard of
(`llmctl.seen`). On the same machine the process table knows; from elsewhere, silence has to do.
"""

import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Final

from llmctl.types import TAG_ERROR, TAG_HEARTBEAT, TAG_PROCESS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEAD_AFTER_S: Final = 900.0
"""After this many seconds without a sign a process that cannot be looked at counts as dead. It says
that it lives every minute; if it was only cut off, it sets its run right when it is back."""
DIED_ERROR: Final = "the process ended without a word: it was killed, or its machine stopped"
_CLOCK_SLACK_S: Final = 30.0
"""A process's start time moves with corrections of the clock, never by so much."""


@cache
def _machine() -> str:
    """Name the machine, or the container: the same process id means another process in each."""
    with suppress(OSError):
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def process_identity() -> str:
    """Say which process this is: machine, process id and start time, separated by spaces."""
    import psutil

    return f"{_machine()} {os.getpid()} {psutil.Process().create_time():.0f}"


def is_alive(process: str, seen: float | None, now: float | None = None) -> bool:
    """Whether the process that `process_identity` named still runs.

    Args:
        seen: when it was last heard of, in Unix seconds; None if never.
        now: Unix seconds; the clock's if not given.
    """
    import psutil

    machine, pid, started = ([*process.rsplit(" ", 2), "", ""])[:3]
    if machine == _machine() and pid.isdigit() and started.isdigit():
        try:
            found = psutil.Process(int(pid))
            actual: float = found.create_time()
            if found.status() == psutil.STATUS_ZOMBIE:  # dead, and nobody has asked how it died
                return False
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:  # it is there, and not ours to look at
            return True
        return abs(actual - float(started)) <= _CLOCK_SLACK_S
    return seen is not None and (time.time() if now is None else now) - seen <= DEAD_AFTER_S


def last_seen(tags: Mapping[str, str]) -> float | None:
    """Return when a run's process was last heard of, in Unix seconds."""
    with suppress(KeyError, ValueError):
        return float(tags[TAG_HEARTBEAT])
    return None


def mark_dead_runs(client: "MlflowClient", experiment_ids: Sequence[str]) -> list[str]:
    """Mark as KILLED what is RUNNING and has no process any more; return the ids of those runs.

    Their end is when they were last heard of. Runs that llmctl did not begin stay as they are.

    Raises:
        mlflow.exceptions.MlflowException: the store cannot be read or written.
    """
    running: list[Run] = client.search_runs(
        list(experiment_ids), "attributes.status = 'RUNNING'", max_results=1000
    )
    settled = []
    for run in running:
        if not _is_dead(run):
            continue
        # The search may be old by now: another process may have taken the run up again.
        run = client.get_run(run.info.run_id)
        if run.info.status != "RUNNING" or not _is_dead(run):
            continue
        ended = last_seen(run.data.tags) or run.info.start_time / 1000
        if TAG_ERROR not in run.data.tags:
            client.set_tag(run.info.run_id, TAG_ERROR, DIED_ERROR)
        client.set_terminated(run.info.run_id, "KILLED", int(ended * 1000))
        settled.append(run.info.run_id)
    return settled


def _is_dead(run: "Run") -> bool:
    process = run.data.tags.get(TAG_PROCESS)
    return process is not None and not is_alive(process, last_seen(run.data.tags))
