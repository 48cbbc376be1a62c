"""Services of `llmctl eval list, show, compare, report, pull` and `install-opencompass`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.data_paths import find_data
from llmctl.evaluation.benchmarks.download import download_benchmark
from llmctl.evaluation.benchmarks.registry import BENCHMARKS, get_benchmark
from llmctl.evaluation.results.results_dir import RUN_FILE, LoadedRun, ResultsDir
from llmctl.evaluation.results.table import markdown_table
from llmctl.evaluation.scoring.compare import (
    BenchmarkComparison,
    comparability_warnings,
    compare_results,
    paired_results,
)
from llmctl.services.evaluation.plans import evals_dir
from llmctl.types import EvalSample, ProgressCallback, SampleResult


@dataclass(frozen=True, slots=True)
class BenchmarkInfo:
    """A built-in benchmark, for listing."""

    name: str
    title: str
    language: str
    questions: int
    subjects: int
    modes: tuple[str, ...]
    """The default first."""
    folder: str | None
    """Folder of its data; None if it is not on this machine."""


def list_benchmarks(data_dir: Path | None) -> list[BenchmarkInfo]:
    """Return all built-in benchmarks."""
    listed = []
    for benchmark in BENCHMARKS.values():
        folder = find_data(benchmark, data_dir)
        listed.append(
            BenchmarkInfo(
                benchmark.name,
                benchmark.title,
                benchmark.language,
                benchmark.size,
                len(benchmark.subjects),
                tuple(benchmark.prompts),
                None if folder is None else str(folder),
            )
        )
    return listed


def find_run(run: str) -> ResultsDir:
    """Return a run by its folder, or by its name in the store.

    Raises:
        ConfigError: there is no such run.
    """
    candidates = [Path(run).expanduser(), evals_dir() / run]
    for folder in candidates:
        if (folder / RUN_FILE).is_file():
            return ResultsDir(folder)
    known = sorted(file.parent.name for file in evals_dir().glob(f"*/{RUN_FILE}"))
    raise ConfigError(
        f"no evaluation run at {' or '.join(map(str, candidates))}",
        hint=f"the latest: {', '.join(known[-3:])}" if known else "llmctl eval --dataset ceval",
    )


def read_samples(
    run: str, *, wrong: bool = False, subject: str | None = None, index: int | None = None
) -> list[tuple[EvalSample | None, SampleResult]]:
    """Return the samples of a run with their results.

    Args:
        run: as `find_run`.
        wrong: only samples that were not answered correctly.
        subject: only samples of this subject.
        index: only samples with this index.

    Raises:
        ConfigError: there is no such run, or it has no such subject.
    """
    folder = find_run(run)
    samples, _ = folder.prompts()
    latest = {result.key: result for result in folder.results()}
    subjects = {result.subject for result in latest.values()}
    if subject is not None and subject not in subjects:
        raise ConfigError(
            f"the run has no subject {subject!r}", hint=f"it has {', '.join(sorted(subjects))}"
        )
    return [
        (samples.get(key), result)
        for key, result in latest.items()
        if (subject is None or result.subject == subject)
        and (index is None or result.index == index)
        and not (wrong and result.correct)
    ]


def compare_evaluations(first: str, second: str) -> BenchmarkComparison:
    """Compare two runs over the samples that both answered.

    Raises:
        ConfigError: a run does not exist, or they share no sample.
    """
    one, two = find_run(first), find_run(second)
    pairs = paired_results(one.results(), two.results())
    if not pairs:
        raise ConfigError(f"{first} and {second} have no sample in common")
    comparisons, flipped = compare_results(pairs, one.prompts()[1])
    warnings = comparability_warnings(one.setups(), two.setups())
    return BenchmarkComparison(tuple(comparisons), tuple(flipped), tuple(warnings))


def write_report(runs: Sequence[str], output: Path | None) -> str:
    """Return the Markdown table of several runs, and write a report file.

    Args:
        runs: as `find_run`.
        output: .html writes a page, .md writes the table; None writes no file.

    Raises:
        ConfigError: a run does not exist or has not ended, or the file cannot be written.
    """
    if output is not None and output.suffix not in (".html", ".md"):
        raise ConfigError(f"{output} must end in .html or .md")
    loaded = [LoadedRun.read(find_run(run)) for run in runs]
    table = markdown_table([run.report for run in loaded])
    if output is not None:
        from llmctl.evaluation.results.html_report import render_html

        try:
            ResultsDir(output.absolute().parent).write_text(
                output.name, table if output.suffix == ".md" else render_html(loaded)
            )
        except OSError as error:
            raise ConfigError(f"cannot write {output}: {error}") from error
    return table


def download_data(name: str, progress: ProgressCallback) -> Path:
    """Download the data of a benchmark into the store; return its folder.

    Raises:
        ConfigError: there is no such benchmark, or the download failed.
    """
    benchmark = get_benchmark(name)
    try:
        return download_benchmark(benchmark, progress)
    except ConfigError as error:
        raise ConfigError(
            f"cannot download {benchmark.name}:\n{error}",
            hint="HF_ENDPOINT names a mirror; or copy the files and use --data-dir",
        ) from error


def setup_opencompass(wheelhouse: Path | None, progress: ProgressCallback) -> Path:
    """Create the virtual environment of OpenCompass; return the path of its Python.

    Raises:
        ConfigError: this Python is too new for OpenCompass, or the wheelhouse does not exist.
        LlmctlError: a package cannot be installed, or OpenCompass does not start.
    """
    from llmctl.evaluation.opencompass import setup_venv

    return setup_venv(wheelhouse, progress)
