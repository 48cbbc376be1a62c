"""OpenCompass itself on small benchmarks.

Skipped unless `llmctl eval install-opencompass` has been run.
"""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.evaluation import EvalSelection
from llmctl.engine.base import BaseEngine
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.openai.batch_client import OpenAIBatchClient
from llmctl.errors import ConfigError
from llmctl.evaluation.opencompass import OpenCompassBackend, venv
from llmctl.evaluation.opencompass.configs import plan_config
from llmctl.evaluation.runner import NativeBackend
from llmctl.services.private_server import serve_privately
from llmctl.types import (
    ApiEndpoint,
    BenchmarkPlan,
    EvalSample,
    ResultCallback,
    SampleResult,
    ignore_progress,
)
from tests.evaluation.benchmark_files import plan_small_benchmark, write_ceval, write_mmlu
from tests.evaluation.model_servers import ScriptedAnswer, chat_reply, scripted_server

pytestmark = pytest.mark.skipif(
    venv.find_python() is None, reason="OpenCompass' environment is not built"
)


def run(
    folder: Path,
    plans: list[BenchmarkPlan],
    engine: BaseEngine,
    on_result: ResultCallback = lambda _: None,
) -> list[SampleResult]:
    backend = OpenCompassBackend(folder, serve_privately)
    return backend.run(plans, engine, on_result, ignore_progress)


def run_scripted(
    folder: Path,
    plan: BenchmarkPlan,
    answer: ScriptedAnswer,
    on_result: ResultCallback = lambda _: None,
) -> list[SampleResult]:
    with (
        scripted_server(answer) as url,
        OpenAIBatchClient(ApiEndpoint(url, "always-a")) as client,
    ):
        client.load()
        return run(folder, [plan], client, on_result)


def of_subject(results: list[SampleResult], subject: str) -> list[SampleResult]:
    return [result for result in results if result.subject == subject]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("failing")


@pytest.fixture(scope="module")
def failing(folder: Path) -> list[SampleResult]:
    """Results of a server that answers A, refuses one sample of law and stops within marxism."""
    plan = plan_small_benchmark("ceval", write_ceval(folder / "data"), "gen", shots=1)
    answered = threading.Semaphore(3)

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any] | int:
        question = body["messages"][-1]["content"]
        if "law2:" in question:
            return 413
        if "marxism" in question and not answered.acquire(blocking=False):
            return 0
        return chat_reply("A")

    reported: list[SampleResult] = []
    results = run_scripted(folder, plan, answer, reported.append)
    assert sorted(r.key for r in reported) == sorted(r.key for r in results)
    return results


def test_a_refused_question_loses_only_its_sample(failing: list[SampleResult]) -> None:
    law = of_subject(failing, "law")
    assert [result.index for result in law if result.error] == [2]
    assert "413: scripted failure" in law[2].error
    assert [result.index for result in failing if result.too_long] == [2]
    assert [r.correct for r in law if not r.error] == [r.gold == "A" for r in law if not r.error]


def test_a_subject_between_failures_is_complete(failing: list[SampleResult]) -> None:
    logic = of_subject(failing, "logic")
    assert [result.error for result in logic] == [""] * 6
    assert [result.correct for result in logic] == [True, False, False, False, True, False]
    assert {(r.reply, r.prediction, r.robust) for r in logic} == {("A", "A", "A")}


def test_a_server_that_stops_loses_only_what_it_has_not_answered(
    failing: list[SampleResult],
) -> None:
    lost = [result for result in of_subject(failing, "marxism") if result.error]
    assert len(lost) == 3
    assert all("does not answer" in result.error for result in lost)


