"""How are scores written down? Rows for a table, and Markdown to paste."""

from collections.abc import Sequence

from llmctl.types import AggregateScore, BenchmarkScore, EvalReport

COLUMNS = ("PART", "SCORE", "95 %", "MACRO", "ROBUST", "RIGHT", "LEFT OUT")


def percent(share: float | None) -> str:
    """Write a share of 1 as per cent with two digits; a dash for none."""
    return "-" if share is None else f"{100 * share:.2f}"


def score_row(score: AggregateScore, name: str | None = None) -> tuple[str, ...]:
    """Return the cells of a line, as `COLUMNS` names them."""
    interval = (
        "-"
        if score.low is None or score.high is None
        else f"{100 * score.low:.1f}-{100 * score.high:.1f}"
    )
    return (
        score.name if name is None else name,
        percent(score.accuracy),
        interval,
        percent(score.macro),
        percent(score.robust_accuracy),
        f"{score.correct}/{score.answered}",
        str(score.failed) if score.failed else "",
    )


def benchmark_rows(suite: BenchmarkScore, *, subjects: bool = True) -> list[tuple[str, ...]]:
    """Return the lines of a suite: itself, its categories, its subjects."""
    rows = [score_row(suite.overall)]
    rows += [score_row(part, f"{suite.suite}/{part.name}") for part in suite.categories]
    if subjects and len(suite.subjects) > 1:
        rows += [score_row(part, f"  {part.name}") for part in suite.subjects]
    return rows


def describe_config(suite: BenchmarkScore) -> str:
    """Say in a line how a number was made: whatever differs here is not to be compared."""
    chance = "" if suite.chance is None else f", chance {suite.chance:.1%}"
    return (
        f"mode {suite.mode}, {suite.shots} shots, prompts {suite.prompt_hash}, "
        f"data {suite.data_hash[:12]}{chance}"
    )


def markdown_table(reports: Sequence[EvalReport]) -> str:
    """Return a table for pasting: a line for each suite and category of each run.

    Scores of one suite that were made differently carry a mark.
    """
    ways: dict[str, list[str]] = {}
    lines = [
        "| model | exam | score % | 95 % | macro % | right | made by |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for report in reports:
        for suite in report.suites:
            way = describe_config(suite)
            known = ways.setdefault(suite.suite, [])
            if way not in known:
                known.append(way)
            mark = "*" * known.index(way)
            for row in benchmark_rows(suite, subjects=False):
                name, score, interval, macro, _, right, _ = row
                lines.append(
                    f"| {report.model} | {name}{mark} | {score} | {interval} | {macro} "
                    f"| {right} | {way} |"
                )
    if any(len(known) > 1 for known in ways.values()):
        lines += ["", "\\* made in another way than the first of this exam: not to be compared."]
    return "\n".join(lines) + "\n"
