"""Charts of the HTML report: bars with confidence intervals, and a heat map of the subjects."""

from collections.abc import Iterator, Sequence
from html import escape

from llmctl.evaluation.results.table import percent
from llmctl.types import AggregateScore, BenchmarkScore

COLOR_COUNT = 6
"""Distinct colours of runs; further runs repeat them."""
_LABEL_WIDTH, _BAR_WIDTH, _VALUE_WIDTH = 190, 460, 130
"""Widths in pixels of the labels, of the bar of 100 %, and of the values on the right."""
_BAR_HEIGHT, _GAP = 16, 14

ScorePerRun = Sequence[BenchmarkScore | None]
"""A benchmark's score in each run; None if the run does not have the benchmark."""


def bar_chart(names: Sequence[str], scores: ScorePerRun) -> str:
    """Return an SVG with the overall score and each category: a bar for each run."""
    rows = _bar_groups(scores)
    bars = sum(score is not None for _, group in rows for score in group)
    height = _BAR_HEIGHT * bars + _GAP * len(rows) + 34
    svg = [*_axis(height - 24)]
    y = 6.0
    for label, group in rows:
        present = [(run, score) for run, score in enumerate(group) if score is not None]
        middle = y + _BAR_HEIGHT * len(present) / 2 + 4
        svg.append(
            f'<text class="name" x="{_LABEL_WIDTH - 10}" y="{middle}">{escape(label)}</text>'
        )
        for run, score in present:
            svg += _bar(names[run], run, score, y)
            y += _BAR_HEIGHT
        y += _GAP
    chance = next((s.chance for s in scores if s is not None and s.chance is not None), None)
    caption = (
        "Accuracy over the answered samples. The thin line is the 95 % interval: if intervals "
        "overlap widely, the difference may be random."
    )
    if chance is not None:
        x = _LABEL_WIDTH + _BAR_WIDTH * chance
        svg.append(f'<line class="chance" x1="{x}" x2="{x}" y1="0" y2="{height - 24}"/>')
        caption += f" The dashed line is random guessing: {chance:.0%}."
    width = _LABEL_WIDTH + _BAR_WIDTH + _VALUE_WIDTH
    return (
        f'<figure><svg class="bars" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Scores by category">{"".join(svg)}</svg>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _bar_groups(scores: ScorePerRun) -> list[tuple[str, list[AggregateScore | None]]]:
    """Return the overall score and each category, with a score for each run."""
    rows: list[tuple[str, list[AggregateScore | None]]] = [
        ("all samples", [None if score is None else score.overall for score in scores])
    ]
    categories = [() if score is None else score.categories for score in scores]
    rows += [(name, [_find(one, name) for one in categories]) for name in _all_names(categories)]
    return rows


def _all_names(scores: Sequence[Sequence[AggregateScore]]) -> list[str]:
    return list(dict.fromkeys(score.name for of_run in scores for score in of_run))


def _find(scores: Sequence[AggregateScore], name: str) -> AggregateScore | None:
    return next((score for score in scores if score.name == name), None)


def _axis(height: float) -> Iterator[str]:
    for tenth in range(0, 11, 2):
        x = _LABEL_WIDTH + _BAR_WIDTH * tenth / 10
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{height}"/>'
        yield f'<text class="tick" x="{x}" y="{height + 16}">{tenth * 10} %</text>'


def _bar(name: str, run: int, score: AggregateScore, y: float) -> Iterator[str]:
    if score.accuracy is None or score.low is None or score.high is None:
        yield f'<text class="figure" x="{_LABEL_WIDTH}" y="{y + 12}">no answers</text>'
        return
    width, middle = _BAR_WIDTH * score.accuracy, y + _BAR_HEIGHT / 2
    low, high = (_LABEL_WIDTH + _BAR_WIDTH * bound for bound in (score.low, score.high))
    yield (
        f'<rect class="run{run % COLOR_COUNT}" x="{_LABEL_WIDTH}" y="{y + 1}" width="{width:.1f}" '
        f'height="{_BAR_HEIGHT - 2}" rx="2"><title>{escape(_tooltip(name, score))}</title></rect>'
        f'<path class="interval" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8'
        f'M{high:.1f} {middle - 4}v8"/>'
        f'<text class="figure" x="{_LABEL_WIDTH + _BAR_WIDTH + 10}" y="{y + 12}">'
        f'{percent(score.accuracy)} % <tspan class="faint">of {score.answered:,}</tspan></text>'
    )


def _tooltip(name: str, score: AggregateScore) -> str:
    interval = f"{percent(score.low)} to {percent(score.high)} %"
    failed = f", {score.failed} without an answer" if score.failed else ""
    return f"{name}: {score.correct} of {score.answered} right, {interval}{failed}"


def heat_map(names: Sequence[str], scores: ScorePerRun) -> str:
    """Return a grid with a cell for each subject and run; a darker cell has a higher accuracy."""
    subjects = [() if score is None else score.subjects for score in scores]
    listed = _all_names(subjects)
    if len(listed) < 2:
        return ""
    rows = []
    for subject in listed:
        of_subject = [_find(of_run, subject) for of_run in subjects]
        title = next(score.title for score in of_subject if score is not None)
        cells = [_cell(name, score) for name, score in zip(names, of_subject, strict=True)]
        readable = subject.replace("_", " ")
        extra = f' <i lang="zh">{escape(title)}</i>' if title not in (subject, readable) else ""
        rows.append(
            f'<div class="subject"><button type="button" data-subject="{escape(subject)}">'
            f"{escape(readable)}{extra}</button><span class=cells>{''.join(cells)}</span></div>"
        )
    order = "" if len(names) < 2 else " From left to right: " + ", ".join(map(escape, names)) + "."
    return (
        f'<h3>By subject</h3><div class="map">{"".join(rows)}</div>'
        f"<p class=note>Accuracy in per cent.{order} Click a subject to list its samples "
        "below.</p>"
    )


def _cell(name: str, score: AggregateScore | None) -> str:
    if score is None or score.accuracy is None:
        return '<b class="cell none">-</b>'
    share = round(100 * score.accuracy)
    dark = " dark" if share > 55 else ""
    return (
        f'<b class="cell{dark}" style="--share:{share}%" title="{escape(_tooltip(name, score))}">'
        f"{share}</b>"
    )
