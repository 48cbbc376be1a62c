"""Prompt templates that render a `Doc` into an `EvalSample`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from llmctl.types import EvalSample, Extraction, Message

LABELS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Doc:
    """One question of a dataset, before it is rendered."""

    question: str
    gold: str
    """The right label, several as sorted letters, or the reference answer."""
    options: tuple[str, ...] = ()
    solution: str = ""
    """Worked solution, shown if the doc is used as a few-shot example."""
    extraction: Extraction | None = None
    """Extraction for this doc; None uses the template's."""
    index: int = 0
    """Position among the evaluated docs of its file, from 0."""
    subject: str = ""
    """Subject, if the file holds several; a doc without one belongs to every subject."""

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(LABELS[: len(self.options)])

    def template_values(self) -> dict[str, str]:
        """Return the values of a template's placeholders."""
        options = dict(zip(self.labels, self.options, strict=True))
        return options | {
            "question": self.question,
            "options": "\n".join(f"{label}. {text}" for label, text in options.items()),
            "answer": self.gold,
            "answer_text": options.get(self.gold, self.gold),
            "solution": self.solution,
        }


@dataclass(frozen=True, slots=True)
class CompletionPrompt:
    """Template of the log-likelihood modes: head, examples, body, then one ending per label."""

    example: str
    body: str
    ending: str
    """With `{label}` or `{text}`."""
    head: str = ""
    gap: str = ""
    """Text between the examples and the body, if there are examples."""
    shots: int = 0
    """Default number of examples."""

    def render(
        self, benchmark: str, subject: str, title: str, doc: Doc, examples: Sequence[Doc]
    ) -> EvalSample:
        """Render one sample.

        Args:
            benchmark: name of the benchmark.
            subject: name of the subject.
            title: display name of the subject, for the placeholder `{subject}`.
            doc: the question.
            examples: few-shot examples, in order.
        """
        shared = {"subject": title}
        return EvalSample(
            benchmark,
            subject,
            doc.index,
            doc.gold,
            doc.labels,
            head=fill_template(self.head, shared),
            examples=tuple(
                fill_template(self.example, example.template_values() | shared)
                for example in examples
            ),
            gap=self.gap,
            body=fill_template(self.body, doc.template_values() | shared),
            continuations=tuple(
                fill_template(self.ending, {"label": label, "text": text})
                for label, text in zip(doc.labels, doc.options, strict=True)
            ),
            options=doc.options,
        )


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Template of mode `gen`: examples as user and assistant turns, then the question."""

    user: str
    assistant: str
    """The assistant turn of an example."""
    extraction: Extraction
    max_new_tokens: int
    shots: int = 0
    """Default number of examples."""

    def render(
        self, benchmark: str, subject: str, title: str, doc: Doc, examples: Sequence[Doc]
    ) -> EvalSample:
        """Render one sample; the arguments are those of `CompletionPrompt.render`."""
        shared = {"subject": title}
        messages = []
        for example in examples:
            values = example.template_values() | shared
            messages += [
                Message("user", fill_template(self.user, values)),
                Message("assistant", fill_template(self.assistant, values)),
            ]
        question = fill_template(self.user, doc.template_values() | shared)
        return EvalSample(
            benchmark,
            subject,
            doc.index,
            doc.gold,
            doc.labels,
            messages=(*messages, Message("user", question)),
            extraction=doc.extraction or self.extraction,
            options=doc.options,
        )


PromptTemplate = CompletionPrompt | ChatPrompt


def fill_template(template: str, values: Mapping[str, str]) -> str:
    """Replace the placeholders in one pass, so that braces in a value are never replaced."""
    return _PLACEHOLDER.sub(lambda place: values.get(place[1], place[0]), template)
