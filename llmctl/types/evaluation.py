"""What an exam asks, what came back, and what that amounts to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Literal, Self, get_args

from llmctl.errors import ConfigError
from llmctl.types.conversation import Message

EvalMode = Literal["ppl", "logprob", "logprob_norm", "gen"]
"""How an answer is found.

- `ppl`: the option whose whole text, examples and question included, has the lowest mean
  cross-entropy; OpenCompass' way.
- `logprob`: the option whose text alone is likeliest after the question.
- `logprob_norm`: the same, per byte of the option's text.
- `gen`: the model writes, and the answer is read out of what it wrote.
"""
EvalBackend = Literal["native", "opencompass"]
Extraction = Literal[
    "first_capital",
    "first_option",
    "last_number",
    "exact",
    "numeric",
    "contains",
    "regex",
    "judge",
    "judged",
]
"""How an answer is read out of a reply: see `llmctl.evaluation.scoring.extraction`; `judge` is
another model's verdict; `judged` replies are read by OpenCompass alone."""


@dataclass(frozen=True, slots=True)
class EvalSample:
    """One question as the model will see it.

    A likelihood mode asks with text: `head`, the examples, `body`, and one continuation for each
    label. `gen` asks with `messages`.
    """

    suite: str
    subject: str
    index: int
    """Place in its subject's file, from 0; a limit or a sample does not change it."""
    gold: str
    """The right label, or what a right reply says."""
    labels: tuple[str, ...] = ()
    """`A`, `B`, ...; empty where any text may be the answer."""
    messages: tuple[Message, ...] = ()
    """A pair of turns for each example, then the question."""
    head: str = ""
    """What stands before the examples."""
    examples: tuple[str, ...] = ()
    gap: str = ""
    """What stands between the examples and the body, where there are examples."""
    body: str = ""
    """The question, up to where the labels' texts part."""
    continuations: tuple[str, ...] = ()
    """One for each label: the text as it stands behind the body."""
    extraction: Extraction = "first_option"
    """How the answer is read out of a reply."""
    options: tuple[str, ...] = ()
    """The texts behind the labels."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells it from every other question of a run."""
        return self.suite, self.subject, self.index

    @property
    def shots(self) -> int:
        """How many examples it has."""
        return len(self.examples) or len(self.messages) // 2

    @property
    def context(self) -> str:
        """The text before the continuations."""
        gap = self.gap if self.examples else ""
        return self.head + "".join(self.examples) + gap + self.body

    @property
    def prompt(self) -> str:
        """The prompt for a person to read."""
        if self.messages:
            return "\n".join(f"[{message.role}] {message.content}" for message in self.messages)
        return self.context

    @property
    def fingerprint(self) -> str:
        """Of all that the model sees, and of the gold: 16 hex digits of a SHA-256."""
        seen = (self.prompt, *self.continuations, *self.labels, self.gold)
        return sha256("\0".join(seen).encode(errors="surrogatepass")).hexdigest()[:16]

    def with_fewer_examples(self) -> Self | None:
        """Return it with one example less, the last; None where it has none."""
        if self.messages:
            if len(self.messages) < 3:
                return None
            return replace(self, messages=self.messages[:-3] + self.messages[-1:])
        return replace(self, examples=self.examples[:-1]) if self.examples else None


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What came back for one question."""

    suite: str
    subject: str
    index: int
    fingerprint: str
    """Of the `SamplePrompt`."""
    gold: str
    prediction: str = ""
    """The label or text that was answered; empty where none could be read."""
    correct: bool = False
    """By the suite's own rule (for replies OpenCompass' strict extraction)."""
    likelihoods: Mapping[str, float] = field(default_factory=dict)
    """By label: the number that decided. Mean cross-entropy of the whole text in nats per token
    (`ppl`, the lowest wins), natural log-likelihood of the text (`logprob`) or that per byte
    (`logprob_norm`), the highest wins."""
    reply: str | None = None
    """What the model wrote."""
    robust: str | None = None
    """What a more careful extraction reads in the reply; empty where it finds no answer."""
    robust_correct: bool | None = None
    rule: str = ""
    """Which rule of extraction fired."""
    truncated: bool = False
    """Examples were left out, because the prompt was too long, or the reply ended by its limit."""
    shots: int = 0
    """Examples that the prompt kept."""
    error: str = ""
    """Why there is no answer; everything else but the key is then meaningless."""
    too_long: bool = False
    """The error is that the question does not fit the context: asking again does not help."""
    tokens: int = 0
    """That the model computed for it."""
    naive_tokens: int = 0
    """That it would have computed without sharing anything: every prompt whole."""

    @property
    def key(self) -> tuple[str, str, int]:
        return self.suite, self.subject, self.index


@dataclass(frozen=True, slots=True)
class SubjectPlan:
    """One subject of a suite: what has to be asked."""

    suite: str
    subject: str
    title: str
    """For people, in the suite's own language."""
    categories: tuple[str, ...]
    """Such as `stem`; a subject may be in several, or in none."""
    questions: tuple[EvalSample, ...]


