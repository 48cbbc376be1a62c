"""Score tables: rows for the terminal, and Markdown."""

from collections.abc import Sequence

from llmctl.types import AggregateScore, BenchmarkScore, BenchmarkSetup, EvalReport

COLUMNS = ("PART", "SCORE", "95 %", "MACRO", "ROBUST", "RIGHT", "LEFT OUT")


def percent(share: float | None) -> str:
    """Format a share between 0 and 1 as per cent with two decimals; `-` for None."""
    return "-" if share is None else f"{100 * share:.2f}"


def score_row(score: AggregateScore, name: str | None = None) -> tuple[str, ...]:
    """Return the cells of one row, in the order of `COLUMNS`."""
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


def benchmark_rows(score: BenchmarkScore, *, subjects: bool = True) -> list[tuple[str, ...]]:
    """Return the rows of a benchmark: overall, its categories, its subjects."""
    rows = [score_row(score.overall)]
    rows += [score_row(part, f"{score.suite}/{part.name}") for part in score.categories]
    if subjects and len(score.subjects) > 1:
        rows += [score_row(part, f"  {part.name}") for part in score.subjects]
    return rows


def describe_setup(setup: BenchmarkSetup) -> str:
    """Return one line with the setup; scores with different lines are not comparable."""
    chance = "" if setup.chance is None else f", chance {setup.chance:.1%}"
    return (
        f"mode {setup.mode}, {setup.shots} shots, prompts {setup.prompt_hash}, "
        f"data {setup.data_hash[:12]}{chance}"
    )


def markdown_table(reports: Sequence[EvalReport]) -> str:
    """Return a Markdown table with a row per benchmark and category of each run.

    Scores of a benchmark with different setups are marked with asterisks.
    """
    setups: dict[str, list[str]] = {}
    lines = [
        "| model | benchmark | score % | 95 % | macro % | right | setup |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for report in reports:
        for score in report.suites:
            setup = describe_setup(score)
            known = setups.setdefault(score.suite, [])
            if setup not in known:
                known.append(setup)
            mark = "*" * known.index(setup)
            for row in benchmark_rows(score, subjects=False):
                name, accuracy, interval, macro, _, right, _ = row
                lines.append(
                    f"| {report.model} | {name}{mark} | {accuracy} | {interval} | {macro} "
                    f"| {right} | {setup} |"
                )
    if any(len(known) > 1 for known in setups.values()):
        lines += ["", "\\* setup differs from the benchmark's first row: not comparable."]
    return "\n".join(lines) + "\n"
