"""Both backends on real benchmarks, compared with the results of OpenCompass 0.5.4.

OpenCompass' side also needs `llmctl eval install-opencompass`.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from llmctl.config.evaluation import EvalSelection
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.openai.batch_client import OpenAIBatchClient
from llmctl.evaluation.backend import Backend
from llmctl.evaluation.benchmarks.data_paths import locate_data
from llmctl.evaluation.benchmarks.registry import get_benchmark
from llmctl.evaluation.opencompass import OpenCompassBackend, venv
from llmctl.evaluation.plan import plan_benchmark
from llmctl.evaluation.runner import NativeBackend
from llmctl.evaluation.scoring.aggregate import score_benchmark
from llmctl.services.private_server import serve_privately
from llmctl.types import ApiEndpoint, BenchmarkPlan, ignore_progress
from tests.evaluation.golden import DATA, golden, with_data
from tests.evaluation.model_servers import chat_reply, scripted_server

pytestmark = with_data
both_backends = pytest.mark.parametrize(
    "name",
    [
        "native",
        pytest.param(
            "opencompass",
            marks=pytest.mark.skipif(
                venv.find_python() is None, reason="OpenCompass' environment is not built"
            ),
        ),
    ],
)


def plan_real(name: str, **selection: Any) -> BenchmarkPlan:
    benchmark = get_benchmark(name)
    folder = locate_data(benchmark, Path(DATA or ""))
    return plan_benchmark(benchmark, folder, EvalSelection(**selection))


def backend(name: str, folder: Path) -> Backend:
    return NativeBackend() if name == "native" else OpenCompassBackend(folder, serve_privately)


@both_backends
@pytest.mark.real_model
def test_the_loss_of_every_label_equals_that_of_opencompass(
    smollm: HFRunner, tmp_path: Path, name: str
) -> None:
    plan = plan_real("mmlu", mode="ppl", subjects=("anatomy",), limit=8)
    results = backend(name, tmp_path).run([plan], smollm, lambda _: None, ignore_progress)
    for result, sample in zip(results, plan.subjects[0].questions, strict=True):
        expected = golden("oc_mmlu_anatomy_ppl_first8_bs1.json")[str(result.index)]
        for label, text in zip(sample.labels, sample.continuations, strict=True):
            theirs = expected[f"label: {label}"]
            assert sample.context + text == theirs["prompt"]
            assert result.likelihoods[label] == pytest.approx(theirs["PPL"], abs=1e-5)
        assert result.prediction == expected["prediction"]


@both_backends
def test_always_answering_a_scores_22_26_and_gets_the_prompts_of_opencompass(
    tmp_path: Path, name: str
) -> None:
    plan = plan_real("ceval", mode="gen")
    requests: list[list[dict[str, str]]] = []

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any]:
        requests.append(body["messages"])
        return chat_reply("A")

    with (
        scripted_server(answer) as url,
        OpenAIBatchClient(ApiEndpoint(url, "always-a")) as client,
    ):
        client.load()
        results = backend(name, tmp_path).run([plan], client, lambda _: None, ignore_progress)
    score = score_benchmark(plan, results)
    assert round(100 * (score.overall.macro or 0), 2) == 22.26
    assert round(100 * (score.overall.accuracy or 0), 2) == 23.03
    expected = golden("oc_ceval_always_A_accuracy.json")
    for subject in score.subjects:
        assert 100 * (subject.accuracy or 0) == pytest.approx(expected[f"ceval-{subject.name}"])
    roles = {"HUMAN": "user", "BOT": "assistant"}
    sent = {json.dumps([(m["role"], m["content"]) for m in messages]) for messages in requests}
    prompts = golden("oc_ceval_gen_prompts_52.json")
    assert len(prompts) == 52
    for one in prompts.values():
        turns = [(roles[turn["role"]], turn["prompt"]) for turn in one["first_prompt"]]
        assert json.dumps(turns) in sent
