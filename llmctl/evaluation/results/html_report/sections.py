"""Text, tables and embedded samples of the HTML report."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from llmctl.evaluation.benchmarks.registry import BENCHMARKS
from llmctl.evaluation.results.html_report.charts import COLOR_COUNT, ScorePerRun
from llmctl.evaluation.results.results_dir import LoadedRun
from llmctl.evaluation.results.table import describe_setup, percent
from llmctl.evaluation.scoring.compare import (
    comparability_warnings,
    compare_results,
    paired_results,
)
from llmctl.types import BenchmarkScore, EvalSample, SampleResult

_MODES = {
    "ppl": "The answer is the option whose full text has the lowest mean cross-entropy.",
    "logprob": "The answer is the option whose text is most likely after the question.",
    "logprob_norm": "The answer is the option whose text is most likely, per byte, after the "
    "question.",
    "gen": "The model generated a reply, and the answer was extracted from it.",
}


def run_names(runs: Sequence[LoadedRun]) -> list[str]:
    """Return a unique name for each run: its model, and its folder if models are equal."""
    models = [_short_name(run.report.model) for run in runs]
    repeated = {name for name, count in Counter(models).items() if count > 1}
    names: list[str] = []
    for model, run in zip(models, runs, strict=True):
        name = f"{model} ({Path(run.report.folder).name})" if model in repeated else model
        while name in names:
            name += "'"
        names.append(name)
    return names


def _short_name(model: str) -> str:
    return Path(model).name if Path(model).is_absolute() else model


def benchmark_title(name: str) -> str:
    """Return the title of a benchmark; a custom benchmark has its name."""
    known = BENCHMARKS.get(name)
    return name if known is None else known.title


def legend(names: Sequence[str]) -> str:
    """Return the list of runs with their colours."""
    keys = (
        f'<li><span class="key run{run % COLOR_COUNT}"></span>{escape(name)}</li>'
        for run, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(keys)}</ul>'


def summary_text(name: str, benchmark: BenchmarkScore) -> str:
    """Return a paragraph with the result of a run in a benchmark."""
    score = benchmark.overall
    if score.accuracy is None:
        return f"<p><b>{escape(name)}</b> answered none of {score.total:,} samples.</p>"
    sentences = [
        f"<b>{escape(name)}</b> answered {score.answered:,} of {score.total:,} samples; "
        f"<b>{percent(score.accuracy)} %</b> are right (95 % interval {percent(score.low)} to "
        f"{percent(score.high)} %)."
    ]
    if score.macro is not None:
        sentences.append(
            f"The mean over the {len(benchmark.subjects)} subjects, which OpenCompass reports, is "
            f"<b>{percent(score.macro)} %</b>."
        )
    if score.robust_accuracy is not None:
        sentences.append(
            f"Robust extraction scores {percent(score.robust_accuracy)} %"
            + (f" and finds no answer in {score.unparsed} replies." if score.unparsed else ".")
        )
    if benchmark.chance is not None:
        sentences.append(f"Random guessing gets {benchmark.chance:.0%}.")
    shots = benchmark.shots or "no"
    sentences.append(f"{_MODES[benchmark.mode]} Each prompt has {shots} examples.")
    return f"<p>{' '.join(sentences)}</p>"


def warning_list(names: Sequence[str], scores: ScorePerRun) -> str:
    """Return the warnings of all runs of a benchmark; empty if there are none."""
    items = [
        f"<li><b>{escape(name)}</b>: {escape(text)}</li>"
        for name, score in zip(names, scores, strict=True)
        if score is not None
        for text in score.warnings
    ]
    if len({describe_setup(score) for score in scores if score is not None}) > 1:
        items.append("<li>These runs have different setups (see the end of the page).</li>")
    return f'<ul class="warnings">{"".join(items)}</ul>' if items else ""


def comparison_table(names: Sequence[str], runs: Sequence[LoadedRun], benchmark: str) -> str:
    """Return a table for each further run that compares it with the first."""
    first = runs[0]
    tables = []
    for name, run in zip(names[1:], runs[1:], strict=True):
        pairs = paired_results(_results(first, benchmark), _results(run, benchmark))
        if not pairs:
            continue
        comparisons, _ = compare_results(pairs, first.categories)
        rows = [
            (
                "all samples" if one.scope == benchmark else one.scope.replace("_", " "),
                f"{one.questions:,}",
                percent(one.first),
                percent(one.second),
                f"{100 * (one.second - one.first):+.2f}",
                f"{100 * one.low:+.1f} to {100 * one.high:+.1f}",
                f"{one.gained} / {one.lost}",
                f"{one.p_value:.3g}",
            )
            for one in comparisons
        ]
        overall = comparisons[0]
        better = name if overall.second > overall.first else names[0]
        verdict = (
            "The difference is not significant (p > 0.05)."
            if overall.p_value > 0.05
            else f"{better} is significantly better (p < 0.05)."
        )
        warnings = "".join(
            f"<li>{escape(warning)}</li>"
            for warning in comparability_warnings(first.report.suites, run.report.suites)
            if warning.startswith(f"{benchmark} ")
        )
        columns = ("", "samples", names[0], name, "difference", "95 %", "gained / lost", "p")
        tables.append(
            f"<h3>{escape(name)} compared with {escape(names[0])}</h3><p>{escape(verdict)}</p>"
            + (f'<ul class="warnings">{warnings}</ul>' if warnings else "")
            + _table(columns, rows)
        )
    if not tables:
        return ""
    return "".join(tables) + (
        "<p class=note>Paired over the samples that both runs answered; gained: wrong in the "
        "first run, right in the second. p by McNemar's exact test, for categories and subjects "
        "corrected by Holm's method. Intervals by paired bootstrap.</p>"
    )


def _results(run: LoadedRun, benchmark: str) -> list[SampleResult]:
    return [result for result in run.results.values() if result.suite == benchmark]


def setup_table(names: Sequence[str], runs: Sequence[LoadedRun]) -> str:
    """Return a table with the model settings and benchmark setups of each run."""
    settings = []
    for run in runs:
        report = run.report
        values = {"model": report.model, "backend": report.backend, **report.how}
        values |= {score.suite: describe_setup(score) for score in report.suites}
        if report.run_id:
            values["run"] = report.run_id
        settings.append(values)
    keys = list(dict.fromkeys(key for values in settings for key in values))
    rows = [(key, *(values.get(key, "") for values in settings)) for key in keys]
    return f"<section><h2>Setup</h2>{_table(('', *names), rows)}</section>"


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = ("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def samples_json(names: Sequence[str], runs: Sequence[LoadedRun]) -> str:
    """Return all samples and results as JSON that is safe in a `<script>` element.

    `{"runs": [name], "texts": [text], "samples": [sample]}`; each distinct text is stored once. A
    sample is `[benchmark, subject, index, prompt, options, gold, [result or null for each run]]`;
    `prompt` is a list of `[role, index of text]`, `options` of `[label, index of text]`.
    """
    texts: dict[str, int] = {}

    def indexed(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, int]]:
        return [(name, texts.setdefault(text, len(texts))) for name, text in pairs]

    samples = []
    for key in dict.fromkeys(key for run in runs for key in run.results):
        sample = next((run.samples[key] for run in runs if key in run.samples), None)
        results = [run.results.get(key) for run in runs]
        gold = next(result.gold for result in results if result is not None)
        prompt = [] if sample is None else indexed(_prompt_parts(sample))
        options = [] if sample is None else indexed(_options(sample))
        answers = [None if result is None else _result_json(result) for result in results]
        samples.append([*key, prompt, options, gold, answers])
    content = {"runs": list(names), "texts": list(texts), "samples": samples}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    # In JSON these characters occur only in strings. Escaped, they cannot end the script element.
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _prompt_parts(sample: EvalSample) -> list[tuple[str, str]]:
    if sample.messages:
        return [(message.role, message.content or "") for message in sample.messages]
    gap = sample.gap if sample.examples else ""
    parts = (sample.head, *sample.examples, gap + sample.body)
    return [("", part) for part in parts if part]


def _options(sample: EvalSample) -> list[tuple[str, str]]:
    return list(zip(sample.labels, sample.continuations or sample.options, strict=False))


def _result_json(result: SampleResult) -> dict[str, Any]:
    value: dict[str, Any] = {"prediction": result.prediction, "correct": result.correct}
    if result.likelihoods:
        value["scores"] = [float(f"{score:.6g}") for score in result.likelihoods.values()]
    for name in ("reply", "robust", "rule", "error", "truncated"):
        if field := getattr(result, name):
            value[name] = field
    return value
