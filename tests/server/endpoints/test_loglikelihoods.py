"""`/v1/loglikelihoods`: one line of JSON for each group of texts."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from llmctl.config import ServeConfig
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loglikelihood import GroupScore, score_full_texts
from llmctl.server.app import create_app
from tests.server.servers import error_body

CONFIG = ServeConfig(log_requests=False)


def post(
    engine: HFRunner, *, path: str = "/v1/loglikelihoods", scoring: bool = True, **fields: Any
) -> httpx.Response:
    app = create_app(engine, CONFIG, scoring=scoring)
    groups = [{"stem": "One and one make ", "endings": ["two", "three"]}]
    body = {"model": engine.info().model_id, "groups": groups} | fields

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(path, json=body)

    return asyncio.run(send())


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_the_route_exists_only_with_scoring(tiny: HFRunner) -> None:
    assert post(tiny, scoring=False).status_code == 404


@pytest.mark.slow
def test_the_number_of_groups_is_not_limited(tiny: HFRunner) -> None:
    groups = [{"stem": "", "endings": ["a"]}] * 70_000
    refused = post(tiny, model="unknown", groups=groups)
    assert error_body(refused)["code"] == "model_not_found"


def test_head_stem_and_ending_are_one_text(tiny: HFRunner) -> None:
    groups = [{"stem": "Q: no?", "endings": [" yes", " no"]}, {"stem": "", "endings": ["Z", "Yy"]}]
    received = lines(post(tiny, head="Head. ", groups=groups))
    texts = [["Head. Q: no? yes", "Head. Q: no? no"], ["Head. Z", "Head. Yy"]]
    for index, (line, group) in enumerate(
        zip(received, score_full_texts(tiny, texts), strict=True)
    ):
        assert isinstance(group, GroupScore)
        assert line["index"] == index
        assert [score["tokens"] for score in line["scores"]] == [
            text.token_count for text in group.texts
        ]


def test_a_failed_group_is_a_line_with_an_error(tiny: HFRunner) -> None:
    groups = [
        {"stem": "a" * 2000, "endings": ["b", "c"]},
        {"stem": "One ", "endings": ["two", "three"]},
    ]
    first, second = lines(post(tiny, groups=groups))
    assert first["error"]["code"] == "context_length_exceeded"
    assert len(second["scores"]) == 2


def test_the_former_route_is_accepted_and_not_in_the_schema(tiny: HFRunner) -> None:
    assert lines(post(tiny, path="/v1/score")) == lines(post(tiny))
    paths = create_app(tiny, CONFIG, scoring=True).openapi()["paths"]
    assert "/v1/loglikelihoods" in paths
    assert "/v1/score" not in paths


def test_invalid_requests_are_refused_by_name(tiny: HFRunner) -> None:
    assert post(tiny, adaptr="x").status_code == 400
    assert "adaptr" in error_body(post(tiny, adaptr="x"))["message"]
    assert post(tiny, model="other").status_code == 404
    assert post(tiny, groups=[]).status_code == 400
    assert post(tiny, groups=[{"stem": "x", "endings": []}]).status_code == 400
