"""What is said in words and tables? What was found, what stands against it, how it was made."""

from collections.abc import Iterable, Sequence
from html import escape

from llmctl.evaluation.results.html_report.charts import COLOR_COUNT, ScorePerRun
from llmctl.evaluation.results.loaded_run import LoadedRun
from llmctl.evaluation.results.table import describe_config, percent
from llmctl.evaluation.scoring.compare import (
    ScoreConfig,
    comparability_warnings,
    compare_results,
    paired_results,
)
from llmctl.types import BenchmarkScore, SampleResult

_WAYS = {
    "ppl": "The answer is the option with which the whole text is likeliest to the model.",
    "logprob": "The answer is the option whose words are likeliest after the question.",
    "logprob_norm": "The answer is the option whose words, per byte, are likeliest after the "
    "question.",
    "gen": "The model wrote a reply, and the answer was read out of it.",
}


def legend(names: Sequence[str]) -> str:
    """Name the runs with their colours."""
    keys = (
        f'<li><span class="key run{place % COLOR_COUNT}"></span>{escape(name)}</li>'
        for place, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(keys)}</ul>'


def summary_text(name: str, suite: BenchmarkScore) -> str:
    """Say in a few sentences what came of a suite."""
    score = suite.overall
    if score.accuracy is None:
        return f"<p><b>{escape(name)}</b> answered none of {score.total:,} questions.</p>"
    said = [
        f"<b>{escape(name)}</b> answered {score.answered:,} of {score.total:,} questions; "
        f"<b>{percent(score.accuracy)} %</b> are right (95 % interval {percent(score.low)} to "
        f"{percent(score.high)} %)."
    ]
    if score.macro is not None:
        said.append(
            f"The mean over the {len(suite.subjects)} subjects, which OpenCompass reports, is "
            f"<b>{percent(score.macro)} %</b>."
        )
    if score.robust_accuracy is not None:
        said.append(
            f"Read with more care the same replies have {percent(score.robust_accuracy)} %"
            + (f"; in {score.unparsed} no answer was found." if score.unparsed else ".")
        )
    if suite.chance is not None:
        said.append(f"Guessing gets {suite.chance:.0%}.")
    said.append(f"{_WAYS[suite.mode]} {suite.shots or 'No'} solved examples came before each.")
    return f"<p>{' '.join(said)}</p>"


def warning_list(names: Sequence[str], found: ScorePerRun) -> str:
    """List what should make a reader wary."""
    listed = [
        f"<li><b>{escape(name)}</b>: {escape(text)}</li>"
        for name, suite in zip(names, found, strict=True)
        if suite is not None
        for text in suite.warnings
    ]
    ways = {describe_config(suite) for suite in found if suite is not None}
    if len(ways) > 1:
        listed.append("<li>These runs were made in different ways (see the end of the page).</li>")
    return f'<ul class="warnings">{"".join(listed)}</ul>' if listed else ""


def comparison_table(names: Sequence[str], runs: Sequence[LoadedRun], suite: str) -> str:
    """Compare each run with the first over the questions that both answered."""
    tables = []
    first = _of(runs[0], suite)
    for name, run in zip(names[1:], runs[1:], strict=True):
        pairs = paired_results(first, _of(run, suite))
        if not pairs:
            continue
        found, _ = compare_results(pairs, runs[0].categories)
        rows = [
            (
                "all questions" if one.scope == suite else one.scope.replace("_", " "),
                f"{one.questions:,}",
                percent(one.first),
                percent(one.second),
                f"{100 * (one.second - one.first):+.2f}",
                f"{100 * one.low:+.1f} to {100 * one.high:+.1f}",
                f"{one.gained} / {one.lost}",
                f"{one.p_value:.3g}",
            )
            for one in found
        ]
        whole = found[0]
        verdict = (
            "The difference is within what chance does."
            if whole.p_value > 0.05
            else f"{name if whole.second > whole.first else names[0]} is better by more than "
            "chance does."
        )
        against = "".join(
            f"<li>{escape(mark)}</li>"
            for mark in comparability_warnings(
                *({s.suite: ScoreConfig.of(s) for s in r.report.suites} for r in (runs[0], run))
            )
            if mark.startswith(f"{suite} ")
        )
        columns = ("", "questions", names[0], name, "difference", "95 %", "gained / lost", "p")
        tables.append(
            f"<h3>{escape(name)} against {escape(names[0])}</h3><p>{escape(verdict)}</p>"
            + (f'<ul class="warnings">{against}</ul>' if against else "")
            + _table(columns, rows)
        )
    if not tables:
        return ""
    return "".join(tables) + (
        "<p class=note>Question by question, over those that both answered: gained were wrong in "
        "the first and are right in the second. p by McNemar's exact test; of categories and "
        "subjects corrected by Holm's method. Intervals by paired bootstrap.</p>"
    )


def _of(run: LoadedRun, suite: str) -> list[SampleResult]:
    return [result for result in run.results.values() if result.suite == suite]


def config_table(names: Sequence[str], runs: Sequence[LoadedRun]) -> str:
    """Say how each number came to be."""
    facts = []
    for run in runs:
        report = run.report
        told = {"model": report.model, "asked by": report.backend, **report.how}
        told |= {f"{suite.suite}": describe_config(suite) for suite in report.suites}
        if report.run_id:
            told["run"] = report.run_id
        facts.append(told)
    listed = list(dict.fromkeys(name for told in facts for name in told))
    rows = [(name, *(told.get(name, "") for told in facts)) for name in listed]
    return f"<section><h2>How it was made</h2>{_table(('', *names), rows)}</section>"


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>"
