"""One command, several processes: who is this one, and how are the others started?"""

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from types import FrameType
from uuid import uuid4

import psutil

from llmctl.errors import ConfigError

DEFAULT_PORT = 29400
_PATIENT_S = 600
"""Seconds that the other processes get to save after one has ended."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """One of the processes that learn together, each with a device of its own."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """How many processes learn together, and where."""

    processes: int = 1
    """On each machine: one per card, or per socket of a CPU."""
    nodes: int = 1
    """Machines. The same command is started on each."""
    rendezvous: str | None = None
    """`host:port` of one of the machines, where they find each other."""

    def __post_init__(self) -> None:
        if self.nodes > 1 and not self.rendezvous:
            raise ConfigError(
                f"{self.nodes} machines must know where to meet",
                hint=f"--rendezvous HOST:{DEFAULT_PORT}, the same on all of them",
            )


def current_process() -> ProcessInfo:
    """Return which of the processes this is, as torchrun and accelerate tell it."""
    return ProcessInfo(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def is_launched() -> bool:
    """Whether somebody has started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def launch(fleet: LaunchOptions, arguments: Sequence[str]) -> int:
    """Run `llmctl` with these arguments in every process, by torch's elastic launcher.

    Ctrl-C and SIGTERM reach all of them, which end by themselves.

    Returns:
        0, or the exit code of the process that failed first.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It would write a page about every process that ends with an error, which has said why.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    wanted = {
        "min_nodes": fleet.nodes,
        "max_nodes": fleet.nodes,
        "nproc_per_node": fleet.processes,
        "run_id": "llmctl" if fleet.nodes > 1 else uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": fleet.rendezvous or "localhost:0",
        "max_restarts": 0,
        # Its own way with these signals is to wait 30 seconds and kill.
        "signals_to_handle": "SIGHUP",
        "shutdown_timeout": _PATIENT_S,
    }
    known = {f.name for f in fields(LaunchConfig)}  # later torch knows more
    config = LaunchConfig(**{k: v for k, v in wanted.items() if k in known})  # type: ignore[arg-type]
    # Threads of several processes on the same cores only hinder each other.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // fleet.processes)))
    try:
        with _signals_go_to_children():
            elastic_launch(config, sys.executable)("-m", "llmctl", *arguments)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    return 0


def leave_process_group() -> None:
    """Leave the group in which this process has learnt, where it is one of several.

    All of them must have come to the end: what one still sends, the others must take.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def wait_for_local_rank_zero(most_s: float = _PATIENT_S) -> None:
    """Let the first process of this machine end before this one, which the launcher then ends.

    The launcher ends all when one ends early: what the first still has to write or say would be
    lost. Returns at once in the first, and after `most_s` seconds in those that nobody has ended.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(most_s)


@contextmanager
def _signals_go_to_children() -> Iterator[None]:
    def forward(number: int, _: FrameType | None) -> None:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.send_signal(number)

    before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
