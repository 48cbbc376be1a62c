"""Which questions will be asked, and in which words? Data and options become a plan."""

import difflib
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.prompts import ChatPrompt, CompletionPrompt, Doc, PromptTemplate
from llmctl.evaluation.benchmarks.registry import Benchmark
from llmctl.evaluation.benchmarks.subjects import Subject
from llmctl.types import BenchmarkPlan, EvalMode, EvalSample, SubjectPlan

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EvalSelection:
    """What a person chose of the questions."""

    mode: EvalMode | None = None
    """None: the suite's own."""
    shots: int | None = None
    limit: int | None = None
    """Questions of each subject."""
    subjects: tuple[str, ...] = ()
    """Names of subjects or categories; none is all."""
    seed: int | None = None
    """Draw the limited questions at random; None takes the first ones."""
    max_new_tokens: int | None = None


def plan_benchmark(suite: Benchmark, folder: Path, choice: EvalSelection) -> BenchmarkPlan:
    """Read a suite's data and write every prompt.

    Raises:
        ExamError: a file is missing or wrong; the message has all that are.
        ConfigError: the suite has no such mode or subject, or not so many examples.
    """
    mode = choice.mode or suite.default_mode
    form = suite.form(mode)
    shots = form.shots if choice.shots is None else choice.shots
    digest = hashlib.sha256()
    problems: list[str] = []
    hint = ""
    plans = []
    for subject in _chosen(suite, choice.subjects):
        file, examples_file = suite.layout.files(folder, subject)
        try:
            rows = _of_subject(suite.layout.rows(file), subject)
            digest.update(file.read_bytes())
            examples: Sequence[Doc] = suite.fixed_examples
            if examples_file is not None and shots:
                examples = _of_subject(suite.layout.example_rows(examples_file), subject)
                digest.update(examples_file.read_bytes())
        except ConfigError as error:
            problems.append(str(error))
            hint = error.hint
            continue
        if shots > len(examples):
            raise ConfigError(
                f"{suite.name} has {len(examples)} examples for {subject.name}, not {shots}",
                hint=f"--shots {len(examples)} or fewer",
            )
        drawn = select_docs(rows, choice.limit, choice.seed, subject.name)
        plans.append(
            SubjectPlan(
                suite.name,
                subject.name,
                subject.title,
                categories_of(suite, subject.name, subject.category),
                tuple(
                    form.question(suite.name, subject.name, subject.title, row, examples[:shots])
                    for row in drawn
                ),
            )
        )
    if problems:
        more = f"\nand {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ConfigError("\n".join(problems[:10]) + more, hint=hint)
    return BenchmarkPlan(
        suite.name,
        mode,
        shots,
        prompt_hash(form, shots),
        digest.hexdigest(),
        str(folder),
        chance_accuracy(plans),
        reply_limit(form, choice.max_new_tokens),
        tuple(plans),
    )


def _of_subject(rows: Sequence[Doc], subject: Subject) -> list[Doc]:
    return [row for row in rows if row.subject in ("", subject.name)]


def reply_limit(form: PromptTemplate, asked: int | None) -> int:
    """Return the limit of a reply; 0 for forms that ask for none."""
    if isinstance(form, CompletionPrompt):
        return 0
    return form.max_new_tokens if asked is None else asked


def chance_accuracy(plans: Sequence[SubjectPlan]) -> float | None:
    """Return what a blind guess gets right, where questions have unlike numbers of options."""
    shares = [1 / len(q.labels) for plan in plans for q in plan.questions if q.labels]
    whole = sum(len(plan.questions) for plan in plans)
    return sum(shares) / len(shares) if shares and len(shares) == whole else None


def categories_of(suite: Benchmark, subject: str, own: str) -> tuple[str, ...]:
    """Return every category that a subject is in."""
    across = [name for name, members in suite.extra_categories.items() if subject in members]
    return tuple(name for name in (own, *across) if name)


def _chosen(suite: Benchmark, names: Sequence[str]) -> list[Subject]:
    known = {s.name: categories_of(suite, s.name, s.category) for s in suite.subjects}
    every = sorted({category for several in known.values() for category in several})
    unknown = [name for name in names if name not in known and name not in every]
    if unknown:
        near = difflib.get_close_matches(unknown[0], [*known, *every], n=3)
        raise ConfigError(
            f"{suite.name} has no subject {unknown[0]!r}",
            hint=f"near it: {', '.join(near)}" if near else f"categories: {', '.join(every)}",
        )
    if not names:
        return list(suite.subjects)
    return [s for s in suite.subjects if s.name in names or {*known[s.name]} & {*names}]


def select_docs(rows: Sequence[T], limit: int | None, seed: int | None, subject: str) -> list[T]:
    """Take so many rows: the first, or with a seed any, in the order of the file."""
    if limit is None or limit >= len(rows):
        return list(rows)
    if seed is None:
        return list(rows[:limit])
    drawn = random.Random(f"{seed}/{subject}").sample(range(len(rows)), limit)
    return [rows[index] for index in sorted(drawn)]


def prompt_hash(form: PromptTemplate, shots: int) -> str:
    """Return 12 hex digits that tell forms of prompts apart, whatever the questions are.

    It is the hash of a rendered specimen, so it changes with whatever the model would see.
    """
    row = Doc("{question}", "A", tuple("{" + label + "}" for label in "ABCD"), "{solution}")
    specimen: EvalSample = form.question("", "", "{subject}", row, [row] * shots)
    kind = "chat" if isinstance(form, ChatPrompt) else "text"
    judged = (specimen.extraction,) if kind == "chat" else ()
    seen = "\0".join((kind, specimen.prompt, *specimen.continuations, *judged))
    return hashlib.sha256(seen.encode()).hexdigest()[:12]
