"""What must a candidate be able to do? Say how likely texts are, and answer questions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmctl.engine.loglikelihood import GroupScore
from llmctl.errors import LlmctlError
from llmctl.types import EvalSample


@dataclass(frozen=True, slots=True)
class Generation:
    """What a candidate wrote."""

    text: str
    cut: bool
    """It ended by its limit, not by itself."""
    computed_tokens: int
    """Tokens that the model computed for it."""
    whole: int
    """Tokens of prompt and reply."""


class ModelAdapter(Protocol):
    """A candidate, as the native backend asks it.

    Each method yields one outcome for each question, in order; an error in place of an outcome
    concerns that question alone.

    Raises:
        EngineStoppedError: nobody is there to answer any more.
    """

    def score(
        self, questions: Sequence[EvalSample], *, whole: bool
    ) -> Iterator[GroupScore | LlmctlError]:
        """Score the text of every label.

        Args:
            questions: of one subject, so that they may share their examples.
            whole: count every token of the text; else those of the continuation alone.
        """

    def write(
        self, questions: Sequence[EvalSample], max_new_tokens: int
    ) -> Iterator[Generation | LlmctlError]:
        """Answer in writing, by greedy decoding."""
