"""Listening, loading, and shutdown of the server process."""

import errno
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import httpx
import pytest

from llmctl.config import ServeConfig
from llmctl.errors import ConfigError, ModelLoadError
from llmctl.server.app import create_app
from llmctl.server.run import Server, bind, socket_url
from llmctl.server.startup import answer_while_loading
from llmctl.services.serve import serve
from llmctl.types import ModelSpec, ProgressCallback, ignore_progress
from tests.fakes import FakeEngine
from tests.server.servers import CHAT, chat_body, error_body, sse_events


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@dataclass
class Process:
    url: str
    popen: subprocess.Popen[str]

    def end(self) -> tuple[str, str, float]:
        """Wait for the end; return stdout, stderr and the seconds waited."""
        before = time.monotonic()
        out, err = self.popen.communicate(timeout=10)
        return out, err, time.monotonic() - before


@contextmanager
def slow_server(seconds_per_reply: float, drain_s: float) -> Iterator[Process]:
    command = [sys.executable, "-m", "tests.server.slow_server"]
    popen = subprocess.Popen(
        [*command, str(seconds_per_reply), str(drain_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert popen.stdout is not None
    try:
        yield Process(popen.stdout.readline().strip(), popen)
    finally:
        popen.kill()
        popen.communicate()


def refuses_connections(url: str) -> bool:
    try:
        httpx.get(f"{url}/health", timeout=1)
    except httpx.ConnectError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_running_stream_finish(sig: signal.Signals) -> None:
    with slow_server(seconds_per_reply=1, drain_s=10) as server:
        with httpx.stream("POST", server.url + CHAT, json=chat_body(stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            server.popen.send_signal(sig)
            time.sleep(0.4)
            assert refuses_connections(server.url)
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        out, err, took_s = server.end()
        assert out == f"engine closed\nended by {sig.name}\n"
        assert err == ""
        assert server.popen.returncode == 0
        assert took_s < 2


def test_replies_still_running_at_the_deadline_get_an_error() -> None:
    with slow_server(seconds_per_reply=60, drain_s=0.2) as server:
        url = server.url + CHAT
        with httpx.stream("POST", url, json=chat_body(stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            server.popen.send_signal(signal.SIGTERM)
            response_text = "".join(f"{line}\n" for line in lines)
        last = sse_events(httpx.Response(200, text=response_text))[-1]
        assert last["error"]["type"] == "server_error"
        _, err, took_s = server.end()
        assert err == ""
        assert server.popen.returncode == 0
        assert took_s < 2


def test_a_second_sigint_ends_immediately() -> None:
    with slow_server(seconds_per_reply=60, drain_s=60) as server:
        with httpx.stream("POST", server.url + CHAT, json=chat_body(stream=True)) as response:
            lines = response.iter_lines()
            next(lines)
            server.popen.send_signal(signal.SIGINT)
            time.sleep(0.3)
            server.popen.send_signal(signal.SIGINT)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        out, err, took_s = server.end()
        assert out.endswith("ended by SIGINT\n")
        assert err == ""
        assert took_s < 2


def test_port_0_selects_a_free_port() -> None:
    with closing(bind("127.0.0.1", 0)) as sock:
        assert socket_url(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_the_error_of_a_used_port_suggests_another() -> None:
    with closing(bind("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use") as error:
            bind("127.0.0.1", port)
        assert f"--port {port + 1}" in error.value.hint


def test_the_port_is_checked_before_the_model() -> None:
    with closing(bind("127.0.0.1", 0)) as sock:
        options = ServeConfig(port=sock.getsockname()[1])
        with pytest.raises(ConfigError, match="in use"):
            serve(ModelSpec("/no/such/model"), options, lambda *_: pytest.fail("became ready"))


class LoadingEngine(FakeEngine):
    """Sends requests to its own server during `load`, which then fails."""

    def __init__(self, url: str, error: BaseException) -> None:
        super().__init__()
        self.url = url
        self.error = error
        self.responses: list[httpx.Response] = []

    def load(self, _: ProgressCallback = ignore_progress) -> None:
        self.responses = [
            httpx.get(f"{self.url}/health"),
            httpx.get(f"{self.url}/ready"),
            httpx.post(self.url + CHAT, json=chat_body(user="x" * 500_000)),
        ]
        raise self.error


@pytest.mark.parametrize("error", [ModelLoadError("its files are broken"), KeyboardInterrupt()])
def test_requests_during_loading_are_503_with_retry_after(error: BaseException) -> None:
    with closing(bind("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    engine = LoadingEngine(f"http://127.0.0.1:{port}", error)
    with pytest.raises(type(error)):
        serve(
            ModelSpec("fake-model"),
            ServeConfig(port=port),
            lambda *_: pytest.fail("became ready"),
            engine_factory=lambda _: engine,
        )
    health, ready, chat = engine.responses
    assert (health.status_code, health.json()) == (200, {"status": "loading"})
    for reply in (ready, chat):
        assert reply.status_code == 503
        assert "is being loaded" in error_body(reply)["message"]
        assert int(reply.headers["retry-after"]) >= 1
    assert refuses_connections(engine.url)


def test_incomplete_requests_do_not_delay_the_loaded_server() -> None:
    with closing(bind("127.0.0.1", 0)) as sock:
        with (
            socket.create_connection(sock.getsockname()) as idle,
            socket.create_connection(sock.getsockname()) as slow,
            answer_while_loading(sock, ServeConfig()),
        ):
            idle.sendall(b"GET /health HTTP/1.1\r\n")
            slow.sendall(b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            assert httpx.get(socket_url(sock) + "/health").status_code == 200
        server = Server(create_app(FakeEngine()), on_deadline=lambda: None, drain_s=0)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        try:
            assert httpx.get(socket_url(sock) + "/ready").json()["status"] == "ready"
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "x" * 300, "192.0.2.1"])
def test_a_host_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="not an address of this machine"):
        bind(host, 0)


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ConfigError, match="between 0 and 65535"):
        bind("127.0.0.1", port)


def test_a_privileged_port_is_refused() -> None:
    try:
        socket.create_server(("127.0.0.1", 81)).close()
    except OSError as error:
        if error.errno != errno.EACCES:
            pytest.skip("port 81 is in use")
    else:
        pytest.skip("this user may take any port")
    with pytest.raises(ConfigError, match="privileged"):
        bind("127.0.0.1", 81)


def test_localhost_binds_ipv4() -> None:
    with closing(bind("localhost", 0)) as sock:
        assert sock.family == socket.AF_INET


@needs_ipv6
def test_an_ipv6_address_is_bracketed_in_the_url() -> None:
    with closing(bind("::1", 0)) as sock:
        assert socket_url(sock).startswith("http://[::1]:")


@needs_ipv6
def test_the_ipv6_wildcard_listens_on_ipv4_too() -> None:
    with closing(bind("::", 0)) as sock:
        socket.create_connection(("127.0.0.1", sock.getsockname()[1]), timeout=1).close()
