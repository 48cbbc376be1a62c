"""What is a conversation: its turns, what became of each, and what of it the model is given."""

import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self, get_args

from llmctl.errors import LlmctlError
from llmctl.types import Message

TurnState = Literal["whole", "stopped", "failed", "cut"]
"""Of a reply: as the model ended it, stopped by the person, broken off by an error, or cut off by
the limit of tokens or the end of the context."""
_SUMMARY = "What was said before, in short:\n"


@dataclass(frozen=True, slots=True)
class ReplyStats:
    """How one reply went."""

    duration_s: float
    ttft_s: float | None
    """Time to the first token; `None` if none came."""
    completion_tokens: int
    prompt_tokens: int | None = None
    """`None` where the reply was broken off, or a server counts nothing."""
    cached_tokens: int = 0
    context_length: int = 0
    """0 where it is not known."""

    @property
    def tokens_per_s(self) -> float | None:
        """Speed after the first token; `None` of a reply too short to have one."""
        if self.ttft_s is None or self.completion_tokens < 2 or self.duration_s <= self.ttft_s:
            return None
        return (self.completion_tokens - 1) / (self.duration_s - self.ttft_s)

    @property
    def used_tokens(self) -> int | None:
        """Tokens of the context that the conversation took, this reply included."""
        return None if self.prompt_tokens is None else self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Turn:
    """A question or a reply."""

    message: Message
    state: TurnState = "whole"
    note: str = ""
    """Why it failed."""
    model: str = ""
    """Who replied."""
    at: float = field(default_factory=time.time)
    """Unix time in seconds."""
    figures: ReplyStats | None = None

    @property
    def is_question(self) -> bool:
        return self.message.role == "user"


@dataclass(frozen=True, slots=True)
class Conversation:
    """What was said so far. Questions and replies take turns; the last question may have none."""

    id: str = field(default_factory=lambda: secrets.token_hex(4))
    created: float = field(default_factory=time.time)
    system: str | None = None
    turns: tuple[Turn, ...] = ()
    begin: int = 0
    """Index of the first turn that the model is still given."""
    summary: str = ""
    """Of the turns before `begin`, for the model."""
    version: int = 0
    """Of what the store has; 0 is not stored yet."""

    @property
    def title(self) -> str:
        """The first question, on one line."""
        return " ".join(self.turns[0].message.content.split()) if self.turns else ""

    @property
    def model(self) -> str:
        """Who replied last; empty if nobody has."""
        return next((turn.model for turn in reversed(self.turns) if turn.model), "")

    @property
    def pending_question(self) -> Turn | None:
        """The last question, if it has no reply."""
        return self.turns[-1] if self.turns and self.turns[-1].is_question else None

    @property
    def last_reply(self) -> Turn | None:
        return next((turn for turn in reversed(self.turns) if not turn.is_question), None)

    def asked(self, text: str) -> Self:
        """Return it with one more question. One without a reply gives way to it."""
        kept = self.turns[:-1] if self.pending_question else self.turns
        return replace(self, turns=(*kept, Turn(Message("user", text))))

    def with_reply(self, reply: Turn) -> Self:
        """Return it with the reply to its last question, in place of one that is there."""
        return replace(self.without_reply(), turns=(*self.without_reply().turns, reply))

    def without_reply(self) -> Self:
        """Return it as it was when its last question was asked."""
        kept = self.turns if self.pending_question else self.turns[:-1]
        return replace(self, turns=kept)

    def without_question(self) -> Self:
        """Return it as it was before its last question."""
        turns = self.without_reply().turns[:-1]
        seen = self.begin < len(turns)
        return replace(
            self,
            turns=turns,
            begin=self.begin if seen else 0,
            summary=self.summary if seen else "",
        )

    def messages(self) -> tuple[Message, ...]:
        """Return what the model is given."""
        words = [self.system or "", _SUMMARY + self.summary if self.summary else ""]
        opening = "\n\n".join(filter(None, words))
        head = (Message("system", opening),) if opening else ()
        # Whatever was dropped, the last question can be answered again.
        asked = max((i for i, turn in enumerate(self.turns) if turn.is_question), default=0)
        return (*head, *(turn.message for turn in self.turns[min(self.begin, asked) :]))


def conversation_to_dict(conversation: Conversation) -> dict[str, Any]:
    """Write a conversation as JSON values."""
    plain = asdict(replace(conversation, turns=()))
    del plain["version"]
    return plain | {"turns": [turn_to_dict(turn) for turn in conversation.turns]}


def turn_to_dict(turn: Turn) -> dict[str, Any]:
    """Write a turn as JSON values; what says nothing is left out."""
    written: dict[str, Any] = {"role": turn.message.role, "content": turn.message.content}
    also = {
        "reasoning": turn.message.reasoning,
        "state": None if turn.state == "whole" else turn.state,
        "note": turn.note,
        "model": turn.model,
        "at": turn.at,
        "figures": None if turn.figures is None else asdict(turn.figures),
    }
    return written | {name: value for name, value in also.items() if value not in (None, "")}


def conversation_from_dict(plain: object) -> Conversation:
    """Read what `conversation_to_dict` wrote, or any object with OpenAI's `messages`.

    Raises:
        LlmctlError: it is no conversation; the message says where.
    """
    if not isinstance(plain, dict):
        raise LlmctlError("it holds no JSON object")
    rows = plain.get("turns", plain.get("messages"))
    if not isinstance(rows, list):
        raise LlmctlError("it has neither turns nor messages")
    system = plain.get("system")
    if rows and isinstance(rows[0], dict) and rows[0].get("role") in ("system", "developer"):
        system, rows = rows[0].get("content"), rows[1:]
    if system is not None and not isinstance(system, str):
        raise LlmctlError("its system prompt is no text")
    turns = tuple(turn_from_dict(row, number) for number, row in enumerate(rows, 1))
    for number, turn in enumerate(turns, 1):
        if turn.is_question != (number % 2 == 1):
            raise LlmctlError(f"turn {number} is the {turn.message.role}'s, out of turn")
    read = Conversation(system=system, turns=turns)
    begin, summary = plain.get("begin", 0), plain.get("summary", "")
    if not isinstance(begin, int) or not 0 <= begin <= len(turns) or not isinstance(summary, str):
        raise LlmctlError(f"what the model is given begins at {begin!r}, which is no turn")
    if isinstance(id := plain.get("id"), str):
        read = replace(read, id=id)
    if isinstance(created := plain.get("created"), int | float):
        read = replace(read, created=created)
    return replace(read, begin=begin, summary=summary)


def turn_from_dict(row: object, number: int) -> Turn:
    """Read what `turn_to_dict` wrote. Raises `LlmctlError`, which names the turn."""
    if not isinstance(row, Mapping):
        raise LlmctlError(f"turn {number} is no JSON object")
    role, content = row.get("role"), row.get("content")
    if role not in ("user", "assistant"):
        raise LlmctlError(f"turn {number} has the role {role!r}, not user or assistant")
    reasoning = row.get("reasoning", row.get("reasoning_content"))
    if not isinstance(content, str) or not isinstance(reasoning, str | None):
        raise LlmctlError(f"turn {number} has no text")
    state, figures = row.get("state", "whole"), row.get("figures")
    if state not in get_args(TurnState):
        raise LlmctlError(f"turn {number} is {state!r}, not {' or '.join(get_args(TurnState))}")
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
