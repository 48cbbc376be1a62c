"""What machine was measured on, and how much memory does a process hold?"""

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from llmctl.errors import ConfigError

_THREAD_VARIABLES = ("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "ATEN_", "TORCH_", "PYTORCH_")


@dataclass(frozen=True, slots=True)
class HostInfo:
    """What a reader must know before comparing figures."""

    cpu: str
    cores: int
    """Logical ones this process may use."""
    memory_bytes: int
    gpus: tuple[str, ...]
    system: str
    python: str
    load_average: float | None
    """Of the minute before; above 0 something else was running."""
    variables: dict[str, str]
    """Those that set how many threads torch and its libraries use, as far as they are set."""


def describe_host() -> HostInfo:
    """Describe the machine, without torch."""
    return HostInfo(
        cpu=_cpu(),
        cores=len(psutil.Process().cpu_affinity())
        if hasattr(psutil.Process, "cpu_affinity")  # not on macOS
        else psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        gpus=_gpus(),
        system=platform.platform(),
        python=platform.python_version(),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        variables={
            name: value
            for name, value in sorted(os.environ.items())
            if name.startswith(_THREAD_VARIABLES) or name == "CUDA_VISIBLE_DEVICES"
        },
    )


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _gpus() -> tuple[str, ...]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    query = [command, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(done.stdout.strip().splitlines())


class MemorySampler:
    """The most resident memory seen in a process and its children together.

    Pages that they share count once for each.

    Raises:
        ConfigError: there is no such process.
    """

    def __init__(self, pid: int) -> None:
        try:
            self._process = psutil.Process(pid)
        except psutil.Error as error:
            raise ConfigError(f"process {pid} is not running", hint="correct --pid") from error
        self.begin()

    def begin(self) -> None:
        """Forget what was seen so far."""
        self.peak_bytes = 0
        self._all = [self._process]
        with suppress(psutil.Error):
            self._all += self._process.children(recursive=True)
        self.sample()

    def sample(self) -> None:
        """Look once."""
        resident = 0
        for process in self._all:
            with suppress(psutil.Error):  # it has ended
                resident += process.memory_info().rss
        self.peak_bytes = max(self.peak_bytes, resident)
