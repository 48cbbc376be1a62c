"""Strategies for valid conversations, for property tests."""

import json
from dataclasses import replace

from hypothesis import strategies as st

from llmctl.types import Example, Message, SourceLocation, Tool, ToolCall

ORIGIN = SourceLocation("made.jsonl", 1)
NAMES = st.sampled_from(["weather", "查询", "open_door"])
TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
).filter(str.strip)
SCHEMAS = st.none() | st.just({"type": "object", "properties": {"city": {"type": "string"}}})


@st.composite
def plain_turns(draw: st.DrawFn) -> tuple[Message, ...]:
    """An optional system message, then questions and answers."""
    system = draw(st.none() | TEXTS)
    turns = [] if system is None else [Message("system", system)]
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Message("user", draw(TEXTS)))
        turns.append(Message("assistant", draw(TEXTS)))
    return tuple(turns)


@st.composite
def turns_with_tools(draw: st.DrawFn) -> tuple[Message, ...]:
    """Questions answered after tool calls, some of them with ids."""
    turns: list[Message] = []
    for number in range(draw(st.integers(1, 2))):
        turns.append(Message("user", draw(TEXTS)))
        has_ids = draw(st.booleans())
        calls = tuple(
            ToolCall(
                draw(NAMES),
                json.dumps(draw(st.dictionaries(TEXTS, TEXTS, max_size=2)), ensure_ascii=False),
                f"call_{number}_{index}" if has_ids else "",
            )
            for index in range(draw(st.integers(1, 2)))
        )
        turns.append(Message("assistant", draw(st.just("") | TEXTS), tool_calls=calls))
        turns += [Message("tool", draw(TEXTS), tool_call_id=call.id or None) for call in calls]
        turns.append(Message("assistant", draw(TEXTS)))
    return tuple(turns)


@st.composite
def examples(draw: st.DrawFn) -> Example:
    """Any conversation, with optional reasoning, masks and tools."""
    with_tools = draw(st.booleans())
    turns = list(draw(turns_with_tools() if with_tools else plain_turns()))
    for index, turn in enumerate(turns):
        if turn.role == "assistant" and draw(st.booleans()):
            turns[index] = replace(turn, reasoning=draw(TEXTS))
    replies = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    masked = draw(st.sets(st.sampled_from(replies))) - {replies[-1]}
    called = sorted({call.name for turn in turns for call in turn.tool_calls})
    listed = called if draw(st.booleans()) else []
    tools = tuple(Tool(name, draw(st.just("") | TEXTS), draw(SCHEMAS)) for name in listed)
    return Example(ORIGIN, "messages", tuple(turns), tools, masked=tuple(sorted(masked)))


@st.composite
def pairs(draw: st.DrawFn) -> Example:
    """A preference pair."""
    turns = draw(plain_turns())
    worse = draw(TEXTS.filter(lambda text: text != turns[-1].content))
    return Example(ORIGIN, "preference", turns, rejected=(Message("assistant", worse),))
