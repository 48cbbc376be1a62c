"""Selects the samples of a benchmark and renders their prompts."""

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from llmctl.config.evaluation import EvalSelection
from llmctl.did_you_mean import close_matches
from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.prompts import ChatPrompt, CompletionPrompt, Doc, PromptTemplate
from llmctl.evaluation.benchmarks.readers import DataFile
from llmctl.evaluation.benchmarks.registry import Benchmark
from llmctl.evaluation.benchmarks.subjects import Subject
from llmctl.types import BenchmarkPlan, EvalSample, SubjectPlan

T = TypeVar("T")

_MAX_ERRORS = 10


class _DataFiles:
    """The data files of a benchmark, each opened and parsed once."""

    def __init__(self, benchmark: Benchmark) -> None:
        self._reader = benchmark.reader
        self._read: dict[Path, DataFile] = {}

    def __getitem__(self, file: Path) -> DataFile:
        if file not in self._read:
            self._read[file] = self._reader.read(file)
        return self._read[file]


def plan_benchmark(benchmark: Benchmark, folder: Path, selection: EvalSelection) -> BenchmarkPlan:
    """Read a benchmark's data and render the selected samples.

    Raises:
        BenchmarkDataError: data files are missing or malformed; the message lists them.
        ConfigError: the benchmark has no such mode or subject, or too few examples.
    """
    mode = selection.mode or benchmark.default_mode
    template = benchmark.prompt(mode)
    shots = template.shots if selection.shots is None else selection.shots
    files = _DataFiles(benchmark)
    digest = hashlib.sha256()
    errors: list[str] = []
    hint = ""
    plans = []
    for subject in _selected_subjects(benchmark, selection.subjects):
        questions, examples_file = benchmark.reader.files(folder, subject)
        try:
            data = files[questions]
            # The hash covers the files of each subject in turn, also where subjects share a file:
            # results of earlier releases are compared by it.
            digest.update(data.content)
            examples: Sequence[Doc] = benchmark.fixed_examples
            if examples_file is not None and shots:
                source = files[examples_file]
                digest.update(source.content)
                in_same_file = examples_file == questions
                examples = _of_subject(source.examples if in_same_file else source.docs, subject)
        except ConfigError as error:
            errors.append(str(error))
            hint = error.hint
            continue
        if shots > len(examples):
            raise ConfigError(
                f"{benchmark.name} has {len(examples)} examples for {subject.name}, not {shots}",
                hint=f"--shots {len(examples)} or fewer",
            )
        docs = select_docs(
            _of_subject(data.docs, subject), selection.limit, selection.seed, subject.name
        )
        plans.append(
            SubjectPlan(
                benchmark.name,
                subject.name,
                subject.title,
                benchmark.categories(subject),
                tuple(
                    template.render(
                        benchmark.name, subject.name, subject.title, doc, examples[:shots]
                    )
                    for doc in docs
                ),
            )
        )
    if errors:
        more = f"\nand {len(errors) - _MAX_ERRORS} more" if len(errors) > _MAX_ERRORS else ""
        raise ConfigError("\n".join(errors[:_MAX_ERRORS]) + more, hint=hint)
    return BenchmarkPlan(
        benchmark.name,
        mode,
        shots,
        prompt_hash(template, shots),
        digest.hexdigest(),
        str(folder),
        chance_accuracy(plans),
        _reply_limit(template, selection.max_new_tokens),
        tuple(plans),
    )


def _of_subject(docs: Sequence[Doc], subject: Subject) -> list[Doc]:
    return [doc for doc in docs if doc.subject in ("", subject.name)]


def _reply_limit(template: PromptTemplate, max_new_tokens: int | None) -> int:
    """Return the token limit of a reply; 0 if the template does not generate."""
    if isinstance(template, CompletionPrompt):
        return 0
    return template.max_new_tokens if max_new_tokens is None else max_new_tokens


def chance_accuracy(plans: Sequence[SubjectPlan]) -> float | None:
    """Return the expected accuracy of random guessing; None if a sample has no labels."""
    samples = [sample for plan in plans for sample in plan.questions]
    if not samples or not all(sample.labels for sample in samples):
        return None
    return sum(1 / _possible_answers(sample) for sample in samples) / len(samples)


def _possible_answers(sample: EvalSample) -> int:
    options = len(sample.labels)
    return 2**options - 1 if sample.extraction == "option_set" else options


def _selected_subjects(benchmark: Benchmark, names: Sequence[str]) -> list[Subject]:
    subjects = {subject.name: benchmark.categories(subject) for subject in benchmark.subjects}
    categories = sorted({category for several in subjects.values() for category in several})
    unknown = [name for name in names if name not in subjects and name not in categories]
    if unknown:
        near = close_matches(unknown[0], [*subjects, *categories], limit=3)
        raise ConfigError(
            f"{benchmark.name} has no subject {unknown[0]!r}",
            hint=f"did you mean {' or '.join(near)}?"
            if near
            else f"categories: {', '.join(categories)}",
        )
    if not names:
        return list(benchmark.subjects)
    return [s for s in benchmark.subjects if s.name in names or {*subjects[s.name]} & {*names}]


def select_docs(docs: Sequence[T], limit: int | None, seed: int | None, subject: str) -> list[T]:
    """Return the first `limit` docs, or with a seed a random selection in the order of the file."""
    if limit is None or limit >= len(docs):
        return list(docs)
    if seed is None:
        return list(docs[:limit])
    indices = random.Random(f"{seed}/{subject}").sample(range(len(docs)), limit)
    return [docs[index] for index in sorted(indices)]


def prompt_hash(template: PromptTemplate, shots: int) -> str:
    """Return a hash of the prompt template: 12 hex digits of a SHA-256.

    It is the hash of a rendered specimen, so it depends on all that the model sees except the
    questions.
    """
    doc = Doc("{question}", "A", tuple("{" + label + "}" for label in "ABCD"), "{solution}")
    specimen = template.render("", "", "{subject}", doc, [doc] * shots)
    is_chat = isinstance(template, ChatPrompt)
    extraction = (specimen.extraction,) if is_chat else ()
    kind = "chat" if is_chat else "text"
    content = "\0".join((kind, specimen.prompt, *specimen.continuations, *extraction))
    return hashlib.sha256(content.encode()).hexdigest()[:12]
