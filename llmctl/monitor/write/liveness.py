"""Detection of runs whose process has died, and their final status.

A process killed by `kill -9` or a power failure leaves its run RUNNING. So every run holds the
identity of its process (`llmctl.host_pid`) and the time of its last heartbeat (`llmctl.seen`). On
the same machine the process table decides, on another machine the age of the heartbeat.
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
"""A process on another machine counts as dead after this time without a heartbeat. Heartbeats come
every minute; a process that was only disconnected marks its run as running when it is back."""
DIED_ERROR: Final = "the process died: it was killed, or its machine stopped"
_CLOCK_SLACK_S: Final = 30.0
"""Tolerance of a process's start time, which moves with corrections of the clock."""


@cache
def _machine() -> str:
    """Return an id of the machine or container, within which process ids are unique."""
    with suppress(OSError):
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()


def process_identity() -> str:
    """Return the identity of this process: machine, process id and start time, with spaces."""
    import psutil

    return f"{_machine()} {os.getpid()} {psutil.Process().create_time():.0f}"


def is_alive(process: str, seen: float | None, now: float | None = None) -> bool:
    """Whether the process with an identity still runs.

    Args:
        process: a value of `process_identity`.
        seen: time of its last heartbeat in Unix seconds; None without one.
        now: Unix seconds; None takes the clock.
    """
    import psutil

    machine, pid, started = ([*process.rsplit(" ", 2), "", ""])[:3]
    if machine == _machine() and pid.isdigit() and started.isdigit():
        try:
            found = psutil.Process(int(pid))
            actual: float = found.create_time()
            if found.status() == psutil.STATUS_ZOMBIE:  # dead, and not reaped yet
                return False
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:  # it exists, but may not be inspected
            return True
        return abs(actual - float(started)) <= _CLOCK_SLACK_S
    return seen is not None and (time.time() if now is None else now) - seen <= DEAD_AFTER_S


def last_seen(tags: Mapping[str, str]) -> float | None:
    """Return the time of the last heartbeat of a run in Unix seconds; None without one."""
    with suppress(KeyError, ValueError):
        return float(tags[TAG_HEARTBEAT])
    return None


def mark_dead_runs(client: "MlflowClient", experiment_ids: Sequence[str]) -> list[str]:
    """Mark RUNNING runs whose process has died as KILLED, and return their ids.

    Their end time is that of the last heartbeat. Runs of other programs stay unchanged.

    Raises:
        mlflow.exceptions.MlflowException: the store cannot be read or written.
    """
    running: list[Run] = client.search_runs(
        list(experiment_ids), "attributes.status = 'RUNNING'", max_results=1000
    )
    marked = []
    for run in running:
        if not _is_dead(run):
            continue
        # The result of the search may be outdated: another process may have resumed the run.
        run = client.get_run(run.info.run_id)
        if run.info.status != "RUNNING" or not _is_dead(run):
            continue
        ended = last_seen(run.data.tags) or run.info.start_time / 1000
        if TAG_ERROR not in run.data.tags:
            client.set_tag(run.info.run_id, TAG_ERROR, DIED_ERROR)
        client.set_terminated(run.info.run_id, "KILLED", int(ended * 1000))
        marked.append(run.info.run_id)
    return marked


def _is_dead(run: "Run") -> bool:
    process = run.data.tags.get(TAG_PROCESS)
    return process is not None and not is_alive(process, last_seen(run.data.tags))
