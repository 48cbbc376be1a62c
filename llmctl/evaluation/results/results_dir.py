"""What does a run leave on the disk? A line for each answer as it comes, and what made them.

run.json       what was asked of whom; the folder belongs to that. And the tracked run's id
results.jsonl  a line for each question, written a batch at a time
prompts.jsonl  every question as it was put
report.json    the scores, once the run has ended
report.md      the same as a table, and report.html as a page for people
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Final

from llmctl.atomic_files import write_atomically
from llmctl.errors import ConfigError
from llmctl.types import BenchmarkPlan, EvalSample, Message, SampleResult, SubjectPlan

RUN_FILE: Final = "run.json"
RESULTS_FILE: Final = "results.jsonl"
PROMPTS_FILE: Final = "prompts.jsonl"
REPORT_FILE: Final = "report.json"
TABLE_FILE: Final = "report.md"
PAGE_FILE: Final = "report.html"
_RUN_ID: Final = "run_id"


class ResultsDir:
    """The folder of one run. One process writes it at a time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder

    def begin(self, identity: Mapping[str, Any], *, resume: bool) -> dict[str, SampleResult]:
        """Claim the folder; return what an earlier run answered, by the question's fingerprint.

        Args:
            identity: what the answers depend on besides the questions.

        Raises:
            ConfigError: results of another run lie there, or of one that was made otherwise.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {self.path}: {error}") from error
        before = read_json(self.path / RUN_FILE)
        if before is None:
            self.write(RUN_FILE, identity)
            return {}
        if not resume:
            raise ConfigError(
                f"{self.path} holds the results of a run",
                hint="--resume goes on with it; --output FOLDER begins another",
            )
        was = before.get("identity", {})
        changed = [k for k, v in identity["identity"].items() if was.get(k) != v]
        if changed:
            name = changed[0]
            raise ConfigError(
                f"{self.path} was made with {name} {was.get(name)!r}, and this is "
                f"{identity['identity'][name]!r}",
                hint="--output FOLDER begins another run",
            )
        self.write(RUN_FILE, {**identity, _RUN_ID: before.get(_RUN_ID)})
        return {result_key(r): r for r in self.results() if not r.error}

    @property
    def run_id(self) -> str | None:
        """Id of the tracked run that the answers belong to; None where it is not known."""
        return (read_json(self.path / RUN_FILE) or {}).get(_RUN_ID)

    def keep_run_id(self, run_id: str | None) -> None:
        """Keep the tracked run's id, for a resume to go on with it; None changes nothing."""
        if run_id is not None:
            self.write(RUN_FILE, {**(read_json(self.path / RUN_FILE) or {}), _RUN_ID: run_id})

    def results(self) -> list[SampleResult]:
        """Read the results; what a dying process left half written is left out."""
        return [_result(value) for value in read_json_lines(self.path / RESULTS_FILE)]

    def append(self, results: Sequence[SampleResult]) -> None:
        """Add results; they survive whatever happens to this process afterwards."""
        text = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in results)
        file = self.path / RESULTS_FILE
        if file.exists() and not _ends_a_line(file):
            text = "\n" + text  # the end of a line was lost with its process
        with file.open("a", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file, whole or not at all."""
        self.write_text(name, json.dumps(value, ensure_ascii=False, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a file, whole or not at all."""
        write_atomically(self.path / name, text)

    def write_prompts(self, plans: Iterable[BenchmarkPlan]) -> None:
        """Keep every question as it is put."""
        lines = (
            json.dumps(_question_json(question, subject), ensure_ascii=False)
            for plan in plans
            for subject in plan.subjects
            for question in subject.questions
        )
        self.write_text(PROMPTS_FILE, "".join(f"{line}\n" for line in lines))

    def questions(self) -> dict[tuple[str, str, int], EvalSample]:
        """Read the questions as they were put."""
        return {
            q.key: q
            for value in read_json_lines(self.path / PROMPTS_FILE)
            for q in [_question(value)]
        }


def split_remaining(
    plans: Sequence[BenchmarkPlan], known: Mapping[str, SampleResult]
) -> tuple[list[BenchmarkPlan], list[SampleResult]]:
    """Part the plans into what is still to be asked and what is answered."""
    answered = []
    left = []
    for plan in plans:
        subjects = []
        for subject in plan.subjects:
            keys = {q.key: sample_key(q) for q in subject.questions}
            answered += [known[key] for key in keys.values() if key in known]
            open_ = tuple(q for q in subject.questions if keys[q.key] not in known)
            if open_:
                subjects.append(replace(subject, questions=open_))
        if subjects:
            left.append(replace(plan, subjects=tuple(subjects)))
    return left, answered


def result_key(result: SampleResult) -> str:
    """Return what a result and its question have in common."""
    return f"{result.suite}/{result.subject}/{result.index}/{result.fingerprint}"


def sample_key(question: EvalSample) -> str:
    return f"{question.suite}/{question.subject}/{question.index}/{question.fingerprint}"


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a JSON file; `None` where there is none.

    Raises:
        ConfigError: it is there and cannot be read.
    """
    try:
        value: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    return value


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Read JSON lines; one that is not whole is left out."""
    values = []
    if file.is_file():
        for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                values.append(json.loads(line))
            except ValueError:
                continue
    return [value for value in values if isinstance(value, dict)]


def _ends_a_line(file: Path) -> bool:
    with file.open("rb") as stream:
        if stream.seek(0, os.SEEK_END) == 0:
            return True
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def _result(value: Mapping[str, Any]) -> SampleResult:
    names = {field.name for field in fields(SampleResult)}
    return SampleResult(**{name: v for name, v in value.items() if name in names})


def _question_json(question: EvalSample, subject: SubjectPlan) -> dict[str, Any]:
    value = {f.name: getattr(question, f.name) for f in fields(question)}
    value["messages"] = [{"role": m.role, "content": m.content} for m in question.messages]
    return value | {"title": subject.title, "categories": subject.categories}


def _question(value: dict[str, Any]) -> EvalSample:
    names = {field.name for field in fields(EvalSample)}
    known: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in value.items()
    }
    known["messages"] = tuple(Message(**message) for message in value["messages"])
    return EvalSample(**{name: v for name, v in known.items() if name in names})
