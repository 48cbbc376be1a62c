"""Validation of the order of turns, as chat templates and the loss require it."""

from collections.abc import Sequence

from llmctl.data.formats.turns import TurnList
from llmctl.data.rows.row_errors import RowErrorCollector, join_names
from llmctl.did_you_mean import did_you_mean
from llmctl.types import Message, Tool

_SPEAKERS = {"assistant": "the assistant's", "user": "the user's", "tool": "a tool's"}


def response_start(messages: Sequence[Message]) -> int:
    """Return the index of the message after the last user's, 0 if there is no user's message."""
    return max((i + 1 for i, message in enumerate(messages) if message.role == "user"), default=0)


def validate_turn_order(
    turns: TurnList, tools: Sequence[Tool], collector: RowErrorCollector
) -> None:
    """Add an error for every misplaced turn; see `validate_last_turn` for the end."""
    known = [tool.name for tool in tools]
    previous: Message | None = None
    call_ids: list[str] = []
    for message, path in zip(turns.messages, turns.paths, strict=True):
        error = _misplaced(message, previous, first=path == turns.paths[0])
        if error is not None:
            collector.add("role-order", path, *error)
        for call in message.tool_calls:
            if known and call.name not in known:
                near = did_you_mean(call.name, known, cutoff=0.8)
                fix = f"did you mean {near!r}?" if near else f"one of {join_names(known)}"
                what = f"calls {call.name!r}, which is not in the tools"
                collector.add("unknown-tool", path, what, fix)
        if message.role == "assistant":
            call_ids = [call.id for call in message.tool_calls if call.id]
        call_id = message.tool_call_id
        if message.role == "tool" and call_id is not None and call_ids and call_id not in call_ids:
            what = f"answers an unknown tool call {call_id!r}"
            collector.add("tool-call-id", path, what, f"one of {join_names(call_ids)}")
        if message.role not in ("system", "developer"):
            previous = message


def validate_last_turn(turns: TurnList, collector: RowErrorCollector) -> None:
    """Add an error if a conversation does not end with an assistant's turn or has no loss."""
    if not turns.messages:
        return
    last = turns.messages[-1]
    if last.role != "assistant":
        speaker = _SPEAKERS.get(last.role, "the system's")
        collector.add(
            "last-turn",
            turns.paths[-1],
            f"the last turn is {speaker}",
            "end with the assistant's answer, or remove this turn",
        )
    trained = [
        index
        for index, message in enumerate(turns.messages)
        if message.role == "assistant" and index not in turns.masked
    ]
    if last.role == "assistant" and not trained:
        collector.add(
            "weight", turns.paths[0][:1], "every turn has weight 0", "weight 1 on one of them"
        )


def _misplaced(
    message: Message, previous: Message | None, *, first: bool
) -> tuple[str, str] | None:
    """Return what is wrong with a turn's place and how to fix it, `None` if it is valid."""
    before = None if previous is None else previous.role
    match message.role:
        case "system" | "developer" if not first:
            return f"a {message.role} message after the first turn", "one, as the first turn"
        case "user" if before == "user":
            return "two user's turns in a row", "an answer between them, or one joined turn"
        case "user" if before == "tool":
            return "a user's turn right after a tool's result", "an assistant's turn between them"
        case "user" if previous is not None and previous.tool_calls:
            return "the tool calls before this turn have no results", "a tool's turn for each call"
        case "assistant" if before is None:
            return "the conversation begins with the assistant", "begin with a user's turn"
        case "assistant" if before == "assistant":
            return (
                "two assistant's turns in a row",
                "a user's turn between them, or one joined turn",
            )
        case "tool" if before != "tool" and not (previous and previous.tool_calls):
            return "a tool result without a tool call", "an assistant's turn with tool_calls"
    return None
