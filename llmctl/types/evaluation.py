"""Samples, results and scores of an evaluation.

`SampleResult`, `EvalSample` and `EvalReport` are written to the results folder: their field names
are file formats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from hashlib import sha256
from typing import Literal, Self

from llmctl.types.conversation import Message

EvalMode = Literal["ppl", "logprob", "logprob_norm", "gen"]
"""How the model answers a question.

- `ppl`: the option whose full text, examples and question included, has the lowest mean
  cross-entropy, as in OpenCompass.
- `logprob`: the option with the highest log-likelihood given the question.
- `logprob_norm`: the same, divided by the option's length in bytes.
- `gen`: the model generates a reply, and the answer is extracted from it.
"""
EvalBackend = Literal["native", "opencompass"]
Extraction = Literal[
    "first_capital",
    "first_option",
    "option_set",
    "last_number",
    "exact",
    "numeric",
    "contains",
    "regex",
    "judge",
    "judged",
]
"""How an answer is extracted from a reply: see `llmctl.evaluation.scoring.extraction`. `judge`: a
judge model decides; `judged`: OpenCompass extracts and scores the answer itself."""
SampleKey = tuple[str, str, int]
"""Benchmark, subject and index: unique within a run."""


@dataclass(frozen=True, slots=True)
class EvalSample:
    """One question with its rendered prompt.

    The log-likelihood modes use text: `head`, the examples, `body`, and one continuation per
    label. `gen` uses `messages`.
    """

    suite: str
    """Name of the benchmark."""
    subject: str
    index: int
    """Position in the subject's file, from 0, before a limit or random selection."""
    gold: str
    """The right label, or the reference answer."""
    labels: tuple[str, ...] = ()
    """`A`, `B`, ...; empty for free-form answers."""
    messages: tuple[Message, ...] = ()
    """A user and an assistant turn for each example, then the question."""
    head: str = ""
    """Text before the examples."""
    examples: tuple[str, ...] = ()
    gap: str = ""
    """Text between the examples and the body, if there are examples."""
    body: str = ""
    """The question, up to the point where the options differ."""
    continuations: tuple[str, ...] = ()
    """Text after the body, one per label."""
    extraction: Extraction = "first_option"
    options: tuple[str, ...] = ()
    """Texts of the options, one per label."""
    fingerprint: str = field(init=False, repr=False)
    """Hash of the prompt, continuations, labels and gold answer: 16 hex digits of a SHA-256."""

    def __post_init__(self) -> None:
        content = "\0".join((self.prompt, *self.continuations, *self.labels, self.gold))
        digest = sha256(content.encode(errors="surrogatepass")).hexdigest()[:16]
        object.__setattr__(self, "fingerprint", digest)

    @property
    def key(self) -> SampleKey:
        return self.suite, self.subject, self.index

    @property
    def shots(self) -> int:
        """Number of few-shot examples in the prompt."""
        return len(self.examples) or len(self.messages) // 2

    @property
    def context(self) -> str:
        """Text before the continuations."""
        gap = self.gap if self.examples else ""
        return self.head + "".join(self.examples) + gap + self.body

    @property
    def prompt(self) -> str:
        """The prompt as readable text."""
        if self.messages:
            return "\n".join(f"[{message.role}] {message.content}" for message in self.messages)
        return self.context

    def with_fewer_examples(self) -> Self | None:
        """Return the sample without its last example; None if it has no example."""
        if self.messages:
            if len(self.messages) < 3:
                return None
            return replace(self, messages=self.messages[:-3] + self.messages[-1:])
        return replace(self, examples=self.examples[:-1]) if self.examples else None


@dataclass(frozen=True, slots=True)
class SampleResult:
    """The model's answer to one sample and its score."""

    suite: str
    """Name of the benchmark."""
    subject: str
    index: int
    fingerprint: str
    """`EvalSample.fingerprint`."""
    gold: str
    prediction: str = ""
    """Chosen label or extracted answer; empty if no answer was extracted."""
    correct: bool = False
    """By the benchmark's own rule: for replies, OpenCompass' strict extraction."""
    likelihoods: Mapping[str, float] = field(default_factory=dict)
    """By label: mean cross-entropy of the full text in nats per token (`ppl`, the lowest wins),
    natural log-likelihood of the continuation (`logprob`) or that per byte (`logprob_norm`); the
    highest wins in the last two."""
    reply: str | None = None
    """Generated text."""
    robust: str | None = None
    """Answer by the robust extraction; empty if it finds none."""
    robust_correct: bool | None = None
    rule: str = ""
    """Name of the robust extraction rule that matched."""
    truncated: bool = False
    """The prompt lost examples because it was too long, or the reply reached its token limit."""
    shots: int = 0
    """Examples that the prompt kept."""
    error: str = ""
    """Why the sample has no answer. If set, only the key, gold and `too_long` are meaningful."""
    too_long: bool = False
    """The error is that the prompt exceeds the context length, so a retry does not help."""
    tokens: int = 0
    """Tokens computed by the model."""
    naive_tokens: int = 0
    """Tokens without prefix sharing: the full length of every text."""

    @classmethod
    def for_sample(cls, sample: EvalSample, error: str = "") -> Self:
        """Return a result without an answer."""
        return cls(*sample.key, sample.fingerprint, sample.gold, shots=sample.shots, error=error)

    @property
    def key(self) -> SampleKey:
        return self.suite, self.subject, self.index


