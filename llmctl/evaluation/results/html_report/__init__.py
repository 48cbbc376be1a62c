"""HTML report of one run, or of several side by side: a single self-contained page.

The page loads no other resource and has a content security policy that forbids it. Charts are drawn
here; the script on the page only filters and shows samples.
"""

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from llmctl.evaluation.results.html_report.charts import bar_chart, heat_map
from llmctl.evaluation.results.html_report.sections import (
    benchmark_title,
    comparison_table,
    legend,
    run_names,
    samples_json,
    setup_table,
    summary_text,
    warning_list,
)
from llmctl.evaluation.results.results_dir import LoadedRun

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render_html(runs: Sequence[LoadedRun]) -> str:
    """Return the page of one run, or of several side by side.

    All text of models and benchmarks is escaped.
    """
    names = run_names(runs)
    benchmarks = list(dict.fromkeys(score.suite for run in runs for score in run.report.suites))
    title = f"{' and '.join(names)}: {', '.join(map(benchmark_title, benchmarks))}"
    parts = [f"<h1>{escape(title)}</h1>", legend(names)]
    for benchmark in benchmarks:
        scores = [
            next((score for score in run.report.suites if score.suite == benchmark), None)
            for run in runs
        ]
        parts += [
            f"<section><h2>{escape(benchmark_title(benchmark))}</h2>",
            *(summary_text(n, s) for n, s in zip(names, scores, strict=True) if s is not None),
            warning_list(names, scores),
            bar_chart(names, scores),
            heat_map(names, scores),
            comparison_table(names, runs, benchmark),
            "</section>",
        ]
    parts += [_render("browser.html", data=samples_json(names, runs)), setup_table(names, runs)]
    return _render(
        "page.html",
        title=escape(title),
        policy=escape(_POLICY),
        style=_read("page.css"),
        body="\n".join(part for part in parts if part),
    )


def _render(name: str, **values: str) -> str:
    """Fill a template file in one pass, so that braces in a value are never replaced."""
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], _read(name))


def _read(name: str) -> str:
    return files("llmctl.evaluation.results.html_report").joinpath(name).read_text(encoding="utf-8")
