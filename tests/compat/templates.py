"""Table of chat templates: prompts of llmctl against `apply_chat_template` of Transformers.

Run `python -m tests.compat.templates FOLDER [PACKAGE]` with a folder of `*.jinja` files, such as
`vendor/llama.cpp/models/templates` of the source distribution of llama-cpp-python, and the name and
version of what it is from.
"""

import json
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmctl.engine.chat.template import ChatTemplate, RenderOptions
from llmctl.errors import LlmctlError
from llmctl.types import Message, Tool, ToolCall
from tests.compat.table import write_table
from tests.tiny import CHATML, byte_tokenizer

Turn = dict[str, Any]

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = Tool("find_weather", "Find the weather.", PARAMETERS)
DEFINITION = {
    "type": "function",
    "function": {
        "name": TOOL.name,
        "description": TOOL.description,
        "parameters": PARAMETERS,
    },
}
CALL = ToolCall("find_weather", '{"city": "Oslo"}', "call00001")
BROKEN = ToolCall("find_weather", '{"city": "Osl', "call00001")
ASK = Message("user", "Is it raining in Oslo?")
PLAIN = (Message("user", "Hello"), Message("assistant", "Good day."), ASK)
RESULT = Message("tool", "It rains.", tool_call_id="call00001", name="find_weather")
REASONING = "The city is known."
CONVERSATIONS: dict[str, tuple[tuple[Message, ...], bool, str]] = {
    "conversation": (PLAIN, False, "raining"),
    "system message": ((Message("system", "Be brief."), *PLAIN), False, "Be brief."),
    "tools": ((ASK,), True, "find_weather"),
    "call and result in the history": (
        (ASK, Message("assistant", "", tool_calls=(CALL,)), RESULT),
        True,
        "Oslo",
    ),
    "cut-off call in the history": (
        (ASK, Message("assistant", "", tool_calls=(BROKEN,)), RESULT),
        True,
        "Osl",
    ),
    "reasoning before a call": (
        (ASK, Message("assistant", "", reasoning=REASONING, tool_calls=(CALL,)), RESULT),
        True,
        REASONING,
    ),
}
"""Messages, whether tools are given, and a text that a template should show."""
SPECIAL = re.compile(
    r"<[|｜][^<>|｜\s]{1,40}[|｜]>|</?s>|\[/?[A-Z_]{3,20}\]|<(?:start|end)_of_turn>"
)


def named(source: Any) -> Any:
    """Return a tokenizer with a template, and with its control tokens."""
    tokenizer = byte_tokenizer(source)
    sources = source.values() if isinstance(source, dict) else [source]
    tokens = sorted({token for text in sources for token in SPECIAL.findall(text)})
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    return tokenizer


def turn(message: Message, reasoning_key: str, *, as_text: bool) -> Turn:
    """Return a message in the form of the documentation of Transformers."""
    found: Turn = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        found[reasoning_key] = message.reasoning
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": call.arguments if as_text else json.loads(call.arguments),
                },
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        found |= {"tool_call_id": message.tool_call_id, "name": message.name}
    return found


def expected(tokenizer: Any, messages: Sequence[Message], *, tools: bool) -> list[str]:
    """Return the prompts of Transformers, in each form in which a call and reasoning are given."""
    found = []
    for key in ("reasoning_content", "thinking", "reasoning"):
        for as_text in (False, True):
            try:
                turns = [turn(message, key, as_text=as_text) for message in messages]
                text = tokenizer.apply_chat_template(
                    turns,
                    tools=[DEFINITION] if tools else None,
                    tokenize=False,
                    add_generation_prompt=True,
                )
            except Exception as error:  # a template may raise anything
                print(f"  Transformers: {type(error).__name__}: {str(error)[:80]}")
                continue
            found.append(text)
    return found


def render(template: ChatTemplate, messages: Sequence[Message], *, tools: bool) -> str | None:
    """Return the prompt of llmctl, or `None` if it is refused."""
    try:
        return template.render_text(messages, RenderOptions(tools=(TOOL,) if tools else ()))
    except LlmctlError as error:
        print(f"  llmctl: {str(error)[:100]}")
        return None


def outcome(own: str | None, theirs: Sequence[str]) -> str:
    if own is None:
        return "refused here only" if theirs else "refused by both"
    if not theirs:
        return "rendered here only"
    return "equal" if own in theirs else "different"


def main(folder: str, origin: str = "") -> None:
    """Render every conversation with every template of a folder."""
    outcomes = ("equal", "rendered here only", "refused by both", "refused here only", "different")
    counts: dict[str, Counter[str]] = {name: Counter() for name in [*CONVERSATIONS, "named"]}
    shown: Counter[str] = Counter()
    notes: dict[str, list[str]] = {name: [] for name in counts}
    files = sorted(Path(folder).glob("*.jinja"))
    for file in files:
        print(file.name, flush=True)
        source = file.read_text(encoding="utf-8")
        tokenizer = named(source)
        template = ChatTemplate.of(tokenizer)
        for name, (messages, tools, text) in CONVERSATIONS.items():
            own = render(template, messages, tools=tools)
            found = outcome(own, expected(tokenizer, messages, tools=tools))
            counts[name][found] += 1
            shown[name] += own is not None and text in own
            if found in ("refused here only", "different"):
                notes[name].append(file.stem)
        both = named({"default": CHATML, "tool_use": source})
        pair = ChatTemplate.of(both)
        right = all(
            outcome(render(pair, [ASK], tools=tools), expected(both, [ASK], tools=tools))
            in ("equal", "refused by both", "rendered here only")
            for tools in (False, True)
        )
        counts["named"]["equal" if right else "different"] += 1
        shown["named"] += "find_weather" in (render(pair, [ASK], tools=True) or "")
        if not right:
            notes["named"].append(file.stem)
    for name, stems in notes.items():
        print(name, "differs:", *stems)
    labels = {"named": "tools, as the template named `tool_use` of two"}
    rows = [
        [labels.get(name, name), *(str(count[kind]) for kind in outcomes), str(shown[name])]
        for name, count in counts.items()
    ]
    header = [f"of {len(files)} templates", *outcomes, "text shown"]
    write_table("templates", header, rows, ["transformers", "jinja2"], origin)


if __name__ == "__main__":
    main(*sys.argv[1:])
