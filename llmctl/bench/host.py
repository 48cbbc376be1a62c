"""Description of the host, and peak memory of a process."""

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
    """Properties of the host that the measurements depend on."""

    cpu: str
    cores: int
    """Logical cores that this process may use."""
    memory_bytes: int
    gpus: tuple[str, ...]
    system: str
    python: str
    load_average: float | None
    """Of the last minute; above 0 other programs were running."""
    variables: dict[str, str]
    """Environment variables that set the threads of torch and its libraries."""


def describe_host() -> HostInfo:
    """Return the properties of this host, without importing torch."""
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
        result = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(result.stdout.strip().splitlines())


class MemorySampler:
    """Peak resident memory of a process and its children.

    Shared pages count once per process.

    Raises:
        ConfigError: the process does not exist.
    """

    def __init__(self, pid: int) -> None:
        try:
            self._process = psutil.Process(pid)
        except psutil.Error as error:
            raise ConfigError(f"process {pid} is not running", hint="correct --pid") from error
        self.reset()

    def reset(self) -> None:
        """Start a new measurement."""
        self.peak_bytes = 0
        self._processes = [self._process]
        with suppress(psutil.Error):
            self._processes += self._process.children(recursive=True)
        self.sample()

    def sample(self) -> None:
        """Read the memory once and update the peak."""
        resident = 0
        for process in self._processes:
            with suppress(psutil.Error):  # it has ended
                resident += process.memory_info().rss
        self.peak_bytes = max(self.peak_bytes, resident)
