"""What in a reply is answer, what is reasoning, and what calls a tool?

Models mark the parts in ways of their own. Where a tokenizer brings a response template,
Transformers' parser (`transformers.utils.chat_parsing`) follows it; for the conventions below,
which many models share and few declare, one is made from the chat template.
"""

import copy
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from llmctl.engine.template import ChatTemplate, function_of
from llmctl.errors import UnsupportedError
from llmctl.types import GenerationRequest, Grammar, Message, Tool, ToolCall


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a reply; one of the three is there."""

    text: str = ""
    reasoning: str = ""
    call: ToolCall | None = None


class ReplyReader(Protocol):
    """Tells the parts of one reply apart, while it is written."""

    def feed(self, text: str) -> list[Part]:
        """Take the next piece of what the model writes; return what is certain by now."""

    def end(self) -> list[Part]:
        """Return the rest, once no more can come."""


_REASONING = {"open": "<think>", "close": "</think>", "content": "text"}
_HERMES_CALL = {
    # The newline between two calls belongs to neither, nor to the answer.
    "open_pattern": r"\s*<tool_call>",
    "close": "</tool_call>",
    "repeats": True,
    "content": "json",
    "transform": {"type": "function", "function": "{content}"},
}


def response_template(declared: Mapping[str, Any] | None, chat_template: str | None) -> Any | None:
    """Return the response template of a model, in Transformers' form, or `None` if it has no parts.

    Args:
        declared: the tokenizer's own `response_template`.
        chat_template: its Jinja source. One that writes `<think>` or Hermes' `<tool_call>` of
            earlier turns has taught the model to write them.
    """
    if declared is not None:
        spec: dict[str, Any] = copy.deepcopy(dict(declared))
    else:
        fields: dict[str, Any] = {}
        source = chat_template or ""
        if "<think>" in source or "</think>" in source:
            fields["reasoning_content"] = dict(_REASONING)
        if "<tool_call>" in source:
            fields["tool_calls"] = dict(_HERMES_CALL)
        if not fields:
            return None
        spec = {
            "defaults": {"role": "assistant"},
            # The reader is given what the prompt has begun, and nothing before it.
            "start_anchor_pattern": r"\A",
            "fields": fields | {"content": {"content": "text"}},
        }
    for field in spec.get("fields", {}).values():
        if field.get("content") == "json":
            # A call that is no JSON is shown as it is; it must not end the reply.
            field["content_args"] = {"allow_non_json": True} | field.get("content_args", {})
    return spec


class ReplyReaders:
    """Makes the readers of one model's replies."""

    def __init__(self, tokenizer: Any, template: ChatTemplate) -> None:
        self._tokenizer = tokenizer
        self._template = template
        declared = getattr(tokenizer, "response_template", None)
        self._declared = declared is not None
        self._marks: Any = response_template(declared, template.source)
        written = json.dumps(self._marks, ensure_ascii=False)
        # Marks that are special tokens are seen only if those are decoded too.
        self._special = any(str(token) in written for token in tokenizer.all_special_tokens)

    def messages(self, request: GenerationRequest) -> tuple[Message, ...]:
        """Return the conversation; tools the chat template has no place for are told in words.

        Raises:
            UnsupportedError: nothing has taught this model to call them by itself.
        """
        if not request.tools or self._template.has_tools:
            return request.messages
        if not request.forced_tools:
            raise UnsupportedError(
                "this model's chat template has no tools, so the model cannot choose one itself",
                hint="set tool_choice to 'required' or name a function, or use a model with tools",
                param="tools",
            )
        words = tools_in_words(request.tools)
        first, *rest = request.messages
        if first.role in ("system", "developer"):
            return (replace(first, content=f"{words}\n\n{first.content}"), *rest)
        return (Message("system", words), *request.messages)

    @staticmethod
    def grammar(request: GenerationRequest) -> Grammar | None:
        """Return what holds a reply to the tools that must be called."""
        if not request.forced_tools:
            return None
        forced = [tool for tool in request.tools if tool.name in request.forced_tools]
        schema = forced_schema(forced, parallel=request.parallel_tool_calls)
        return Grammar("json_schema", json.dumps(schema, ensure_ascii=False))

    def reader(
        self, request: GenerationRequest, prompt_ids: Sequence[int]
    ) -> tuple[ReplyReader | None, bool]:
        """Return the reader of one choice, `None` if all is answer.

        And whether special tokens are to be left out of the text.
        """
        if request.forced_tools:
            return ForcedCalls(), True
        if self._marks is None or not request.messages or request.sampling.grammar is not None:
            return None, True
        tools = [function_of(tool) for tool in request.tools]
        return MarkedReply(self._marks, tools, self._begun(prompt_ids)), not self._special

    def _begun(self, prompt_ids: Sequence[int]) -> str:
        """Return what the prompt has written of the reply already."""
        if self._declared:
            text: str = self._tokenizer.decode(prompt_ids)
            return text
        opened = re.search(r"<think>\s*$", self._tokenizer.decode(prompt_ids[-8:]))
        return opened.group() if opened else ""


