"""`/v1/score` is there for exams alone, and answers each group of texts in a line of its own."""

import asyncio
import json
from typing import Any

import httpx

from llmctl.config import ServeConfig
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loglikelihood import GroupScore, score_full_texts
from llmctl.server.app import create_app
from tests.server.servers import error_body

OPTIONS = ServeConfig(log_requests=False)


def post(engine: HFRunner, *, scoring: bool = True, **fields: Any) -> httpx.Response:
    app = create_app(engine, OPTIONS, scoring=scoring)
    groups = [{"stem": "One and one make ", "endings": ["two", "three"]}]
    body = {"model": engine.info().model_id, "groups": groups} | fields

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/v1/score", json=body)

    return asyncio.run(send())


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return [json.loads(line) for line in response.text.splitlines()]


def test_an_ordinary_server_does_not_have_it(tiny: HFRunner) -> None:
    assert post(tiny, scoring=False).status_code == 404


def test_a_subject_may_have_as_many_questions_as_it_has(tiny: HFRunner) -> None:
    groups = [{"stem": "", "endings": ["a"]}] * 70_000
    refused = post(tiny, model="nobody", groups=groups)
    assert error_body(refused)["code"] == "model_not_found"


def test_head_stem_and_ending_are_one_text(tiny: HFRunner) -> None:
    groups = [{"stem": "Q: no?", "endings": [" yes", " no"]}, {"stem": "", "endings": ["Z", "Yy"]}]
    found = lines(post(tiny, head="Exam. ", groups=groups))
    texts = [["Exam. Q: no? yes", "Exam. Q: no? no"], ["Exam. Z", "Exam. Yy"]]
    for index, (line, group) in enumerate(zip(found, score_full_texts(tiny, texts), strict=True)):
        assert isinstance(group, GroupScore)
        assert line["index"] == index
        assert [score["tokens"] for score in line["scores"]] == [
            text.token_count for text in group.texts
        ]


def test_a_group_that_fails_has_a_line_too(tiny: HFRunner) -> None:
    groups = [
        {"stem": "a" * 2000, "endings": ["b", "c"]},
        {"stem": "One ", "endings": ["two", "three"]},
    ]
    first, second = lines(post(tiny, groups=groups))
    assert first["error"]["code"] == "context_length_exceeded"
    assert len(second["scores"]) == 2


def test_what_it_does_not_know_is_refused_by_name(tiny: HFRunner) -> None:
    assert post(tiny, adaptr="x").status_code == 400
    assert "adaptr" in error_body(post(tiny, adaptr="x"))["message"]
    assert post(tiny, model="other").status_code == 404
    assert post(tiny, groups=[]).status_code == 400
    assert post(tiny, groups=[{"stem": "x", "endings": []}]).status_code == 400
