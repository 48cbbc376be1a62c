import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llmctl.errors import ConfigError
from llmctl.evaluation.results.html_report import render_html
from llmctl.evaluation.results.results_dir import REPORT_FILE, LoadedRun, ResultsDir
from llmctl.evaluation.scoring.aggregate import score_benchmark
from llmctl.types import BenchmarkPlan, EvalReport, SampleResult
from tests.evaluation.benchmark_files import plan_small_benchmark, write_ceval

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> & {{body}} \u2028'


def results(plan: BenchmarkPlan, correct: int) -> list[SampleResult]:
    """Answer the first `correct` samples of each subject correctly, the others with A."""
    return [
        SampleResult(
            *sample.key,
            sample.fingerprint,
            sample.gold,
            prediction=sample.gold if position < correct else "A",
            correct=position < correct or sample.gold == "A",
            reply=HOSTILE,
        )
        for subject in plan.subjects
        for position, sample in enumerate(subject.questions)
    ]


def finished_run(folder: Path, plan: BenchmarkPlan, model: str, correct: int) -> LoadedRun:
    run = ResultsDir(folder)
    run.begin({"identity": {}}, resume=False)
    run.write_prompts([plan])
    with run.append_results() as append:
        for result in results(plan, correct):
            append(result)
    score = score_benchmark(plan, run.results())
    report = EvalReport(model, "native", {"dtype": "float32"}, (score,), 1.0, str(folder))
    run.write(REPORT_FILE, asdict(report))
    return LoadedRun.read(run)


@pytest.fixture
def plan(tmp_path: Path) -> BenchmarkPlan:
    return plan_small_benchmark("ceval", write_ceval(tmp_path / "data"), "gen", shots=1)


def embedded(html: str) -> dict[str, list]:  # type: ignore[type-arg]
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    parsed: dict[str, list] = json.loads(content)  # type: ignore[type-arg]
    return parsed


def test_a_run_read_from_its_folder_equals_the_run_in_memory(
    plan: BenchmarkPlan, tmp_path: Path
) -> None:
    run = finished_run(tmp_path / "one", plan, "small", 3)
    assert run.report.suites == (score_benchmark(plan, results(plan, 3)),)
    assert run.categories["ceval", "law"] == ("humanities",)
    assert len(run.samples) == len(run.results) == 18
    assert run == LoadedRun.from_plans(run.report, [plan], results(plan, 3))


def test_text_of_a_model_is_never_markup(plan: BenchmarkPlan, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "one", plan, "<b>small</b>", 3)
    hostile = replace(run, report=replace(run.report, how={"dtype": HOSTILE}))
    html = render_html([hostile])
    assert "alert(1)</script>" not in html
    assert "<img" not in html
    assert "<b>small" not in html
    assert embedded(html)["samples"][0][6][0]["reply"] == HOSTILE
    assert "default-src &#x27;none&#x27;" in html
    page = re.sub(r'id="data">.*', "", render_html([run]))
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page)


def test_the_page_holds_every_sample_with_prompt_result_and_gold(
    plan: BenchmarkPlan, tmp_path: Path
) -> None:
    content = embedded(render_html([finished_run(tmp_path / "one", plan, "small", 3)]))
    assert len(content["samples"]) == 18
    name, subject, index, prompt, options, gold, (answer,) = content["samples"][1]
    sample = plan.subjects[0].questions[1]
    assert (name, subject, index, gold) == (*sample.key, sample.gold)
    turns = [(role, content["texts"][number]) for role, number in prompt]
    assert turns == [(m.role, m.content) for m in sample.messages]
    assert [label for label, _ in options] == list("ABCD")
    assert answer["correct"] is True
    # The examples, which all samples of a subject share, are stored once.
    assert len(content["texts"]) == len(set(content["texts"]))


def test_several_runs_are_compared_with_significance_and_warnings(
    plan: BenchmarkPlan, tmp_path: Path
) -> None:
    runs = [
        finished_run(tmp_path / name, plan, "small", correct)
        for name, correct in (("a", 1), ("b", 6))
    ]
    html = render_html(runs)
    assert "small (b) compared with small (a)" in html
    assert "small (b) is significantly better" in html
    assert html.count('<rect class="run1"') == 3  # all samples, and two categories
    (score,) = runs[1].report.suites
    other = replace(runs[1].report, suites=(replace(score, shots=0),))
    html = render_html([runs[0], replace(runs[1], report=other)])
    assert "ceval has shots 1 in the first run and 0 in the second" in html


def test_an_unfinished_run_is_an_error_with_the_command_to_resume(tmp_path: Path) -> None:
    run = ResultsDir(tmp_path)
    run.begin({"identity": {}}, resume=False)
    with pytest.raises(ConfigError, match="has not ended") as refused:
        LoadedRun.read(run)
    assert "--resume" in refused.value.hint
    (tmp_path / REPORT_FILE).write_text("{}")
    with pytest.raises(ConfigError, match=r"report\.json is not valid: model"):
        LoadedRun.read(run)
