"""API keys, CORS, and the options that require a key."""

import pytest

from llmctl.config import ServeConfig
from llmctl.errors import ConfigError
from tests.fakes import FakeEngine
from tests.server.servers import CHAT, chat_body, error_body, send_request

KEYS = ("first-key", "second-key")


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/ready", "/openapi.json", "/nothing"])
def test_every_route_but_health_requires_a_key(path: str) -> None:
    refused = send_request(None, "GET", path, api_keys=KEYS)
    assert refused.status_code == 401
    assert error_body(refused)["code"] == "invalid_api_key"
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.headers["x-request-id"]
    assert send_request(None, "GET", "/health", api_keys=KEYS).status_code == 200


@pytest.mark.parametrize("header", ["Bearer first-key", "bearer second-key", "Bearer  first-key "])
def test_each_key_is_accepted(header: str) -> None:
    headers = {"Authorization": header}
    reply = send_request(None, "POST", CHAT, json=chat_body(), api_keys=KEYS, headers=headers)
    assert reply.status_code == 200


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", "Basic first-key", "first-key", "Bearer first-ke", "Bearer é"],
)
def test_a_missing_or_wrong_key_is_401(header: str) -> None:
    engine = FakeEngine()
    headers = {"Authorization": header.encode()}
    reply = send_request(engine, "POST", CHAT, json=chat_body(), api_keys=KEYS, headers=headers)
    assert reply.status_code == 401
    assert engine.requests == []
    assert "first-key" not in reply.text


def test_cors_is_off_by_default_and_for_other_origins() -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for options in ({}, {"cors_origins": ("https://chat.example",)}):
        reply = send_request(None, "OPTIONS", CHAT, headers=headers, **options)
        assert "access-control-allow-origin" not in reply.headers


def test_a_preflight_of_an_allowed_origin_needs_no_key() -> None:
    origin = "https://chat.example"
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    options = {"cors_origins": (origin,), "api_keys": KEYS}
    preflight = send_request(None, "OPTIONS", CHAT, headers=headers, **options)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == origin
    assert "access-control-allow-credentials" not in preflight.headers
    refused = send_request(None, "GET", "/v1/models", headers={"Origin": origin}, **options)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == origin
    exposed = refused.headers["access-control-expose-headers"]
    assert {"x-llmctl-dropped-messages", "retry-after"} <= set(exposed.split(", "))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "my-host"])
def test_a_non_loopback_host_without_a_key_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="no API key"):
        ServeConfig(host=host)
    assert ServeConfig(host=host, insecure=True).host == host
    assert ServeConfig(host=host, api_keys=("k",)).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_a_loopback_host_needs_no_key(host: str) -> None:
    assert ServeConfig(host=host).api_keys == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"api_keys": ("",)},
        {"api_keys": ("schlüssel",)},
        {"cors_origins": ("*",)},
        {"ssl_certfile": "cert.pem"},
    ],
)
def test_invalid_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ServeConfig(**wrong)  # type: ignore[arg-type]
