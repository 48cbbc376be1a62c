"""The web UI of MLflow as a child process for a store."""

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
from llmctl.monitor.store import artifacts_folder, redact

HOST: Final = "127.0.0.1"
_START_S: Final = 120.0
_END_S: Final = 5.0
_LAST_LINES: Final = 8
_SETTINGS: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}
"""No telemetry, and no workers for jobs, which llmctl does not use."""


def run_ui_server(
    uri: str, experiment_id: str, port: int, ready: Callable[[str], None]
) -> NoReturn:
    """Run the server of MLflow for a store until an exception such as Ctrl-C.

    It listens on localhost only. All its processes are ended before this function returns.

    Args:
        port: a value of `check_port`.
        ready: called once with the URL when the server answers.

    Raises:
        LlmctlError: the server did not start, or exited.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", HOST, "--port", str(port)]
    command += ["--artifacts-destination", artifacts_folder().as_uri()]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            # Not in the arguments, which every user of the machine sees: it may hold a password.
            env=os.environ | _SETTINGS | {"MLFLOW_BACKEND_STORE_URI": uri},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C of the terminal must reach only llmctl, which ends the server.
            start_new_session=True,
        )
        try:
            _wait_until_it_answers(process, port, log)
            ready(f"http://{HOST}:{port}/#/experiments/{experiment_id}/runs")
            process.wait()
            raise _ended(process, log)
        finally:
            _end(process)


def check_port(port: int) -> int:
    """Return the port if it is free, or any free port for 0. Raises `ConfigError` if it is used."""
    with socket.socket() as probe:
        if os.name == "posix":  # else connections in TIME_WAIT block the port after a restart
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(
                f"port {port} on {HOST} cannot be used: {error.strerror}",
                hint="leave out --port to take a free port",
            ) from error
        free: int = probe.getsockname()[1]
        return free


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    last = time.monotonic() + _START_S
    # Proxies of the environment must not be used for localhost.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < last:
        if process.poll() is not None:
            raise _ended(process, log)
        with suppress(urllib.error.URLError, OSError):
            if opener.open(f"http://{HOST}:{port}/health", timeout=5).status == 200:
                return
        time.sleep(0.1)
    raise LlmctlError(f"MLflow's web UI did not answer within {_START_S:.0f} s{_tail(log)}")


def _ended(process: subprocess.Popen[bytes], log: IO[bytes]) -> LlmctlError:
    return LlmctlError(f"MLflow's web UI exited with code {process.returncode}{_tail(log)}")


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()[-_LAST_LINES:]
    return redact(":\n" + "\n".join(lines)) if lines else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all its descendants."""
    import psutil

    processes: list[psutil.Process] = []
    with suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        processes = [*parent.children(recursive=True), parent]
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for one in processes:
            with suppress(psutil.Error):
                end(one)
        _, processes = psutil.wait_procs(processes, timeout=_END_S)
    process.wait()
