"""Requests generated from `/openapi.json` by schemathesis."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from llmctl.config import ServeConfig
from llmctl.server.app import create_app
from tests.fakes import FakeEngine

schemathesis = pytest.importorskip("schemathesis")
openapi = pytest.importorskip("schemathesis.specs.openapi.checks")

CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
]
ENGINE = FakeEngine()
# The name that schemathesis gives to an application without a server.
CONFIG = ServeConfig(log_requests=False, allowed_hosts=("testserver",))
schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(ENGINE, CONFIG))


def check_response(case: Any) -> None:
    """Check the documented format, and that only valid requests reach the engine."""
    received = len(ENGINE.requests)
    response = case.call()
    case.validate_response(response, checks=CHECKS)
    # A generated request must get past the check of its host to test anything.
    assert response.status_code != 403
    if len(ENGINE.requests) > received:
        assert response.status_code == 200
    if response.status_code >= 400:
        error = response.json()["error"]
        assert error["message"]
        assert error["param"] is None or error["code"] is not None


@pytest.mark.slow
@schema.parametrize()  # type: ignore[untyped-decorator]
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_get_documented_responses(case: Any) -> None:
    check_response(case)