def test_a_resumed_run_requests_only_what_failed(folder: Path, failing: list[SampleResult]) -> None:
    plan = plan_small_benchmark("ceval", folder / "data", "gen", shots=1)
    requests: list[str] = []

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any]:
        requests.append(body["messages"][-1]["content"])
        return chat_reply("A")

    results = run_scripted(folder, plan, answer)
    assert [result.error for result in results] == [""] * 18
    assert len(requests) == sum(bool(result.error) for result in failing) == 4
    assert [(r.prediction, r.correct) for r in of_subject(results, "logic")] == [
        (r.prediction, r.correct) for r in of_subject(failing, "logic")
    ]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> list[BenchmarkPlan]:
    folder = tmp_path_factory.mktemp("benchmarks")
    mmlu = plan_small_benchmark("mmlu", write_mmlu(folder / "mmlu"), "ppl", shots=1)
    # The last two samples, as in a resumed run.
    subjects = tuple(replace(s, questions=s.questions[2:]) for s in mmlu.subjects)
    return [
        plan_small_benchmark("ceval", write_ceval(folder / "ceval"), "ppl", shots=1),
        replace(mmlu, subjects=subjects),
    ]


@pytest.fixture(scope="module")
def long_context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HFRunner]:
    """The tiny model, a token per byte, with a context that holds few-shot examples."""
    from llmctl.types import ModelSpec
    from tests.tiny import save_tiny_model

    folder = save_tiny_model(
        tmp_path_factory.mktemp("models") / "long", max_position_embeddings=2048
    )
    with HFRunner(ModelSpec(str(folder), dtype="float32", device="cpu")) as engine:
        engine.load()
        yield engine


def test_both_backends_agree_on_every_sample(
    plans: list[BenchmarkPlan], long_context: HFRunner, tmp_path: Path
) -> None:
    results = run(tmp_path, plans, long_context)
    native = NativeBackend().run(plans, long_context, lambda _: None, ignore_progress)
    assert len(native) == 18 + 4
    for ours, theirs in zip(native, results, strict=True):
        assert (ours.key, ours.error, theirs.error) == (theirs.key, "", "")
        assert ours.likelihoods == pytest.approx(theirs.likelihoods, abs=1e-5)
        assert (ours.prediction, ours.correct) == (theirs.prediction, theirs.correct)
        assert (ours.fingerprint, ours.shots) == (theirs.fingerprint, theirs.shots)


def test_any_configuration_is_planned_with_the_prompts_of_opencompass_and_evaluated(
    long_context: HFRunner, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    ours = plan_small_benchmark("mmlu", write_mmlu(data / "mmlu", questions=3), "ppl", shots=2)
    selection = EvalSelection(subjects=("lukaemon_mmlu_anatomy",), shots=2, limit=2)
    theirs = plan_config("mmlu_ppl_ac766d", data, selection, ignore_progress)
    assert (theirs.mode, theirs.shots, theirs.prompt_hash[:6]) == ("ppl", 2, "ac766d")
    (subject,) = theirs.subjects
    anatomy = next(one for one in ours.subjects if one.subject == "anatomy")
    samples = anatomy.questions[:2]
    for sample, same in zip(subject.questions, samples, strict=True):
        assert _texts(sample) == _texts(same)
        assert (sample.labels, sample.gold) == (same.labels, same.gold)
    results = run(tmp_path / "run", [theirs], long_context)
    ours = replace(ours, subjects=(replace(anatomy, questions=samples),))
    expected = NativeBackend().run([ours], long_context, lambda _: None, ignore_progress)
    for one, other in zip(results, expected, strict=True):
        assert one.likelihoods == pytest.approx(other.likelihoods, abs=1e-5)
        assert (one.prediction, one.correct) == (other.prediction, other.correct)


def _texts(sample: EvalSample) -> list[str]:
    return [sample.context + text for text in sample.continuations]


def test_a_missing_configuration_or_data_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such configuration") as refused:
        plan_config("helaswag_ppl", tmp_path, EvalSelection(), ignore_progress)
    assert "hellaswag_ppl" in refused.value.hint
    with pytest.raises(ConfigError, match=r"hellaswag/hellaswag\.jsonl is missing"):
        plan_config("hellaswag_ppl_47bff9", tmp_path, EvalSelection(), ignore_progress)
