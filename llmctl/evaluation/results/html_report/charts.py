"""How are scores drawn? Bars with their intervals by category, and a map of the subjects."""

from collections.abc import Iterator, Sequence
from html import escape

from llmctl.evaluation.results.table import percent
from llmctl.types import AggregateScore, BenchmarkScore

COLOR_COUNT = 6
"""Runs that have a colour of their own; a seventh has the first one's."""
_NAME, _WIDTH, _RIGHT = 190, 460, 130
"""Pixels for names, for the share from 0 to 1, and for the figures behind it."""
_BAR, _GAP = 16, 14

ScorePerRun = Sequence[BenchmarkScore | None]


def bar_chart(names: Sequence[str], found: ScorePerRun) -> str:
    """Draw the suite and its categories: a bar for each run, and the 95 % interval on it."""
    rows = _parts(found)
    height = sum(_BAR * sum(s is not None for s in scores) + _GAP for _, scores in rows) + 34
    drawn = [*_axis(height - 24)]
    y = 6.0
    for label, scores in rows:
        known = [(place, s) for place, s in enumerate(scores) if s is not None]
        middle = y + _BAR * len(known) / 2 + 4
        drawn.append(f'<text class="name" x="{_NAME - 10}" y="{middle}">{escape(label)}</text>')
        for place, score in known:
            drawn += _bar(names[place], place, score, y)
            y += _BAR
        y += _GAP
    chance = next((s.chance for s in found if s is not None and s.chance is not None), None)
    if chance is not None:
        x = _NAME + _WIDTH * chance
        drawn.append(f'<line class="chance" x1="{x}" x2="{x}" y1="0" y2="{height - 24}"/>')
    note = (
        "Share of the answered questions that are right. The thin line is the 95 % interval: where "
        "two of them overlap widely, the difference may be chance."
    ) + (f" The dashed line is what guessing gets: {chance:.0%}." if chance is not None else "")
    width = _NAME + _WIDTH + _RIGHT
    return (
        f'<figure><svg class="bars" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Scores by category">{"".join(drawn)}</svg>'
        f"<figcaption>{note}</figcaption></figure>"
    )


def _parts(found: ScorePerRun) -> list[tuple[str, list[AggregateScore | None]]]:
    """Return the suite, then each category, with its score in each run."""
    rows: list[tuple[str, list[AggregateScore | None]]] = [
        ("all questions", [None if s is None else s.overall for s in found])
    ]
    for name in _names([() if s is None else s.categories for s in found]):
        rows.append((name, [_named(() if s is None else s.categories, name) for s in found]))
    return rows


def _names(several: Sequence[Sequence[AggregateScore]]) -> list[str]:
    return list(dict.fromkeys(score.name for scores in several for score in scores))


def _named(scores: Sequence[AggregateScore], name: str) -> AggregateScore | None:
    return next((score for score in scores if score.name == name), None)


def _axis(height: float) -> Iterator[str]:
    for tenth in range(0, 11, 2):
        x = _NAME + _WIDTH * tenth / 10
        yield f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{height}"/>'
        yield f'<text class="tick" x="{x}" y="{height + 16}">{tenth * 10} %</text>'


def _bar(run: str, place: int, score: AggregateScore, y: float) -> Iterator[str]:
    if score.accuracy is None or score.low is None or score.high is None:
        yield f'<text class="figure" x="{_NAME}" y="{y + 12}">nothing answered</text>'
        return
    width, middle = _WIDTH * score.accuracy, y + _BAR / 2
    low, high = (_NAME + _WIDTH * end for end in (score.low, score.high))
    yield (
        f'<rect class="run{place % COLOR_COUNT}" x="{_NAME}" y="{y + 1}" width="{width:.1f}" '
        f'height="{_BAR - 2}" rx="2"><title>{escape(_told(run, score))}</title></rect>'
        f'<path class="interval" d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8'
        f'M{high:.1f} {middle - 4}v8"/>'
        f'<text class="figure" x="{_NAME + _WIDTH + 10}" y="{y + 12}">{percent(score.accuracy)} % '
        f'<tspan class="faint">of {score.answered:,}</tspan></text>'
    )


def _told(run: str, score: AggregateScore) -> str:
    interval = f"{percent(score.low)} to {percent(score.high)} %"
    failed = f", {score.failed} without an answer" if score.failed else ""
    return f"{run}: {score.correct} of {score.answered} right, {interval}{failed}"


def heat_map(names: Sequence[str], found: ScorePerRun) -> str:
    """Draw a field for each subject, the darker the more is right; a column for each run."""
    listed = _names([() if s is None else s.subjects for s in found])
    if len(listed) < 2:
        return ""
    fields = []
    for name in listed:
        scores = [_named(() if s is None else s.subjects, name) for s in found]
        title = next(score.title for score in scores if score is not None)
        cells = [_cell(run, score) for run, score in zip(names, scores, strict=True)]
        shown = name.replace("_", " ")
        also = f' <i lang="zh">{escape(title)}</i>' if title not in (name, shown) else ""
        fields.append(
            f'<div class="subject"><button type="button" data-subject="{escape(name)}">'
            f"{escape(shown)}{also}</button><span class=cells>{''.join(cells)}</span></div>"
        )
    order = "" if len(names) < 2 else " From left to right: " + ", ".join(map(escape, names)) + "."
    return (
        f'<h3>By subject</h3><div class="map">{"".join(fields)}</div>'
        f"<p class=note>Per cent right, darker is more.{order} A subject's name shows its "
        "questions below.</p>"
    )


def _cell(run: str, score: AggregateScore | None) -> str:
    if score is None or score.accuracy is None:
        return '<b class="cell none">-</b>'
    share = round(100 * score.accuracy)
    dark = " dark" if share > 55 else ""
    return (
        f'<b class="cell{dark}" style="--share:{share}%" title="{escape(_told(run, score))}">'
        f"{share}</b>"
    )