@dataclass(frozen=True, slots=True)
class BenchmarkPlan:
    """One suite as this run will ask it."""

    suite: str
    mode: EvalMode
    shots: int
    prompt_hash: str
    """Of the form of the prompts, not of the questions: 12 hex digits of a SHA-256."""
    data_hash: str
    """SHA-256 in hex of the files that were read."""
    data_source: str
    """Where they lie."""
    chance: float | None
    """Share that a blind guess gets right; None where nothing can be guessed."""
    max_new_tokens: int
    """Of a reply, in mode `gen`."""
    subjects: tuple[SubjectPlan, ...]

    @property
    def question_count(self) -> int:
        return sum(len(subject.questions) for subject in self.subjects)


@dataclass(frozen=True, slots=True)
class AggregateScore:
    """What a subject, a category or a suite amounts to.

    Shares are between 0 and 1, and of the questions that were answered: those that failed are
    counted beside them, never in them.
    """

    name: str
    title: str
    total: int
    """Questions that were to be asked."""
    answered: int
    correct: int
    failed: int
    unparsed: int
    """Replies in which no answer was found; they count as wrong."""
    truncated: int
    accuracy: float | None
    """None where nothing was answered. Of a category or suite: over all its questions (micro)."""
    stderr: float | None
    low: float | None
    """Ends of the 95 % interval by Wilson's score method (Wilson 1927)."""
    high: float | None
    macro: float | None = None
    """Mean over the subjects' accuracies; of a category or suite alone."""
    robust_accuracy: float | None = None
    """By the more careful extraction; replies alone."""


@dataclass(frozen=True, slots=True)
class BenchmarkScore:
    """The result of one suite, and how it was made."""

    suite: str
    mode: EvalMode
    shots: int
    prompt_hash: str
    data_hash: str
    data_source: str
    chance: float | None
    overall: AggregateScore
    categories: tuple[AggregateScore, ...]
    subjects: tuple[AggregateScore, ...]
    letters: Mapping[str, int]
    """How often each label was answered."""
    warnings: tuple[str, ...] = ()
    tokens: int = 0
    naive_tokens: int = 0


@dataclass(frozen=True, slots=True)
class EvalReport:
    """Everything that one run of `llmctl eval` found."""

    model: str
    """As the person named it, or the endpoint's address and its model."""
    backend: EvalBackend
    how: Mapping[str, str]
    """What the numbers depend on besides the suites: dtype, quant, template, weights, ..."""
    suites: tuple[BenchmarkScore, ...]
    seconds: float
    """That the questions took, without loading."""
    folder: str
    """Where the results lie."""
    run_id: str | None = None
    """Of the tracked run."""
    complete: bool = True
    """Whether every question was asked."""
    too_long: int = 0
    """Of the questions without an answer, those that do not fit the model's context."""

    @property
    def failed(self) -> int:
        """Questions without an answer."""
        return sum(suite.overall.failed for suite in self.suites)


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """Two runs over the same questions of one suite."""

    suite: str
    scope: str
    """The suite itself, a category or a subject."""
    questions: int
    """That both answered."""
    first: float
    """Share right."""
    second: float
    low: float
    """Ends of the 95 % interval of `second - first`, by paired bootstrap."""
    high: float
    gained: int
    """Wrong in the first, right in the second."""
    lost: int
    p_value: float
    """Of McNemar's exact test: how likely so uneven a split of the flipped questions is."""


ResultCallback = Callable[[SampleResult], None]
"""Told of each result as soon as it is there. It may be called from another thread, one at a
time."""


def check_mode(mode: str) -> None:
    """Raise `ConfigError` for a mode that is none."""
    if mode not in get_args(EvalMode):
        raise ConfigError(f"unknown mode {mode!r}", hint=f"one of: {', '.join(get_args(EvalMode))}")
