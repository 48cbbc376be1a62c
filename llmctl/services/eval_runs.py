"""The story of `llmctl eval list, show, compare, pull, setup`: look at exams and past runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.errors import ConfigError
from llmctl.evaluation.compare import Compared, compare_runs, pairs_of
from llmctl.evaluation.locate import find
from llmctl.evaluation.pull import pull
from llmctl.evaluation.run_folder import PROMPTS, RUN, RunFolder, read_json, read_lines
from llmctl.evaluation.suites import SUITES, find_suite
from llmctl.services.evaluate import evals_folder
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
    return Compared(tuple(found), tuple(flipped), tuple(_against(one, two)))


def _against(one: RunFolder, two: RunFolder) -> list[str]:
    """Say what differs in how two runs were made, besides the model."""
    a, b = (_suites(folder) for folder in (one, two))
    notes = []
    for name in a.keys() & b.keys():
        for key in ("mode", "shots", "prompt_hash", "data_hash"):
            if a[name][key] != b[name][key]:
                notes.append(
                    f"{name} was made with {key} {str(a[name][key])[:16]} and "
                    f"{str(b[name][key])[:16]}: the difference is not the model's alone"
                )
    return notes


def _suites(folder: RunFolder) -> dict[str, dict[str, Any]]:
    return {suite["suite"]: suite for suite in (read_json(folder.path / RUN) or {})["suites"]}


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
