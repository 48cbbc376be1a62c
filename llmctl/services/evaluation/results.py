"""The story of `llmctl eval list, show, compare, report, pull, setup`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.data_paths import find_data
from llmctl.evaluation.benchmarks.download import download_benchmark
from llmctl.evaluation.benchmarks.registry import BENCHMARKS, get_benchmark
from llmctl.evaluation.results.loaded_run import LoadedRun
from llmctl.evaluation.results.results_dir import (
    PROMPTS_FILE,
    RUN_FILE,
    ResultsDir,
    read_json,
    read_json_lines,
)
from llmctl.evaluation.results.table import markdown_table
from llmctl.evaluation.scoring.compare import (
    BenchmarkComparison,
    ScoreConfig,
    comparability_warnings,
    compare_results,
    paired_results,
)
from llmctl.services.evaluation.plans import evals_dir
from llmctl.types import EvalSample, ProgressCallback, SampleResult


@dataclass(frozen=True, slots=True)
class BenchmarkInfo:
    """An exam, for a list."""

    name: str
    title: str
    language: str
    questions: int
    subjects: int
    modes: tuple[str, ...]
    """The default first."""
    folder: str | None
    """Where its data is; None where it is not on this machine."""


def list_benchmarks(data_dir: Path | None) -> list[BenchmarkInfo]:
    """Return every exam that llmctl knows."""
    known = []
    for suite in BENCHMARKS.values():
        folder = find_data(suite, data_dir)
        known.append(
            BenchmarkInfo(
                suite.name,
                suite.title,
                suite.language,
                suite.size,
                len(suite.subjects),
                tuple(suite.forms),
                None if folder is None else str(folder),
            )
        )
    return known


def find_run(run: str) -> ResultsDir:
    """Find a run by its folder, or by its name in the store.

    Raises:
        ConfigError: there is none.
    """
    tried = [Path(run).expanduser(), evals_dir() / run]
    for folder in tried:
        if (folder / RUN_FILE).is_file():
            return ResultsDir(folder)
    known = sorted(p.parent.name for p in evals_dir().glob(f"*/{RUN_FILE}"))
    raise ConfigError(
        f"there is no run of an exam at {' or '.join(map(str, tried))}",
        hint=f"the latest: {', '.join(known[-3:])}" if known else "llmctl eval --dataset ceval",
    )


def read_samples(
    run: str, *, wrong: bool = False, subject: str | None = None, index: int | None = None
) -> list[tuple[EvalSample | None, SampleResult]]:
    """Return the questions of a run with their results.

    Raises:
        ConfigError: there is no such run, or it has no such subject.
    """
    folder = find_run(run)
    questions = folder.questions()
    latest = {result.key: result for result in folder.results()}
    subjects = {result.subject for result in latest.values()}
    if subject is not None and subject not in subjects:
        raise ConfigError(
            f"the run has no subject {subject!r}", hint=f"it has {', '.join(sorted(subjects))}"
        )
    return [
        (questions.get(key), result)
        for key, result in latest.items()
        if (subject is None or result.subject == subject)
        and (index is None or result.index == index)
        and not (wrong and result.correct)
    ]


def compare_evaluations(first: str, second: str) -> BenchmarkComparison:
    """Compare two runs over the questions that both answered.

    Raises:
        ConfigError: a run is not there, or they share no question.
    """
    one, two = find_run(first), find_run(second)
    pairs = paired_results(one.results(), two.results())
    if not pairs:
        raise ConfigError(f"{first} and {second} have no question in common")
    categories = {
        (value["suite"], value["subject"]): tuple(value.get("categories", ()))
        for value in read_json_lines(one.path / PROMPTS_FILE)
    }
    found, flipped = compare_results(pairs, categories)
    return BenchmarkComparison(
        tuple(found), tuple(flipped), tuple(comparability_warnings(_made(one), _made(two)))
    )


def _made(folder: ResultsDir) -> dict[str, ScoreConfig]:
    suites = (read_json(folder.path / RUN_FILE) or {}).get("suites", ())
    names = [field.name for field in fields(ScoreConfig)]
    return {suite["suite"]: ScoreConfig(*(suite[name] for name in names)) for suite in suites}


def write_report(runs: Sequence[str], output: Path | None) -> str:
    """Write a page of one run, or of several side by side; return the Markdown table.

    Args:
        output: file to write: .html for the page, .md for the table; None writes none.

    Raises:
        ConfigError: a run is not there or has not ended, or the file cannot be written.
    """
    if output is not None and output.suffix not in (".html", ".md"):
        raise ConfigError(f"{output} is neither .html nor .md")
    found = [LoadedRun.read(find_run(run)) for run in runs]
    table = markdown_table([run.report for run in found])
    if output is not None:
        from llmctl.evaluation.results.html_report import render_html

        try:
            ResultsDir(output.absolute().parent).write_text(
                output.name, table if output.suffix == ".md" else render_html(found)
            )
        except OSError as error:
            raise ConfigError(f"{output} cannot be written: {error}") from error
    return table


def download_data(name: str, progress: ProgressCallback) -> Path:
    """Fetch an exam's data into the store.

    Raises:
        ConfigError: there is no such exam, or nobody gives its data.
    """
    suite = get_benchmark(name)
    try:
        return download_benchmark(suite, progress)
    except ConfigError as error:
        raise ConfigError(
            f"the data of {suite.name} cannot be fetched:\n{error}",
            hint="HF_ENDPOINT names a mirror; or copy the files, and give --data-dir",
        ) from error


def setup_opencompass(wheelhouse: Path | None, progress: ProgressCallback) -> Path:
    """Build the environment of OpenCompass; return its folder.

    Raises:
        ConfigError: this llmctl has no OpenCompass backend, or a package cannot be had.
    """
    try:
        from llmctl.evaluation.opencompass import setup_venv
    except ModuleNotFoundError as error:
        raise ConfigError(
            "this llmctl has no OpenCompass backend",
            hint="--backend native needs no setup",
        ) from error
    folder: Path = setup_venv(wheelhouse, progress)
    return folder
