"""A chat conversation: its turns, the state of each reply, and its JSON form."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self, get_args

from llmctl.errors import LlmctlError
from llmctl.types import Message

TurnState = Literal["whole", "stopped", "failed", "cut"]
"""State of a reply: complete, stopped by the user, failed with an error, or cut off by the token
limit or the end of the context. The values are stored on disk."""
_SUMMARY = "What was said before, in short:\n"


@dataclass(frozen=True, slots=True)
class ReplyStats:
    """Timing and token counts of one reply."""

    duration_s: float
    ttft_s: float | None
    """Time to first token; `None` if no token arrived."""
    completion_tokens: int
    prompt_tokens: int | None = None
    """`None` if the reply was interrupted or the server does not report usage."""
    cached_tokens: int = 0
    context_length: int = 0
    """In tokens; 0 if unknown."""

    @property
    def tokens_per_s(self) -> float | None:
        """Decode speed after the first token; `None` if the reply is too short to measure."""
        if self.ttft_s is None or self.completion_tokens < 2 or self.duration_s <= self.ttft_s:
            return None
        return (self.completion_tokens - 1) / (self.duration_s - self.ttft_s)

    @property
    def used_tokens(self) -> int | None:
        """Context tokens in use after this reply; `None` if unknown."""
        return None if self.prompt_tokens is None else self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Turn:
    """A user message or a reply."""

    message: Message
    state: TurnState = "whole"
    note: str = ""
    """Error message of a failed reply."""
    model: str = ""
    """Id of the model that replied."""
    at: float = field(default_factory=time.time)
    """Unix time in seconds."""
    figures: ReplyStats | None = None

    @property
    def is_user(self) -> bool:
        return self.message.role == "user"


@dataclass(frozen=True, slots=True)
class Conversation:
    """User messages and replies in alternation; the last user message may have no reply."""

    id: str = field(default_factory=lambda: secrets.token_hex(4))
    created: float = field(default_factory=time.time)
    system: str | None = None
    turns: tuple[Turn, ...] = ()
    begin: int = 0
    """Index of the first turn that is part of the prompt."""
    summary: str = ""
    """Summary of the turns before `begin`, sent with the system prompt."""
    version: int = 0
    """Version in the store; 0 means not stored yet."""

    @property
    def title(self) -> str:
        """The first user message on one line."""
        return " ".join(self.turns[0].message.content.split()) if self.turns else ""

    @property
    def model(self) -> str:
        """Id of the model of the last reply; empty if there is none."""
        return next((turn.model for turn in reversed(self.turns) if turn.model), "")

    @property
    def pending_message(self) -> Turn | None:
        """The last user turn if it has no reply."""
        return self.turns[-1] if self.turns and self.turns[-1].is_user else None

    @property
    def last_reply(self) -> Turn | None:
        return next((turn for turn in reversed(self.turns) if not turn.is_user), None)

    def with_message(self, text: str) -> Self:
        """Return a copy with one more user message, which replaces one without a reply."""
        kept = self.turns[:-1] if self.pending_message else self.turns
        return replace(self, turns=(*kept, Turn(Message("user", text))))

    def with_reply(self, reply: Turn) -> Self:
        """Return a copy with `reply` as the reply to the last message, replacing an earlier one."""
        return replace(self.without_reply(), turns=(*self.without_reply().turns, reply))

    def without_reply(self) -> Self:
        """Return a copy without the reply to the last message."""
        kept = self.turns if self.pending_message else self.turns[:-1]
        return replace(self, turns=kept)

    def without_last_exchange(self) -> Self:
        """Return a copy without the last user message and its reply."""
        turns = self.without_reply().turns[:-1]
        if self.begin < len(turns):
            return replace(self, turns=turns)
        return replace(self, turns=turns, begin=0, summary="")

    def messages(self) -> tuple[Message, ...]:
        """Return the messages of the prompt."""
        parts = [self.system or "", _SUMMARY + self.summary if self.summary else ""]
        system = "\n\n".join(filter(None, parts))
        head = (Message("system", system),) if system else ()
        # The last message can be answered again even if it was dropped.
        last = max((i for i, turn in enumerate(self.turns) if turn.is_user), default=0)
        return (*head, *(turn.message for turn in self.turns[min(self.begin, last) :]))


def conversation_to_dict(conversation: Conversation) -> dict[str, Any]:
    """Return the conversation as JSON values, without its store version."""
    value = asdict(replace(conversation, turns=()))
    del value["version"]
    return value | {"turns": [turn_to_dict(turn) for turn in conversation.turns]}


def turn_to_dict(turn: Turn) -> dict[str, Any]:
    """Return a turn as JSON values, without empty ones."""
    required: dict[str, Any] = {"role": turn.message.role, "content": turn.message.content}
    optional = {
        "reasoning": turn.message.reasoning,
        "state": None if turn.state == "whole" else turn.state,
        "note": turn.note,
        "model": turn.model,
        "at": turn.at,
        "figures": None if turn.figures is None else asdict(turn.figures),
    }
    return required | {name: value for name, value in optional.items() if value not in (None, "")}


def conversation_from_dict(value: object) -> Conversation:
    """Read the output of `conversation_to_dict`, or an object with OpenAI's `messages`.

    Raises:
        LlmctlError: the value is not a conversation; the message names the turn.
    """
    if not isinstance(value, dict):
        raise LlmctlError("not a JSON object")
    rows = value.get("turns", value.get("messages"))
    if not isinstance(rows, list):
        raise LlmctlError("it has neither turns nor messages")
    system = value.get("system")
    if rows and isinstance(rows[0], dict) and rows[0].get("role") in ("system", "developer"):
        system, rows = rows[0].get("content"), rows[1:]
    if system is not None and not isinstance(system, str):
        raise LlmctlError("the system prompt is not a string")
    turns = tuple(turn_from_dict(row, number) for number, row in enumerate(rows, 1))
    for number, turn in enumerate(turns, 1):
        if turn.is_user != (number % 2 == 1):
            raise LlmctlError(f"turn {number} has the role {turn.message.role}, out of order")
    read = Conversation(system=system, turns=turns)
    begin, summary = value.get("begin", 0), value.get("summary", "")
    if not isinstance(begin, int) or not 0 <= begin <= len(turns) or not isinstance(summary, str):
        raise LlmctlError(f"begin is {begin!r}, which is not the index of a turn")
    if isinstance(id := value.get("id"), str):
        read = replace(read, id=id)
    if isinstance(created := value.get("created"), int | float):
        read = replace(read, created=created)
    return replace(read, begin=begin, summary=summary)


def turn_from_dict(row: object, number: int) -> Turn:
    """Read the output of `turn_to_dict`. Raises `LlmctlError`, which names the turn."""
    if not isinstance(row, Mapping):
        raise LlmctlError(f"turn {number} is not a JSON object")
    role, content = row.get("role"), row.get("content")
    if role not in ("user", "assistant"):
        raise LlmctlError(f"turn {number} has the role {role!r}, not user or assistant")
    reasoning = row.get("reasoning", row.get("reasoning_content"))
    if not isinstance(content, str) or not isinstance(reasoning, str | None):
        raise LlmctlError(f"turn {number} has no text content")
    state, figures = row.get("state", "whole"), row.get("figures")
    if state not in get_args(TurnState):
        raise LlmctlError(
            f"turn {number} has the state {state!r}, not {' or '.join(get_args(TurnState))}"
        )
    try:
        return Turn(
            Message(role, content, reasoning=reasoning),
            state,
            note=str(row.get("note", "")),
            model=str(row.get("model", "")),
            at=float(row.get("at", time.time())),
            figures=None if figures is None else ReplyStats(**figures),
        )
    except (TypeError, ValueError) as error:
        raise LlmctlError(f"turn {number} cannot be read: {error}") from error
