"""Rendering of examples as rows of each format, and what a format cannot represent."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from llmctl.data.formats.columns import validate_format_options
from llmctl.data.formats.turn_order import response_start
from llmctl.data.rows.row_errors import RowError
from llmctl.types import Example, Message, Tool, ToolCall

_Unsupported = tuple[str, str]
"""A part of an example that a format cannot represent, and what to do instead."""


def render_example(example: Example, format: str) -> dict[str, object] | tuple[RowError, ...]:
    """Return the row of an example in a format, or an error for each part it cannot represent.

    `parse_row` of the row returns the same messages, tools and masks.

    Raises:
        ConfigError: the format does not exist.
    """
    validate_format_options(None, format)
    unsupported = list(_UNSUPPORTED[format](example))
    if unsupported:
        return tuple(
            RowError(example.origin, "cannot-hold", f"{format} cannot represent {what}", fix)
            for what, fix in unsupported
        )
    return _RENDERERS[format](example)


def _openai(example: Example) -> dict[str, object]:
    turns = [_turn(message) for message in example.messages]
    for index in example.masked:
        turns[index]["weight"] = 0
    return {"messages": turns, **_tools(example.tools)}


def _sharegpt(example: Example) -> dict[str, object]:
    turns: list[dict[str, str]] = []
    for message in example.messages:
        if message.content or not message.tool_calls:
            turns.append({"from": _SPEAKERS[message.role], "value": message.content})
        for call in message.tool_calls:
            turns.append({"from": "function_call", "value": _call_text(call)})
    row: dict[str, object] = {"conversations": turns}
    if example.tools:
        tools = [_function(tool) for tool in example.tools]
        row["tools"] = json.dumps(tools, ensure_ascii=False)
    return row


def _alpaca(example: Example) -> dict[str, object]:
    system, turns = _split_system(example.messages)
    pairs = list(zip(turns[:-2:2], turns[1:-2:2], strict=True))
    row: dict[str, object] = {"system": system} if system else {}
    if pairs:
        row["history"] = [[question.content, answer.content] for question, answer in pairs]
    return row | {"instruction": turns[-2].content, "input": "", "output": turns[-1].content}


def _prompt_completion(example: Example) -> dict[str, object]:
    start = response_start(example.messages)
    prompt, completion = example.messages[:start], example.messages[start:]
    if _are_single_texts(prompt, completion) and not example.tools:
        return {"prompt": prompt[0].content, "completion": completion[0].content}
    return {
        "prompt": [_turn(message) for message in prompt],
        "completion": [_turn(message) for message in completion],
        **_tools(example.tools),
    }


def _preference(example: Example) -> dict[str, object]:
    start = response_start(example.messages)
    prompt, chosen = example.messages[:start], example.messages[start:]
    if _are_single_texts(prompt, chosen, example.rejected) and not example.tools:
        texts = (prompt[0].content, chosen[0].content, example.rejected[0].content)
        return dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
    return {
        "prompt": [_turn(message) for message in prompt],
        "chosen": [_turn(message) for message in chosen],
        "rejected": [_turn(message) for message in example.rejected],
        **_tools(example.tools),
    }


_RENDERERS: dict[str, Callable[[Example], dict[str, object]]] = {
    "messages": _openai,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt-completion": _prompt_completion,
    "preference": _preference,
    "text": lambda example: {"text": example.text},
}


def _unsupported_by_conversations(example: Example) -> Iterator[_Unsupported]:
    if example.text is not None:
        yield "plain text", "--to text"
    if example.rejected:
        yield "the rejected answer", "--to preference"


def _unsupported_by_sharegpt(example: Example) -> Iterator[_Unsupported]:
    yield from _unsupported_by_conversations(example)
    if example.masked:
        yield "turns excluded from the loss", "--to messages"
    open_calls: list[str] = []
    for message in example.messages:
        if message.reasoning is not None:
            yield "reasoning", "--to messages"
        if message.name is not None:
            yield "a message's name", "--to messages"
        if message.role == "developer":
            yield "a developer's message", "--to messages"
        if message.role == "assistant":
            open_calls = [call.id for call in message.tool_calls]
        elif message.role == "tool":
            # ShareGPT assigns results to calls by their order alone.
            call_id = open_calls.pop(0) if open_calls else ""
            if call_id != (message.tool_call_id or ""):
                yield "tool results in another order than their calls", "--to messages"


def _unsupported_by_alpaca(example: Example) -> Iterator[_Unsupported]:
    yield from _unsupported_by_conversations(example)
    if example.masked:
        yield "turns excluded from the loss", "--to messages"
    if example.tools or any(m.role == "tool" or m.tool_calls for m in example.messages):
        yield "tools and tool calls", "--to messages"
    elif any(m.reasoning is not None for m in example.messages):
        yield "reasoning", "--to messages"
    elif any(m.name is not None for m in example.messages):
        yield "a message's name", "--to messages"
    elif any(m.role == "developer" for m in example.messages):
        yield "a developer's message", "--to messages"
    elif any(m.role == "system" and not m.content for m in example.messages):
        yield "an empty system prompt", "--to messages"


def _unsupported_by_completion(example: Example) -> Iterator[_Unsupported]:
    yield from _unsupported_by_conversations(example)
    start = response_start(example.messages)
    replies = [i for i, message in enumerate(example.messages) if message.role == "assistant"]
    if any(i < start and i not in example.masked for i in replies):
        yield "a loss on earlier answers", "--to messages"
    if any(i >= start and i in example.masked for i in replies):
        yield "turns excluded from the loss after the prompt", "--to messages"


def _unsupported_by_preference(example: Example) -> Iterator[_Unsupported]:
    if example.text is not None:
        yield "plain text", "--to text"
    elif not example.rejected:
        yield "a row without a rejected answer", "--to messages"
    if example.masked:
        yield "turns excluded from the loss", "--to messages"


def _unsupported_by_text(example: Example) -> Iterator[_Unsupported]:
    if example.text is None:
        yield "a conversation", "--to messages"


_UNSUPPORTED = {
    "messages": _unsupported_by_conversations,
    "sharegpt": _unsupported_by_sharegpt,
    "alpaca": _unsupported_by_alpaca,
    "prompt-completion": _unsupported_by_completion,
    "preference": _unsupported_by_preference,
    "text": _unsupported_by_text,
}
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def _split_system(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    if messages[0].role == "system":
        return messages[0].content, messages[1:]
    return "", messages


def _are_single_texts(*sides: Sequence[Message]) -> bool:
    """Whether each side is one message of text that cannot be mistaken for a list of turns."""
    return all(
        len(side) == 1
        and side[0].reasoning is None
        and side[0].name is None
        and not side[0].tool_calls
        and not side[0].content.lstrip().startswith(("[", "{", "Human:"))
        for side in sides
    )


def _turn(message: Message) -> dict[str, object]:
    turn: dict[str, object] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                **({"id": call.id} if call.id else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        turn["name"] = message.name
    return turn


def _tools(tools: Sequence[Tool]) -> Mapping[str, object]:
    if not tools:
        return {}
    return {"tools": [{"type": "function", "function": _function(tool)} for tool in tools]}


def _function(tool: Tool) -> dict[str, object]:
    function: dict[str, object] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    if tool.strict:
        function["strict"] = True
    return function


def _call_text(call: ToolCall) -> str:
    arguments = json.loads(call.arguments or "{}")
    # As an object if that encodes to the same text.
    same = json.dumps(arguments, ensure_ascii=False) == call.arguments
    row = {"name": call.name, "arguments": arguments if same else call.arguments}
    if call.id:
        row["id"] = call.id
    return json.dumps(row, ensure_ascii=False)