class MarkedReply:
    """Reads a reply by the marks of the model's own response template.

    White space between a mark and what it encloses belongs to the mark.

    Args:
        begun: what the prompt has written of the reply already, such as an opened `<think>`.
    """

    def __init__(self, template: Any, tools: Sequence[dict[str, object]], begun: str) -> None:
        from transformers.utils.chat_parsing import ResponseParser

        self._parser = ResponseParser(template, prefix=begun, tools=list(tools) or None)
        self._broken = False
        # White space that is shown once it is known to lie at no border.
        self._blank = ""
        self._at_border = bool(begun)

    def feed(self, text: str) -> list[Part]:
        """See `ReplyReader.feed`."""
        if self._broken:
            return [Part(text)] if text else []
        try:
            return self._parts(self._parser.feed(text))
        except ValueError:
            # Written against the model's own rules: from here on it is text like any other.
            self._broken = True
            return [Part(text)]

    def end(self) -> list[Part]:
        """See `ReplyReader.end`."""
        if self._broken:
            return []
        try:
            parts = self._parts(self._parser.finalize()[1])
        except ValueError:
            parts = []
        return [*parts, Part(self._blank)] if self._blank else parts

    def _parts(self, events: Sequence[Mapping[str, Any]]) -> list[Part]:
        parts: list[Part] = []
        for event in events:
            kind, field = event["type"], event["field"]
            if kind == "region_chunk" and not event.get("dirty"):
                text = self._inner(event["text"])
                if field == "content":
                    parts.append(Part(text=text))
                elif field in ("reasoning_content", "thinking"):
                    parts.append(Part(reasoning=text))
                continue
            if kind == "region_close" and field == "tool_calls":
                parts.append(_call(event["value"]))
            if field != "content":
                self._blank, self._at_border = "", True
        return [part for part in parts if part != Part()]

    def _inner(self, text: str) -> str:
        if self._at_border:
            text = text.lstrip()
            self._at_border = not text
        text, self._blank = self._blank + text, ""
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        return shown


def _call(value: Any) -> Part:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        shown = function if isinstance(function, str) else json.dumps(value, ensure_ascii=False)
        return Part(text=f"<tool_call>{shown}</tool_call>")
    name, arguments = function["name"], function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return Part(call=ToolCall(name, arguments, new_call_id()))


class ForcedCalls:
    """Reads a reply that a grammar has confined to calls, `forced_schema`'s JSON."""

    _HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*')

    def __init__(self) -> None:
        self._text = ""
        self._decoder = json.JSONDecoder()

    def feed(self, text: str) -> list[Part]:
        """See `ReplyReader.feed`."""
        self._text += text
        parts = []
        while (head := self._HEAD.search(self._text)) is not None:
            try:
                _, end = self._decoder.raw_decode(self._text, head.end())
            except ValueError:
                break
            if not self._text[end:].strip():
                break  # a number may go on
            parts.append(self._part(head, self._text[head.end() : end]))
            self._text = self._text[end:]
        return parts

    def end(self) -> list[Part]:
        """Return a call that the limit of tokens cut off, with the arguments as far as they go."""
        head = self._HEAD.search(self._text)
        return [] if head is None else [self._part(head, self._text[head.end() :])]

    @staticmethod
    def _part(head: re.Match[str], arguments: str) -> Part:
        return Part(call=ToolCall(json.loads(head.group(1)), arguments, new_call_id()))


def new_call_id() -> str:
    """Return an id for a call, in OpenAI's style."""
    return f"call_{uuid.uuid4().hex[:24]}"


MOST_CALLS = 8
"""In one forced reply: a small model would not come to an end by itself."""


def forced_schema(tools: Sequence[Tool], *, parallel: bool) -> dict[str, object]:
    """Return the JSON schema of a reply that is nothing but calls of these tools."""
    definitions: dict[str, object] = {}
    calls = []
    for number, tool in enumerate(tools):
        arguments = _hoisted(dict(tool.parameters or {}), f"tool{number}_", definitions)
        calls.append(
            {
                "type": "object",
                "properties": {
                    "name": {"const": tool.name},
                    "arguments": _closed(arguments),
                },
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    call: dict[str, object] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if parallel:
        call = {"type": "array", "items": call, "minItems": 1, "maxItems": MOST_CALLS}
    return call | ({"$defs": definitions} if definitions else {})


def _closed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave no room for arguments the tool does not know, unless its schema speaks of them."""
    if arguments.keys() & {"$ref", "anyOf", "oneOf", "allOf", "patternProperties"}:
        return arguments
    return {"type": "object", "properties": {}, "additionalProperties": False} | arguments


def _hoisted(schema: dict[str, Any], prefix: str, into: dict[str, object]) -> dict[str, Any]:
    """Move a schema's definitions to where the whole has its own; references are to the root."""
    own = {key: schema.pop(key) for key in ("$defs", "definitions") if key in schema}

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: re.sub(r"^#/(\$defs|definitions)/", f"#/$defs/{prefix}", item)
                if key == "$ref" and isinstance(item, str)
                else moved(item)
                for key, item in value.items()
            }
        return [moved(item) for item in value] if isinstance(value, list) else value

    for named in own.values():
        into |= {prefix + name: moved(definition) for name, definition in named.items()}
    result: dict[str, Any] = moved(schema)
    return result


def tools_in_words(tools: Sequence[Tool]) -> str:
    """Describe tools to a model whose chat template has no place for them."""
    lines = [
        "You can call these functions; answer with the name of one and its arguments, as JSON."
    ]
    for tool in tools:
        schema = json.dumps(tool.parameters or {}, ensure_ascii=False)
        lines.append(f"- {tool.name}: {tool.description} Arguments: {schema}")
    return "\n".join(lines)
