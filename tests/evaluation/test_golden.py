"""Both backends over the real exams, against what OpenCompass 0.5.4 itself gave for them.

The data may not be part of this project, so they are named by LLMCTL_EXAM_DATA (a folder with
`ceval` and `mmlu`) and LLMCTL_EXAM_GOLDEN. OpenCompass' side needs
`llmctl eval install-opencompass`.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.evaluation.backend import Backend, ServerModel
from llmctl.evaluation.benchmarks.data_paths import locate_data
from llmctl.evaluation.benchmarks.registry import get_benchmark
from llmctl.evaluation.opencompass import OpenCompassBackend, venv
from llmctl.evaluation.plan import EvalSelection, plan_benchmark
from llmctl.evaluation.runner import NativeBackend
from llmctl.evaluation.scoring.aggregate import score_benchmark
from llmctl.services.private_server import serve_privately
from llmctl.types import BenchmarkPlan, ignore_progress
from tests.evaluation.scripted_server import chat_reply, scripted_server

DATA, GOLDEN = (os.environ.get(f"LLMCTL_EXAM_{name}") for name in ("DATA", "GOLDEN"))
pytestmark = pytest.mark.skipif(
    not (DATA and GOLDEN), reason="LLMCTL_EXAM_DATA and LLMCTL_EXAM_GOLDEN name no folders"
)
both = pytest.mark.parametrize(
    "name",
    [
        "native",
        pytest.param(
            "opencompass",
            marks=pytest.mark.skipif(
                venv.find_python() is None, reason="OpenCompass' environment has not been built"
            ),
        ),
    ],
)


def golden(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(GOLDEN or "") / name).read_text(encoding="utf-8"))
    return found


def planned(name: str, **wanted: Any) -> BenchmarkPlan:
    suite = get_benchmark(name)
    return plan_benchmark(suite, locate_data(suite, Path(DATA or "")), EvalSelection(**wanted))


def backend(name: str, folder: Path) -> Backend:
    return NativeBackend() if name == "native" else OpenCompassBackend(folder, print)


@both
@pytest.mark.real_model
def test_every_label_s_loss_is_opencompass_own_to_five_digits(
    smollm: HFRunner, tmp_path: Path, name: str
) -> None:
    plan = planned("mmlu", mode="ppl", subjects=("anatomy",), limit=8)
    with serve_privately(smollm) as endpoint:
        candidate = smollm if name == "native" else endpoint
        results = backend(name, tmp_path).run([plan], candidate, lambda _: None, ignore_progress)
    for result, question in zip(results, plan.subjects[0].questions, strict=True):
        expected = golden("oc_mmlu_anatomy_ppl_first8_bs1.json")[str(result.index)]
        for label, end in zip(question.labels, question.continuations, strict=True):
            theirs = expected[f"label: {label}"]
            assert question.context + end == theirs["prompt"]
            assert result.likelihoods[label] == pytest.approx(theirs["PPL"], abs=1e-5)
        assert result.prediction == expected["prediction"]


@both
def test_a_server_that_always_says_a_scores_22_26_and_is_asked_in_opencompass_own_words(
    tmp_path: Path, name: str
) -> None:
    plan = planned("ceval", mode="gen")
    asked: list[list[dict[str, str]]] = []

    def answer(_: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body["messages"])
        return chat_reply("A")

    with scripted_server(answer) as url:
        candidate = ServerModel(url, "always-a")
        results = backend(name, tmp_path).run([plan], candidate, lambda _: None, ignore_progress)
    score = score_benchmark(plan, results)
    assert round(100 * (score.overall.macro or 0), 2) == 22.26
    assert round(100 * (score.overall.accuracy or 0), 2) == 23.03
    expected = golden("oc_ceval_always_A_accuracy.json")
    for subject in score.subjects:
        assert 100 * (subject.accuracy or 0) == pytest.approx(expected[f"ceval-{subject.name}"])
    roles = {"HUMAN": "user", "BOT": "assistant"}
    sent = {json.dumps([(m["role"], m["content"]) for m in messages]) for messages in asked}
    prompts = golden("oc_ceval_gen_prompts_52.json")
    assert len(prompts) == 52
    for one in prompts.values():
        turns = [(roles[turn["role"]], turn["prompt"]) for turn in one["first_prompt"]]
        assert json.dumps(turns) in sent
