"""Requests generated from `/openapi.json` by schemathesis."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings

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
schema = schemathesis.openapi.from_asgi("/openapi.json", create_app(FakeEngine()))


@schema.parametrize()  # type: ignore[untyped-decorator]
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_generated_requests_get_documented_responses(case: Any) -> None:
    case.validate_response(case.call(), checks=CHECKS)
