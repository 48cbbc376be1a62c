import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from llmctl.errors import ConfigError
from llmctl.evaluation.results.html_report import render_html
from llmctl.evaluation.results.loaded_run import LoadedRun
from llmctl.evaluation.results.results_dir import REPORT_FILE, ResultsDir
from llmctl.evaluation.scoring.aggregate import score_benchmark
from llmctl.types import BenchmarkPlan, EvalReport, SampleResult
from tests.evaluation.small_benchmark import plan_small_benchmark, write_ceval

EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> & {{body}} \u2028'


def results(exam: BenchmarkPlan, right: int) -> list[SampleResult]:
    """Answer so many questions of each subject rightly, then A, in a hostile reply."""
    return [
        SampleResult(
            *question.key,
            question.fingerprint,
            question.gold,
            prediction=question.gold if at < right else "A",
            correct=at < right or question.gold == "A",
            reply=EVIL,
        )
        for subject in exam.subjects
        for at, question in enumerate(subject.questions)
    ]


def ended(folder: Path, exam: BenchmarkPlan, model: str, right: int) -> LoadedRun:
    run = ResultsDir(folder)
    run.begin({"identity": {}}, resume=False)
    run.write_prompts([exam])
    run.append(results(exam, right))
    score = score_benchmark(exam, run.results())
    report = EvalReport(model, "native", {"dtype": "float32"}, (score,), 1.0, str(folder))
    run.write(REPORT_FILE, asdict(report))
    return LoadedRun.read(run)


@pytest.fixture
def exam(tmp_path: Path) -> BenchmarkPlan:
    return plan_small_benchmark("ceval", write_ceval(tmp_path / "data"), "gen", shots=1)


def embedded(html: str) -> dict[str, list]:  # type: ignore[type-arg]
    (held,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', html)
    found: dict[str, list] = json.loads(held)  # type: ignore[type-arg]
    return found


def test_a_run_is_read_back_as_it_was(exam: BenchmarkPlan, tmp_path: Path) -> None:
    run = ended(tmp_path / "one", exam, "small", 3)
    assert run.report.suites == (score_benchmark(exam, results(exam, 3)),)
    assert run.categories["ceval", "law"] == ("humanities",)
    assert len(run.questions) == len(run.results) == 18


def test_what_a_model_wrote_is_text_and_never_markup(exam: BenchmarkPlan, tmp_path: Path) -> None:
    run = ended(tmp_path / "one", exam, "<b>small</b>", 3)
    hostile = replace(run, report=replace(run.report, how={"dtype": EVIL}))
    html = render_html([hostile])
    assert "alert(1)</script>" not in html
    assert "<img" not in html
    assert "<b>small" not in html
    held = embedded(html)
    assert held["questions"][0][6][0]["reply"] == EVIL
    assert "default-src &#x27;none&#x27;" in html
    own = re.sub(r'id="data">.*', "", render_html([run]))
    assert not re.search(r"(src|href)=|url\(|@import|https?://", own)


def test_a_page_holds_every_question_with_prompt_answer_and_gold(
    exam: BenchmarkPlan, tmp_path: Path
) -> None:
    held = embedded(render_html([ended(tmp_path / "one", exam, "small", 3)]))
    assert len(held["questions"]) == 18
    suite, subject, index, prompt, endings, gold, (answer,) = held["questions"][1]
    asked = exam.subjects[0].questions[1]
    assert (suite, subject, index, gold) == (*asked.key, asked.gold)
    turns = [(role, held["texts"][number]) for role, number in prompt]
    assert turns == [(m.role, m.content) for m in asked.messages]
    assert [label for label, _ in endings] == list("ABCD")
    assert answer["right"] is True
    # The examples of a subject are the same for all its questions, and are held once.
    assert len(held["texts"]) == len(set(held["texts"]))


def test_several_runs_stand_side_by_side_with_what_the_difference_is_worth(
    exam: BenchmarkPlan, tmp_path: Path
) -> None:
    pair = [ended(tmp_path / name, exam, "small", right) for name, right in (("a", 1), ("b", 6))]
    html = render_html(pair)
    assert "small (b) against small (a)" in html
    assert "small (b) is better by more than chance does" in html
    assert html.count('<rect class="run1"') == 3  # all questions, and two categories
    (other,) = pair[1].report.suites
    other = replace(other, shots=0)
    marked = render_html(
        [pair[0], replace(pair[1], report=replace(pair[1].report, suites=(other,)))]
    )
    assert "ceval was made with shots 1 and 0" in marked


def test_a_run_that_has_not_ended_says_how_to_go_on(tmp_path: Path) -> None:
    run = ResultsDir(tmp_path)
    run.begin({"identity": {}}, resume=False)
    with pytest.raises(ConfigError, match="has not ended") as refused:
        LoadedRun.read(run)
    assert "--resume" in refused.value.hint
    (tmp_path / REPORT_FILE).write_text("{}")
    with pytest.raises(ConfigError, match="is no report"):
        LoadedRun.read(run)
