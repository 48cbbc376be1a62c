"""How does a person who was not there see what came of an exam? One page of HTML, whole by itself.

It loads nothing from elsewhere, and says so to the browser too. Bars and maps are drawn here; the
script in it only looks questions up.
"""

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from llmctl.evaluation.results.html_report.charts import bar_chart, heat_map
from llmctl.evaluation.results.html_report.labels import benchmark_title, run_names
from llmctl.evaluation.results.html_report.samples import samples_json
from llmctl.evaluation.results.html_report.text import (
    comparison_table,
    config_table,
    legend,
    summary_text,
    warning_list,
)
from llmctl.evaluation.results.loaded_run import LoadedRun

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def render_html(runs: Sequence[LoadedRun]) -> str:
    """Return the page of one run, or of several side by side.

    Whatever a model or an exam wrote is text in it, never markup.
    """
    names = run_names(runs)
    suites = list(dict.fromkeys(s.suite for run in runs for s in run.report.suites))
    title = f"{' and '.join(names)}: {', '.join(map(benchmark_title, suites))}"
    parts = [f"<h1>{escape(title)}</h1>", legend(names)]
    for suite in suites:
        found = [next((s for s in run.report.suites if s.suite == suite), None) for run in runs]
        parts += [
            f"<section><h2>{escape(benchmark_title(suite))}</h2>",
            *(summary_text(name, s) for name, s in zip(names, found, strict=True) if s is not None),
            warning_list(names, found),
            bar_chart(names, found),
            heat_map(names, found),
            comparison_table(names, runs, suite),
            "</section>",
        ]
    browser = _filled("browser.html", data=samples_json(names, runs))
    parts += [browser, config_table(names, runs)]
    return _filled(
        "page.html",
        title=escape(title),
        policy=escape(_POLICY),
        style=_file("page.css"),
        body="\n".join(part for part in parts if part),
    )


def _filled(name: str, **values: str) -> str:
    """Put values in a file's places, once: what a value holds is never a place."""
    return re.sub(r"\{\{(\w+)\}\}", lambda place: values[place[1]], _file(name))


def _file(name: str) -> str:
    return files("llmctl.evaluation.results.html_report").joinpath(name).read_text(encoding="utf-8")
