"""Check of the `Host` header against DNS rebinding."""

from typing import Any

import httpx
import pytest

from llmctl.config import ServeConfig
from llmctl.errors import ConfigError
from tests.fakes import FakeEngine
from tests.server.servers import CHAT, chat_body, error_body, running_server, send_request

NAMES: dict[str, Any] = {"allowed_hosts": ("llm.example.com", "*.Home.arpa", "192.168.1.5")}
KEY: dict[str, Any] = {"api_keys": ("k",), "headers": {"Authorization": "Bearer k"}}


def status(header: str, **options: Any) -> int:
    headers = {"Host": header} | options.pop("headers", {})
    return send_request(None, "GET", "/v1/models", headers=headers, **options).status_code


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "localhost:8000",
        "LOCALHOST.:8000",
        "127.0.0.1",
        "127.0.0.1:1",
        "127.9.9.9",
        "[::1]",
        "[::1]:8000",
    ],
)
def test_loopback_names_are_accepted(host: str) -> None:
    assert status(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "evil-localhost",
        "127.0.0.1.evil.example",
        "192.168.1.5",
        "[::2]",
        "[::1].evil.example",
        "",
        "0.0.0.0",
    ],
)
def test_other_names_are_403(host: str) -> None:
    assert status(host) == 403


def test_the_error_suggests_the_option() -> None:
    engine = FakeEngine()
    reply = send_request(
        engine, "POST", CHAT, json=chat_body(), headers={"Host": "llm.example.com:80"}
    )
    assert reply.status_code == 403
    error = error_body(reply)
    assert error["code"] == "host_not_allowed"
    assert "--allowed-host llm.example.com," in error["message"]
    assert reply.headers["x-request-id"]
    assert engine.requests == []


def test_the_page_is_refused_too() -> None:
    reply = send_request(None, "GET", "/", headers={"Host": "evil.example"})
    assert reply.status_code == 403


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("llm.example.com", 200),
        ("LLM.example.com.:443", 200),
        ("a.home.arpa", 200),
        ("a.b.home.arpa:8000", 200),
        ("192.168.1.5:8000", 200),
        ("localhost", 200),
        ("home.arpa", 403),
        ("evilhome.arpa", 403),
        ("x.llm.example.com", 403),
        ("192.168.1.6", 403),
    ],
)
@pytest.mark.parametrize("options", [{}, KEY], ids=["no key", "key"])
def test_allowed_hosts_are_accepted(host: str, expected: int, options: dict[str, Any]) -> None:
    assert status(host, **NAMES, **options) == expected


def test_with_a_key_the_header_is_not_checked_by_default() -> None:
    assert status("evil.example", **KEY) == 200


@pytest.mark.parametrize(
    ("host", "header", "expected"),
    [
        ("my-machine", "my-machine:8000", 200),
        ("192.168.1.5", "192.168.1.5", 200),
        ("192.168.1.5", "192.168.1.6", 403),
        ("0.0.0.0", "192.168.1.5:8000", 200),
        ("::", "[fe80::1]:8000", 200),
        ("0.0.0.0", "evil.example", 403),
    ],
)
def test_the_listening_host_is_accepted(host: str, header: str, expected: int) -> None:
    assert status(header, host=host, insecure=True) == expected


def test_a_real_server_refuses_a_rebound_name() -> None:
    with running_server(FakeEngine()) as url:
        assert httpx.get(f"{url}/health").status_code == 200
        rebound = httpx.get(f"{url}/health", headers={"Host": "evil.example:8000"})
        assert rebound.status_code == 403


@pytest.mark.parametrize(
    "name", ["", "*", "*.", "http://a.example", "a.example:80", "a b", "*.*.x"]
)
def test_an_invalid_allowed_host_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not a host name"):
        ServeConfig(allowed_hosts=(name,))
