"""The story of `llmctl eval list, show, compare, report, pull, setup`."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.data_paths import find
from llmctl.evaluation.benchmarks.download import pull
from llmctl.evaluation.benchmarks.registry import SUITES, find_suite
from llmctl.evaluation.results.loaded_run import PastRun
from llmctl.evaluation.results.results_dir import PROMPTS, RUN, RunFolder, read_json, read_lines
from llmctl.evaluation.results.table import markdown
from llmctl.evaluation.scoring.compare import Compared, Made, compare_runs, marks, pairs_of
from llmctl.services.evaluation.plans import evals_folder
from llmctl.types import ProgressCallback, Question, QuestionResult


@dataclass(frozen=True, slots=True)
class KnownSuite:
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


def list_suites(data_dir: Path | None) -> list[KnownSuite]:
    """Return every exam that llmctl knows."""
    known = []
    for suite in SUITES.values():
        folder = find(suite, data_dir)
        known.append(
            KnownSuite(
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


def run_folder(run: str) -> RunFolder:
    """Find a run by its folder, or by its name in the store.

    Raises:
        ConfigError: there is none.
    """
    tried = [Path(run).expanduser(), evals_folder() / run]
    for folder in tried:
        if (folder / RUN).is_file():
            return RunFolder(folder)
    known = sorted(p.parent.name for p in evals_folder().glob(f"*/{RUN}"))
    raise ConfigError(
        f"there is no run of an exam at {' or '.join(map(str, tried))}",
        hint=f"the latest: {', '.join(known[-3:])}" if known else "llmctl eval --dataset ceval",
    )


def answers(
    run: str, *, wrong: bool = False, subject: str | None = None, index: int | None = None
) -> list[tuple[Question | None, QuestionResult]]:
    """Return the questions of a run with their results.

    Raises:
        ConfigError: there is no such run, or it has no such subject.
    """
    folder = run_folder(run)
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


def compare(first: str, second: str) -> Compared:
    """Compare two runs over the questions that both answered.

    Raises:
        ConfigError: a run is not there, or they share no question.
    """
    one, two = run_folder(first), run_folder(second)
    pairs = pairs_of(one.results(), two.results())
    if not pairs:
        raise ConfigError(f"{first} and {second} have no question in common")
    categories = {
        (value["suite"], value["subject"]): tuple(value.get("categories", ()))
        for value in read_lines(one.path / PROMPTS)
    }
    found, flipped = compare_runs(pairs, categories)
    return Compared(tuple(found), tuple(flipped), tuple(marks(_made(one), _made(two))))


def _made(folder: RunFolder) -> dict[str, Made]:
    suites = (read_json(folder.path / RUN) or {}).get("suites", ())
    names = [field.name for field in fields(Made)]
    return {suite["suite"]: Made(*(suite[name] for name in names)) for suite in suites}


def report(runs: Sequence[str], output: Path | None) -> str:
    """Write a page of one run, or of several side by side; return the Markdown table.

    Args:
        output: file to write: .html for the page, .md for the table; None writes none.

    Raises:
        ConfigError: a run is not there or has not ended, or the file cannot be written.
    """
    if output is not None and output.suffix not in (".html", ".md"):
        raise ConfigError(f"{output} is neither .html nor .md")
    found = [PastRun.read(run_folder(run)) for run in runs]
    table = markdown([run.report for run in found])
    if output is not None:
        from llmctl.evaluation.results.html_report import page

        try:
            RunFolder(output.absolute().parent).write_text(
                output.name, table if output.suffix == ".md" else page(found)
            )
        except OSError as error:
            raise ConfigError(f"{output} cannot be written: {error}") from error
    return table


def pull_suite(name: str, progress: ProgressCallback) -> Path:
    """Fetch an exam's data into the store.

    Raises:
        ConfigError: there is no such exam, or nobody gives its data.
    """
    suite = find_suite(name)
    try:
        return pull(suite, progress)
    except ConfigError as error:
        raise ConfigError(
            f"the data of {suite.name} cannot be fetched:\n{error}",
            hint="HF_ENDPOINT names a mirror; or copy the files, and give --data-dir",
        ) from error


def set_up_opencompass(wheelhouse: Path | None, progress: ProgressCallback) -> Path:
    """Build the environment of OpenCompass; return its folder.

    Raises:
        ConfigError: this llmctl has no OpenCompass backend, or a package cannot be had.
    """
    try:
        from llmctl.evaluation.opencompass import setup
    except ModuleNotFoundError as error:
        raise ConfigError(
            "this llmctl has no OpenCompass backend",
            hint="--backend native needs no setup",
        ) from error
    folder: Path = setup(wheelhouse, progress)
    return folder