@dataclass(frozen=True, slots=True)
class SubjectPlan:
    """The samples of one subject of a benchmark."""

    suite: str
    """Name of the benchmark."""
    subject: str
    title: str
    """Display name, in the benchmark's language."""
    categories: tuple[str, ...]
    """Such as `stem`; a subject can be in none or several."""
    questions: tuple[EvalSample, ...]


@dataclass(frozen=True, slots=True)
class BenchmarkSetup:
    """What a benchmark's score depends on besides the model."""

    suite: str
    """Name of the benchmark."""
    mode: EvalMode
    shots: int
    prompt_hash: str
    """Hash of the prompt template, not of the questions: 12 hex digits of a SHA-256."""
    data_hash: str
    """SHA-256 of the data files, in hex."""
    data_source: str
    """Folder of the data files."""
    chance: float | None
    """Expected accuracy of random guessing; None for free-form answers."""


@dataclass(frozen=True, slots=True)
class BenchmarkPlan(BenchmarkSetup):
    """One benchmark with all its rendered samples."""

    max_new_tokens: int
    """Limit of a reply in mode `gen`; 0 in the other modes."""
    subjects: tuple[SubjectPlan, ...]

    @property
    def setup(self) -> BenchmarkSetup:
        return BenchmarkSetup(*(getattr(self, one.name) for one in fields(BenchmarkSetup)))

    @property
    def question_count(self) -> int:
        return sum(len(subject.questions) for subject in self.subjects)


@dataclass(frozen=True, slots=True)
class AggregateScore:
    """Score of a subject, a category or a whole benchmark.

    Shares are between 0 and 1 and relate to the answered samples; failed samples are only counted
    in `failed`.
    """

    name: str
    title: str
    total: int
    """Planned samples."""
    answered: int
    correct: int
    failed: int
    unparsed: int
    """Replies without an extracted answer; they count as wrong."""
    truncated: int
    accuracy: float | None
    """Micro average over samples; None if no sample was answered."""
    stderr: float | None
    low: float | None
    """Lower bound of the 95 % interval by Wilson's score method (Wilson 1927)."""
    high: float | None
    macro: float | None = None
    """Mean of the subjects' accuracies; None for a single subject."""
    robust_accuracy: float | None = None
    """Accuracy by the robust extraction; mode `gen` only."""


@dataclass(frozen=True, slots=True)
class BenchmarkScore(BenchmarkSetup):
    """Scores of one benchmark and its setup."""

    overall: AggregateScore
    categories: tuple[AggregateScore, ...]
    subjects: tuple[AggregateScore, ...]
    letters: Mapping[str, int]
    """Number of predictions per label."""
    warnings: tuple[str, ...] = ()
    tokens: int = 0
    naive_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Scores of one run of `llmctl eval`."""

    model: str
    """The model as the user named it, or the server's name for it."""
    backend: EvalBackend
    how: Mapping[str, str]
    """Model settings that change the scores: dtype, quant, template, weights, ..."""
    suites: tuple[BenchmarkScore, ...]
    seconds: float
    """Evaluation time without model loading."""
    folder: str
    """Results folder."""
    run_id: str | None = None
    """Id of the tracked run."""
    complete: bool = True
    """False if the engine or server stopped before all samples were evaluated."""
    too_long: int = 0
    """Failed samples whose prompt exceeds the context length."""

    @property
    def failed(self) -> int:
        """Samples without an answer."""
        return sum(suite.overall.failed for suite in self.suites)


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Paired comparison of two runs over the samples of one benchmark that both answered."""

    suite: str
    scope: str
    """Name of the benchmark, a category or a subject."""
    questions: int
    """Samples that both runs answered."""
    first: float
    """Accuracy of the first run, from 0 to 1."""
    second: float
    low: float
    """Lower bound of the 95 % interval of `second - first`, by paired bootstrap."""
    high: float
    gained: int
    """Wrong in the first run, right in the second."""
    lost: int
    p_value: float
    """Two-sided p-value of McNemar's exact test."""


ResultCallback = Callable[[SampleResult], None]
"""Receives each result once. Calls can come from another thread, one at a time."""
