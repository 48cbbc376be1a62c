"""How is MLflow's own web page started on the right store, and ended with all its processes?"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Final, NoReturn

from llmctl.errors import ConfigError, LlmctlError
from llmctl.monitor.store import artifacts_folder

HOST: Final = "127.0.0.1"
_START_S: Final = 120.0
_END_S: Final = 5.0
_LAST_LINES: Final = 8
_SETTINGS: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""No word to anybody, and no workers for jobs that llmctl never gives it."""


def run_ui_server(
    uri: str, experiment_id: str, port: int, ready: Callable[[str], None]
) -> NoReturn:
    """Run MLflow's server for a store until something interrupts it.

    It listens on this machine alone and tells nobody of its use. However this function is left,
    the server's processes have ended.

    Args:
        port: as `check_port` gave it.
        ready: called once, with the page's address, when it answers.

    Raises:
        LlmctlError: the server did not start, or ended by itself.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            _command(uri, port),
            env=os.environ | _SETTINGS,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # A terminal's Ctrl-C is for us alone; we end it in order.
            start_new_session=True,
        )
        try:
            _wait_until_it_answers(process, port, log)
            ready(f"http://{HOST}:{port}/#/experiments/{experiment_id}/runs")
            process.wait()
            raise _ended(process, log)
        finally:
            _end(process)


def _command(uri: str, port: int) -> list[str]:
    folder = artifacts_folder()
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", uri, "--artifacts-destination", folder.as_uri()),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
    ]


def check_port(port: int) -> int:
    """Return the port if it is free, and any free one for 0. Raises `ConfigError`: it is taken."""
    with socket.socket() as probe:
        if os.name == "posix":  # else a page that was closed a moment ago would block its port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} on {HOST} cannot be had: {error.strerror}",
                hint="leave --port away to take a free one",
            ) from error
        free: int = probe.getsockname()[1]
        return free


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    last = time.monotonic() + _START_S
    # A proxy that the environment names has no business on this machine's own address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < last:
        if process.poll() is not None:
            raise _ended(process, log)
        with suppress(urllib.error.URLError, OSError):
            if opener.open(f"http://{HOST}:{port}/health", timeout=5).status == 200:
                return
        time.sleep(0.1)
    raise LlmctlError(f"MLflow's web page did not answer within {_START_S:.0f} s{_tail(log)}")


def _ended(process: subprocess.Popen[bytes], log: IO[bytes]) -> LlmctlError:
    return LlmctlError(f"MLflow's web page ended with code {process.returncode}{_tail(log)}")


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
    return ":\n" + "\n".join(lines) if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything that it started."""
    import psutil

    family: list[psutil.Process] = []
    with suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        family = [*parent.children(recursive=True), parent]
    for member in family:
        with suppress(psutil.Error):
            member.terminate()
    _, left = psutil.wait_procs(family, timeout=_END_S)
    for member in left:
        with suppress(psutil.Error):
            member.kill()
    process.wait()
