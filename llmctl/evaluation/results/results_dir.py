"""Results folder of one run.

run.json       identity and configuration of the run, and the id of the tracked run
results.jsonl  one line per evaluated sample, written as soon as the result exists
prompts.jsonl  one line per planned sample, with its rendered prompt
report.json    scores, after the run has ended
report.md      scores as a Markdown table
report.html    scores and samples as a page
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from llmctl.atomic_files import write_atomically
from llmctl.dataclass_json import from_json
from llmctl.errors import ConfigError
from llmctl.types import (
    BenchmarkPlan,
    BenchmarkSetup,
    EvalReport,
    EvalSample,
    ResultCallback,
    SampleKey,
    SampleResult,
    SubjectPlan,
)

RUN_FILE: Final = "run.json"
RESULTS_FILE: Final = "results.jsonl"
PROMPTS_FILE: Final = "prompts.jsonl"
REPORT_FILE: Final = "report.json"
TABLE_FILE: Final = "report.md"
PAGE_FILE: Final = "report.html"
_RUN_ID: Final = "run_id"

Categories = Mapping[tuple[str, str], tuple[str, ...]]
"""Categories by (benchmark, subject)."""
T = TypeVar("T")


class ResultsDir:
    """The results folder of one run. Only one process may write to it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def begin(self, run: Mapping[str, Any], *, resume: bool) -> dict[str, SampleResult]:
        """Create the folder, or open it to resume a run.

        Args:
            run: content of `run.json`; its `identity` is what the results depend on besides the
                samples.
            resume: continue the run in the folder.

        Returns:
            The answered samples of an earlier run, by `result_key`.

        Raises:
            ConfigError: the folder has results and `resume` is not set, or they have another
                identity.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {self.path}: {error}") from error
        earlier = read_json(self.path / RUN_FILE)
        if earlier is None:
            self.write(RUN_FILE, run)
            return {}
        if not resume:
            raise ConfigError(
                f"{self.path} already has the results of a run",
                hint="--resume continues it; --output FOLDER starts another one",
            )
        identity = earlier.get("identity", {})
        for name, value in run["identity"].items():
            if identity.get(name) != value:
                raise ConfigError(
                    f"the run in {self.path} has {name} {identity.get(name)!r}, not {value!r}",
                    hint="--output FOLDER starts another run",
                )
        self.write(RUN_FILE, {**run, _RUN_ID: earlier.get(_RUN_ID)})
        return {result_key(r): r for r in self.results() if not r.error}

    @property
    def run_id(self) -> str | None:
        """Id of the tracked run, if known."""
        return (read_json(self.path / RUN_FILE) or {}).get(_RUN_ID)

    def save_run_id(self, run_id: str | None) -> None:
        """Save the id of the tracked run, so that a resumed run continues it; None is ignored."""
        if run_id is not None:
            self.write(RUN_FILE, {**(read_json(self.path / RUN_FILE) or {}), _RUN_ID: run_id})

    def setups(self) -> list[BenchmarkSetup]:
        """Read the setups of the run's benchmarks."""
        file = self.path / RUN_FILE
        return [_parse(BenchmarkSetup, one, file) for one in (read_json(file) or {})["suites"]]

    @contextmanager
    def append_results(self) -> Iterator[ResultCallback]:
        """Yield a function that appends a result and flushes the file."""
        file = self.path / RESULTS_FILE
        with file.open("a", encoding="utf-8") as stream:
            if not _ends_with_newline(file):
                stream.write("\n")  # the process was killed while it wrote the last line

            def append(result: SampleResult) -> None:
                stream.write(json.dumps(asdict(result), ensure_ascii=False) + "\n")
                stream.flush()

            yield append

    def results(self) -> list[SampleResult]:
        """Read the results; an incomplete line is skipped."""
        file = self.path / RESULTS_FILE
        return [_parse(SampleResult, value, file) for value in _read_json_lines(file)]

    def write_prompts(self, plans: Iterable[BenchmarkPlan]) -> None:
        """Write the samples of all plans."""
        lines = (
            json.dumps(_prompt_json(sample, subject), ensure_ascii=False)
            for plan in plans
            for subject in plan.subjects
            for sample in subject.questions
        )
        self.write_text(PROMPTS_FILE, "".join(f"{line}\n" for line in lines))

    def prompts(self) -> tuple[dict[SampleKey, EvalSample], Categories]:
        """Read the samples of the run, and the categories of its subjects."""
        file = self.path / PROMPTS_FILE
        samples: dict[SampleKey, EvalSample] = {}
        categories: dict[tuple[str, str], tuple[str, ...]] = {}
        for value in _read_json_lines(file):
            sample = _parse(EvalSample, value, file)
            samples[sample.key] = sample
            categories[sample.suite, sample.subject] = tuple(value.get("categories", ()))
        return samples, categories

    def report(self) -> EvalReport:
        """Read the scores.

        Raises:
            ConfigError: the run has not ended, or the file is invalid.
        """
        file = self.path / REPORT_FILE
        value = read_json(file)
        if value is None:
            raise ConfigError(
                f"the run in {self.path} has not ended",
                hint=f"llmctl eval ... --resume --output {self.path} continues it",
            )
        return _parse(EvalReport, value, file)

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file atomically."""
        self.write_text(name, json.dumps(value, ensure_ascii=False, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        write_atomically(self.path / name, text)


@dataclass(frozen=True, slots=True)
class LoadedRun:
    """A finished run."""

    report: EvalReport
    samples: Mapping[SampleKey, EvalSample]
    results: Mapping[SampleKey, SampleResult]
    """The last result of each sample."""
    categories: Categories

    @classmethod
    def read(cls, folder: ResultsDir) -> "LoadedRun":
        """Read a run from its folder.

        Raises:
            ConfigError: the run has not ended, or its files are invalid.
        """
        report, (samples, categories) = folder.report(), folder.prompts()
        results = {result.key: result for result in folder.results()}
        return cls(report, samples, results, categories)

    @classmethod
    def from_plans(
        cls, report: EvalReport, plans: Sequence[BenchmarkPlan], results: Iterable[SampleResult]
    ) -> "LoadedRun":
        """Return a run that has just ended."""
        subjects = [subject for plan in plans for subject in plan.subjects]
        return cls(
            report,
            {sample.key: sample for subject in subjects for sample in subject.questions},
            {result.key: result for result in results},
            {(subject.suite, subject.subject): subject.categories for subject in subjects},
        )


def split_remaining(
    plans: Sequence[BenchmarkPlan], results: Mapping[str, SampleResult]
) -> tuple[list[BenchmarkPlan], list[SampleResult]]:
    """Return the plans without their answered samples, and the results of those.

    Args:
        plans: of the whole run.
        results: as `ResultsDir.begin` returns them.
    """
    answered = []
    remaining = []
    for plan in plans:
        subjects = []
        for subject in plan.subjects:
            samples = []
            for sample in subject.questions:
                result = results.get(result_key(sample))
                if result is None:
                    samples.append(sample)
                else:
                    answered.append(result)
            if samples:
                subjects.append(replace(subject, questions=tuple(samples)))
        if subjects:
            remaining.append(replace(plan, subjects=tuple(subjects)))
    return remaining, answered


def result_key(one: SampleResult | EvalSample) -> str:
    """Return a key that a result shares with its sample as long as the prompt is unchanged."""
    return f"{one.suite}/{one.subject}/{one.index}/{one.fingerprint}"


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a JSON object; None if the file does not exist.

    Raises:
        ConfigError: the file cannot be read or parsed.
    """
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    return value


def _parse(kind: type[T], value: object, file: Path) -> T:
    """Build a dataclass from a JSON value of a file. Raises `ConfigError`."""
    try:
        return from_json(kind, value)
    except ValueError as error:
        raise ConfigError(f"{file} is not valid: {error}") from error


def _read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Read the objects of a JSON-lines file; incomplete lines are skipped."""
    values = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                values.append(json.loads(line))
            except ValueError:
                continue
    return [value for value in values if isinstance(value, dict)]


def _ends_with_newline(file: Path) -> bool:
    with file.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return True
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def _prompt_json(sample: EvalSample, subject: SubjectPlan) -> dict[str, Any]:
    value = {f.name: getattr(sample, f.name) for f in fields(sample) if f.init}
    value["messages"] = [{"role": m.role, "content": m.content} for m in sample.messages]
    return value | {"title": subject.title, "categories": subject.categories}
