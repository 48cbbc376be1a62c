"""A process that has imported the libraries and forks for every `llmctl` command of the tests.

A forked command is a process of its own, with real streams, signals, terminal and exit code; only
the seconds for importing PyTorch and Transformers are saved. `FORK_SERVER.start` is the client.
"""

import atexit
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

PRELOADED = (
    "llmctl.cli.app",
    "llmctl.cli.repl.commands",
    "llmctl.cli.repl.entry",
    "llmctl.engine.hf_runner",
    "llmctl.engine.openai.client",
    "llmctl.server.app",
    "llmctl.services.chat",
    "llmctl.services.serve",
)
_MAX_REQUEST_BYTES = 2**18
TIMEOUT_S = 120.0


@dataclass
class ForkedCommand:
    """A running command; `status` is the pipe that receives its exit code."""

    pid: int
    status: int
    returncode: int | None = None

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Wait for the end; return the exit code, or the negative number of the signal.

        Raises:
            TimeoutError: the command runs longer, and is killed.
        """
        if self.returncode is None:
            if not select.select([self.status], [], [], timeout_s)[0]:
                self.kill()
                raise TimeoutError(f"the command is still running after {timeout_s:.0f} s")
            with os.fdopen(self.status) as pipe:
                self.returncode = int(pipe.readline())
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or `None` while the command is running."""
        ended = self.returncode is not None or select.select([self.status], [], [], 0)[0]
        return self.wait() if ended else None

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.send_signal(signal.SIGKILL)


class ForkServer:
    """Starts the server at the first command."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def start(
        self,
        arguments: Sequence[str],
        streams: tuple[int, int, int],
        env: Mapping[str, str],
        *,
        new_session: bool = False,
    ) -> ForkedCommand:
        """Start `llmctl ARGUMENTS` with these file descriptors as stdin, stdout and stderr.

        Args:
            new_session: make the command the leader of a session, whose terminal is stdin.
        """
        request = {
            "arguments": list(arguments),
            "env": dict(env),
            "directory": os.getcwd(),
            "new_session": new_session,
        }
        status, status_writer = os.pipe()
        connection = self._connect()
        socket.send_fds(connection, [json.dumps(request).encode()], [*streams, status_writer])
        os.close(status_writer)
        pid = b""
        while not pid.endswith(b"\n"):
            byte = os.read(status, 1)
            if not byte:
                raise RuntimeError("the fork server has failed")
            pid += byte
        return ForkedCommand(int(pid), status)

    def _connect(self) -> socket.socket:
        if self._socket is None or self._process is None or self._process.poll() is not None:
            self._socket, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.cli.fork_server", str(child.fileno())],
                pass_fds=[child.fileno()],
            )
            child.close()
        return self._socket


FORK_SERVER = ForkServer()


def serve(connection: socket.socket) -> None:
    """Fork for every request until the client has closed the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the supervisors need no parent
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a command would copy the shared memory
    while True:
        data, files, _, _ = socket.recv_fds(connection, _MAX_REQUEST_BYTES, 4)
        if not data:
            return
        if os.fork() == 0:
            connection.close()
            _supervise(json.loads(data), files)
        for file in files:
            os.close(file)


def _supervise(request: dict[str, object], files: list[int]) -> None:
    """Fork the command, and report its process id and exit code. Returns in the command only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, status = files
    start, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(status)
        os.close(go)
        os.read(start, 1)  # until the client knows the process id
        os.close(start)
        _run(request, streams)
    for file in streams:
        os.close(file)
    os.write(status, f"{pid}\n".encode())
    os.close(go)
    _, wait_status = os.waitpid(pid, 0)
    os.write(status, f"{os.waitstatus_to_exitcode(wait_status)}\n".encode())
    os._exit(0)


def _run(request: dict[str, object], streams: list[int]) -> NoReturn:
    """Run the command in this process, and end it."""
    if request["new_session"]:
        os.setsid()
        if os.isatty(streams[0]):
            fcntl.ioctl(streams[0], termios.TIOCSCTTY, 0)
    for target, file in enumerate(streams):
        os.dup2(file, target)
    os.closerange(3, 64)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(request["env"])  # type: ignore[call-overload]
    os.chdir(str(request["directory"]))
    sys.stdin = open(0, encoding="utf-8")  # noqa: SIM115  stays open
    sys.stdout = open(1, "w", encoding="utf-8", buffering=-1)  # noqa: SIM115  stays open
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115  stays open
    arguments = [str(word) for word in request["arguments"]]  # type: ignore[attr-defined]
    sys.argv = ["llmctl", *arguments]
    from llmctl.cli.app import main

    code: object = None
    try:
        main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # As at the end of Python, but without clearing modules, which would copy the shared memory.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
