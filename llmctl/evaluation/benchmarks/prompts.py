"""How does a row of data become a prompt? Templates, and the one function that fills them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmctl.types import Extraction, Message, Question

LABELS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Row:
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
class TextForm:
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
        self, suite: str, subject: str, title: str, row: Row, examples: Sequence[Row]
    ) -> Question:
        about = {"subject": title}
        values = row.values() | about
        return Question(
            suite,
            subject,
            row.index,
            row.gold,
            row.labels,
            head=fill(self.head, about),
            examples=tuple(fill(self.example, one.values() | about) for one in examples),
            gap=self.gap,
            body=fill(self.body, values),
            continuations=tuple(
                fill(self.ending, {"label": label, "text": text})
                for label, text in zip(row.labels, row.options, strict=True)
            ),
            options=row.options,
        )


@dataclass(frozen=True, slots=True)
class ChatForm:
    """Asks for a reply: examples as turns, then the question."""

    ask: str
    answer: str
    """What the assistant says in an example."""
    extraction: Extraction
    max_new_tokens: int
    shots: int = 0

    def question(
        self, suite: str, subject: str, title: str, row: Row, examples: Sequence[Row]
    ) -> Question:
        about = {"subject": title}
        turns = []
        for one in examples:
            values = one.values() | about
            turns += [
                Message("user", fill(self.ask, values)),
                Message("assistant", fill(self.answer, values)),
            ]
        return Question(
            suite,
            subject,
            row.index,
            row.gold,
            row.labels,
            messages=(*turns, Message("user", fill(self.ask, row.values() | about))),
            extraction=row.extraction or self.extraction,
            options=row.options,
        )


Form = TextForm | ChatForm


def fill(template: str, values: Mapping[str, str]) -> str:
    """Put values in a template's places, once: what a value holds is never a place."""
    return _PLACE.sub(lambda place: values.get(place[1], place[0]), template)
