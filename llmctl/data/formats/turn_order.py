"""Do the turns of a conversation follow each other as a chat template and a loss expect?"""

from collections.abc import Sequence

from llmctl.data.formats.turns import TurnList
from llmctl.data.rows.row_errors import RowErrorCollector, join_names
from llmctl.did_you_mean import did_you_mean
from llmctl.types import Message, Tool

_NAMES = {"assistant": "an assistant", "user": "a user", "tool": "a tool"}


def response_start(messages: Sequence[Message]) -> int:
    """Return the index of the message after the last user's, 0 where no user speaks."""
    return max((i + 1 for i, message in enumerate(messages) if message.role == "user"), default=0)


def validate_turn_order(
    turns: TurnList, tools: Sequence[Tool], collector: RowErrorCollector
) -> None:
    """Note every turn that stands where it cannot: the end is left to `validate_last_turn`."""
    known = [tool.name for tool in tools]
    previous: Message | None = None
    called: list[str] = []
    for message, path in zip(turns.messages, turns.paths, strict=True):
        wrong = _misplaced(message, previous, first=path == turns.paths[0])
        if wrong is not None:
            collector.add("role-order", path, *wrong)
        for call in message.tool_calls:
            if known and call.name not in known:
                near = did_you_mean(call.name, known, cutoff=0.8)
                fix = f"did you mean {near!r}?" if near else f"one of {join_names(known)}"
                what = f"calls {call.name!r}, which is none of the tools"
                collector.add("unknown-tool", path, what, fix)
        if message.role == "assistant":
            called = [call.id for call in message.tool_calls if call.id]
        answered = message.tool_call_id
        if message.role == "tool" and answered is not None and called and answered not in called:
            what = f"answers the call {answered!r}, which nobody made"
            collector.add("tool-call-id", path, what, f"one of {join_names(called)}")
        if message.role not in ("system", "developer"):
            previous = message


def validate_last_turn(turns: TurnList, collector: RowErrorCollector) -> None:
    """Note a conversation that does not end with an assistant's turn to learn."""
    if not turns.messages:
        return
    last = turns.messages[-1]
    if last.role != "assistant":
        speaker = _NAMES.get(last.role, "the system")
        collector.add(
            "last-turn",
            turns.paths[-1],
            f"the last turn is {speaker}'s",
            "end with the assistant's answer, or cut this turn off",
        )
    learnt = [
        index
        for index, message in enumerate(turns.messages)
        if message.role == "assistant" and index not in turns.masked
    ]
    if last.role == "assistant" and not learnt:
        collector.add(
            "weight", turns.paths[0][:1], "every turn has the weight 0", "1 on one of them"
        )


def _misplaced(
    message: Message, previous: Message | None, *, first: bool
) -> tuple[str, str] | None:
    """Say what is wrong with a turn's place and what would be right."""
    before = None if previous is None else previous.role
    match message.role:
        case "system" | "developer" if not first:
            return f"a {message.role} message after the first turn", "one, at the very start"
        case "user" if before == "user":
            return "two user's turns in a row", "an answer between, or one joined turn"
        case "user" if before == "tool":
            return "a user's turn right after a tool's result", "an assistant's turn between them"
        case "user" if previous is not None and previous.tool_calls:
            return "the calls before this turn have no result", "a tool's turn for each call"
        case "assistant" if before is None:
            return "the conversation begins with the assistant", "begin with a user's turn"
        case "assistant" if before == "assistant":
            return (
                "two assistant's turns in a row",
                "a user's turn between, or one joined turn",
            )
        case "tool" if before != "tool" and not (previous and previous.tool_calls):
            return "a tool's result that nobody called for", "an assistant's turn with tool_calls"
    return None
