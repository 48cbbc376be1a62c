"""How is an example written in each format, and what of it can that format not hold?"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

from llmctl.data.formats.columns import validate_format_options
from llmctl.data.formats.turn_order import response_start
from llmctl.data.rows.row_errors import RowError
from llmctl.types import Example, Message, Tool, ToolCall

Lack = tuple[str, str]
"""What cannot be held, and what to do."""


def render_example(example: Example, format: str) -> dict[str, object] | tuple[RowError, ...]:
    """Return the row that says the same in a format, or everything that the format cannot hold.

    `parse_row` of the row gives the messages, tools and masks back.

    Raises:
        ConfigError: there is no such format.
    """
    validate_format_options(None, format)
    lacks = list(_LACKS[format](example))
    if lacks:
        return tuple(
            RowError(example.origin, "cannot-hold", f"{format} cannot hold {what}", fix)
            for what, fix in lacks
        )
    return _WRITERS[format](example)


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
    system, turns = _apart(example.messages)
    pairs = list(zip(turns[:-2:2], turns[1:-2:2], strict=True))
    row: dict[str, object] = {"system": system} if system else {}
    if pairs:
        row["history"] = [[question.content, answer.content] for question, answer in pairs]
    return row | {"instruction": turns[-2].content, "input": "", "output": turns[-1].content}


def _prompt_completion(example: Example) -> dict[str, object]:
    begin = response_start(example.messages)
    prompt, completion = example.messages[:begin], example.messages[begin:]
    if _are_plain(prompt, completion) and not example.tools:
        return {"prompt": prompt[0].content, "completion": completion[0].content}
    return {
        "prompt": [_turn(message) for message in prompt],
        "completion": [_turn(message) for message in completion],
        **_tools(example.tools),
    }


def _preference(example: Example) -> dict[str, object]:
    begin = response_start(example.messages)
    prompt, chosen = example.messages[:begin], example.messages[begin:]
    if _are_plain(prompt, chosen, example.rejected) and not example.tools:
        texts = (prompt[0].content, chosen[0].content, example.rejected[0].content)
        return dict(zip(("prompt", "chosen", "rejected"), texts, strict=True))
    return {
        "prompt": [_turn(message) for message in prompt],
        "chosen": [_turn(message) for message in chosen],
        "rejected": [_turn(message) for message in example.rejected],
        **_tools(example.tools),
    }


_WRITERS: dict[str, Callable[[Example], dict[str, object]]] = {
    "messages": _openai,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt-completion": _prompt_completion,
    "preference": _preference,
    "text": lambda example: {"text": example.text},
}


def _conversation_lacks(example: Example) -> Iterator[Lack]:
    if example.text is not None:
        yield "plain text", "--to text"
    if example.rejected:
        yield "the rejected answer", "--to preference"


def _sharegpt_lacks(example: Example) -> Iterator[Lack]:
    yield from _conversation_lacks(example)
    if example.masked:
        yield "turns without loss", "--to messages"
    waiting: list[str] = []
    for message in example.messages:
        if message.reasoning is not None:
            yield "reasoning apart from the answer", "--to messages"
        if message.name is not None:
            yield "the name of a speaker", "--to messages"
        if message.role == "developer":
            yield "a developer's message", "--to messages"
        if message.role == "assistant":
            waiting = [call.id for call in message.tool_calls]
        elif message.role == "tool":
            # ShareGPT knows whose result it is by the order alone.
            call_id = waiting.pop(0) if waiting else ""
            if call_id != (message.tool_call_id or ""):
                yield "results in another order than their calls", "--to messages"


def _alpaca_lacks(example: Example) -> Iterator[Lack]:
    yield from _conversation_lacks(example)
    if example.masked:
        yield "turns without loss", "--to messages"
    if example.tools or any(m.role == "tool" or m.tool_calls for m in example.messages):
        yield "tools and calls", "--to messages"
    elif any(m.reasoning is not None for m in example.messages):
        yield "reasoning apart from the answer", "--to messages"
    elif any(m.name is not None for m in example.messages):
        yield "the name of a speaker", "--to messages"
    elif any(m.role == "developer" for m in example.messages):
        yield "a developer's message", "--to messages"
    elif any(m.role == "system" and not m.content for m in example.messages):
        yield "an empty system prompt", "--to messages"


def _completion_lacks(example: Example) -> Iterator[Lack]:
    yield from _conversation_lacks(example)
    begin = response_start(example.messages)
    said = [i for i, message in enumerate(example.messages) if message.role == "assistant"]
    if any(i < begin and i not in example.masked for i in said):
        yield "a loss on earlier answers, only on the last", "--to messages"
    if any(i >= begin and i in example.masked for i in said):
        yield "turns without loss after the last question", "--to messages"


def _preference_lacks(example: Example) -> Iterator[Lack]:
    if example.text is not None:
        yield "plain text", "--to text"
    elif not example.rejected:
        yield "an answer that has none to compare with", "--to messages"
    if example.masked:
        yield "turns without loss", "--to messages"


def _text_lacks(example: Example) -> Iterator[Lack]:
    if example.text is None:
        yield "a conversation", "--to messages"


_LACKS = {
    "messages": _conversation_lacks,
    "sharegpt": _sharegpt_lacks,
    "alpaca": _alpaca_lacks,
    "prompt-completion": _completion_lacks,
    "preference": _preference_lacks,
    "text": _text_lacks,
}
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def _apart(messages: Sequence[Message]) -> tuple[str, Sequence[Message]]:
    if messages[0].role == "system":
        return messages[0].content, messages[1:]
    return "", messages


def _are_plain(*sides: Sequence[Message]) -> bool:
    """Whether each side is one message of nothing but text that cannot be taken for turns."""
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
    # As an object where that gives the same text back.
    same = json.dumps(arguments, ensure_ascii=False) == call.arguments
    row = {"name": call.name, "arguments": arguments if same else call.arguments}
    if call.id:
        row["id"] = call.id
    return json.dumps(row, ensure_ascii=False)
