"""How does a row of data become a prompt? Templates, and the one function that fills them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmctl.types import EvalSample, Extraction, Message

LABELS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Doc:
    """One question as the data has it."""

    question: str
    gold: str
    """The right label, or what a right reply says."""
    options: tuple[str, ...] = ()
    solution: str = ""
    """How an example answers, where that is more than the gold."""
    extraction: Extraction | None = None
    """How this reply is read, where the form does not say it for all."""
    index: int = 0
    """Place among the rows that are asked, from 0."""
    subject: str = ""
    """Where one file holds several; empty belongs to any."""

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(LABELS[: len(self.options)])

    def values(self) -> dict[str, str]:
        """Return what the placeholders of a template stand for."""
        named = dict(zip(self.labels, self.options, strict=True))
        listed = "\n".join(f"{label}. {text}" for label, text in named.items())
        return named | {
            "question": self.question,
            "options": listed,
            "answer": self.gold,
            "answer_text": named.get(self.gold, self.gold),
            "solution": self.solution,
        }


@dataclass(frozen=True, slots=True)
class CompletionPrompt:
    """Asks for likelihoods: `head`, the examples, `body`, then each label's `ending`."""

    example: str
    body: str
    ending: str
    """With `{label}` or `{text}`."""
    head: str = ""
    gap: str = ""
    """Between the examples and the body, where there are examples."""
    shots: int = 0
    """Examples where nobody says how many."""

    def question(
        self, suite: str, subject: str, title: str, row: Doc, examples: Sequence[Doc]
    ) -> EvalSample:
        about = {"subject": title}
        values = row.values() | about
        return EvalSample(
            suite,
            subject,
            row.index,
            row.gold,
            row.labels,
            head=fill_template(self.head, about),
            examples=tuple(fill_template(self.example, one.values() | about) for one in examples),
            gap=self.gap,
            body=fill_template(self.body, values),
            continuations=tuple(
                fill_template(self.ending, {"label": label, "text": text})
                for label, text in zip(row.labels, row.options, strict=True)
            ),
            options=row.options,
        )


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Asks for a reply: examples as turns, then the question."""

    ask: str
    answer: str
    """What the assistant says in an example."""
    extraction: Extraction
    max_new_tokens: int
    shots: int = 0

    def question(
        self, suite: str, subject: str, title: str, row: Doc, examples: Sequence[Doc]
    ) -> EvalSample:
        about = {"subject": title}
        turns = []
        for one in examples:
            values = one.values() | about
            turns += [
                Message("user", fill_template(self.ask, values)),
                Message("assistant", fill_template(self.answer, values)),
            ]
        return EvalSample(
            suite,
            subject,
            row.index,
            row.gold,
            row.labels,
            messages=(*turns, Message("user", fill_template(self.ask, row.values() | about))),
            extraction=row.extraction or self.extraction,
            options=row.options,
        )


PromptTemplate = CompletionPrompt | ChatPrompt


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Put values in a template's places, once: what a value holds is never a place."""
    return _PLACE.sub(lambda place: values.get(place[1], place[0]), template)
