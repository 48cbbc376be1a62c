"""`/v1/models`, `/health`, and unknown routes."""

import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import EngineStoppedError
from llmctl.types import EngineInfo, EngineState
from tests.fakes import FakeEngine
from tests.server.servers import CHAT, error_body, send_request


class StuckEngine(FakeEngine):
    def state(self) -> EngineState:
        return EngineState(True, 500.0, running=1, waiting=0, max_rows=4)


class UnloadedEngine(FakeEngine):
    def state(self) -> EngineState:
        raise EngineStoppedError("no model is loaded")

    def info(self) -> EngineInfo:
        raise EngineStoppedError("no model is loaded")


def test_models_are_the_model_id_and_the_served_names() -> None:
    listed = send_request(
        FakeEngine(),
        "GET",
        "/v1/models",
        served_names=(
            "gpt-4o",
            "me/mine",
        ),
    ).json()
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["fake-model", "gpt-4o", "me/mine"]
    for model in listed["data"]:
        assert model.keys() == {"id", "object", "created", "owned_by", "max_model_len"}
        assert model["object"] == "model"
        assert model["max_model_len"] == 128


def test_models_say_how_they_run_and_why(tiny: HFRunner) -> None:
    (model,) = send_request(tiny, "GET", "/v1/models").json()["data"]
    assert model["execution_path"] == "fused"
    assert "differ by at most" in model["execution_reason"]


@pytest.mark.parametrize("path", ["me/mine", "me%2Fmine"])
def test_a_model_id_may_contain_slashes(path: str) -> None:
    response = send_request(None, "GET", f"/v1/models/{path}", served_names=("me/mine",))
    assert response.json()["id"] == "me/mine"


def test_an_unknown_model_id_is_404() -> None:
    response = send_request(None, "GET", "/v1/models/unknown/model")
    assert response.status_code == 404
    assert error_body(response)["code"] == "model_not_found"


def test_health_reports_requests_in_flight() -> None:
    response = send_request(None, "GET", "/health")
    assert response.status_code == 200
    health = response.json()
    assert health["status"] == "ok"
    assert (health["in_flight"], health["running"], health["waiting"]) == (0, 0, 0)


def test_health_is_503_when_an_engine_with_work_makes_no_step() -> None:
    response = send_request(StuckEngine(), "GET", "/health")
    assert response.status_code == 503
    assert "no step for 500 seconds" in error_body(response)["message"]


def test_health_is_503_when_the_engine_is_stopped() -> None:
    response = send_request(UnloadedEngine(), "GET", "/health")
    assert response.status_code == 503
    assert error_body(response)["type"] == "server_error"


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", f"{CHAT}/"])
def test_an_unknown_route_is_404_in_the_envelope(path: str) -> None:
    response = send_request(None, "POST", path)
    assert response.status_code == 404
    error = error_body(response)
    assert error["message"] == f"Invalid URL (POST {path})"
    assert error["type"] == "invalid_request_error"


def test_a_wrong_method_is_405_in_the_envelope() -> None:
    response = send_request(None, "GET", CHAT)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert error_body(response)["code"] == "method_not_supported"
