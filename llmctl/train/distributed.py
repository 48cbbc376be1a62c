"""Training in several processes: rank and world size, launch, and orderly ends."""

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
_SHUTDOWN_S = 600
"""Seconds that the other processes get to save after one has ended."""


@dataclass(frozen=True, slots=True)
class ProcessInfo:
    """Rank of this process among those that train together, each on its own device."""

    rank: int = 0
    world_size: int = 1


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """Number of processes and machines of a distributed training."""

    processes: int = 1
    """Per machine: one per GPU, or per CPU socket."""
    nodes: int = 1
    """Machines. The same command is started on each."""
    rendezvous: str | None = None
    """`host:port` on one of the machines, where the processes meet."""

    def __post_init__(self) -> None:
        if self.nodes > 1 and not self.rendezvous:
            raise ConfigError(
                f"{self.nodes} machines need a rendezvous address",
                hint=f"--rendezvous HOST:{DEFAULT_PORT}, the same on all of them",
            )


def current_process() -> ProcessInfo:
    """Return rank and world size from the variables that torchrun and accelerate set."""
    return ProcessInfo(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def is_launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return "WORLD_SIZE" in os.environ


def launch(fleet: LaunchOptions, arguments: Sequence[str]) -> int:
    """Run `llmctl` with these arguments in every process, with torch's elastic launcher.

    Ctrl-C and SIGTERM are forwarded to all processes, which end by themselves.

    Returns:
        0, or the exit code of the process that failed first.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It would print a long report on each failed process, which has already printed its error.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    settings = {
        "min_nodes": fleet.nodes,
        "max_nodes": fleet.nodes,
        "nproc_per_node": fleet.processes,
        "run_id": "llmctl" if fleet.nodes > 1 else uuid4().hex,
        "rdzv_backend": "c10d",
        "rdzv_endpoint": fleet.rendezvous or "localhost:0",
        "max_restarts": 0,
        # By default it would wait 30 seconds after SIGINT or SIGTERM and then kill.
        "signals_to_handle": "SIGHUP",
        "shutdown_timeout": _SHUTDOWN_S,
    }
    known = {f.name for f in fields(LaunchConfig)}  # older versions of torch have fewer fields
    config = LaunchConfig(**{k: v for k, v in settings.items() if k in known})  # type: ignore[arg-type]
    # More threads than cores slow all processes down.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // fleet.processes)))
    try:
        with _forward_signals_to_children():
            elastic_launch(config, sys.executable)("-m", "llmctl", *arguments)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    return 0


def leave_process_group() -> None:
    """Destroy the process group, if there is one.

    All processes must have finished training: each receives what the others still send.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def wait_for_local_rank_zero(timeout_s: float = _SHUTDOWN_S) -> None:
    """Let local rank 0 end before this process, which the launcher then ends.

    The launcher ends all processes when one ends early: output that rank 0 still has to write
    would be lost. Returns at once in local rank 0, and after `timeout_s` seconds in the others.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(timeout_s)


@contextmanager
def _forward_signals_to_children() -> Iterator[None]:
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
