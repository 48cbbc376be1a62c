"""The interface of the readers of tool calls."""

from typing import Protocol

from llmctl.engine.chat.parsing.response_output import ResponseOutput
from llmctl.engine.chat.parsing.text_source import Steps, TextSource


class CallReader(Protocol):
    """Reads the calls of one format. Stateless: one reader serves many responses."""

    @property
    def openings(self) -> tuple[str, ...]:
        """Marks with which calls begin, within or after the answer."""

    @property
    def bare(self) -> bool:
        """Whether the response may begin with a call that no mark announces."""

    @property
    def line_start(self) -> bool:
        """Whether a mark counts only as the first of its line."""

    @property
    def marks(self) -> tuple[str, ...]:
        """All marks: those that are special tokens must be decoded."""

    def read(self, source: TextSource, output: ResponseOutput, opening: str) -> Steps[None]:
        """Read one call, or a list of calls, after `opening`, which is empty for a bare call.

        Raises:
            UnexpectedTextError: what follows is not a call; or, once `output.call_open` is true,
                the response was cut off within the arguments.
        """
