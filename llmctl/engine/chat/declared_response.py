"""Responses of tokenizers that have a response template of Transformers."""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import Any

from llmctl.engine.chat.response_delta import ResponseDelta, new_tool_call_id
from llmctl.types import ToolCall


def declared_template(declared: Mapping[str, Any] | None, *, calls: bool) -> Any | None:
    """Return a tokenizer's `response_template` for a request, with or without tool calls."""
    if declared is None:
        return None
    spec: dict[str, Any] = copy.deepcopy(dict(declared))
    fields = spec.get("fields", {})
    if not calls:
        fields.pop("tool_calls", None)
    for field in fields.values():
        if field.get("content") == "json":
            # A call that is not JSON becomes text; it must not end the response.
            field["content_args"] = {"allow_non_json": True} | field.get("content_args", {})
    return spec


class TemplateResponseParser:
    """Parses a response by a response template.

    White space between a marker and what it encloses belongs to the marker.

    Args:
        template: as `declared_template` returns it.
        tools: definitions of the tools that the request offers.
        prefix: the part of the response that the prompt begins, such as an opened `<think>`.
    """

    def __init__(self, template: Any, tools: Sequence[dict[str, object]], prefix: str) -> None:
        from transformers.utils.chat_parsing import ResponseParser as TransformersParser

        self._parser = TransformersParser(template, prefix=prefix, tools=list(tools) or None)
        self._failed = False
        self._white_space = ""
        """White space that is returned once it is known not to lie next to a marker."""
        self._after_marker = bool(prefix)

    def feed(self, text: str) -> list[ResponseDelta]:
        """See `ResponseParser.feed`."""
        if self._failed:
            return [ResponseDelta(text)] if text else []
        try:
            return self._deltas(self._parser.feed(text))
        except ValueError:
            # The response breaks the model's own format: the rest of it is plain text.
            self._failed = True
            return [ResponseDelta(text)]

    def end(self) -> list[ResponseDelta]:
        """See `ResponseParser.end`."""
        if self._failed:
            return []
        try:
            deltas = self._deltas(self._parser.finalize()[1])
        except ValueError:
            deltas = []
        return [*deltas, ResponseDelta(self._white_space)] if self._white_space else deltas

    def _deltas(self, events: Sequence[Mapping[str, Any]]) -> list[ResponseDelta]:
        deltas: list[ResponseDelta] = []
        for event in events:
            kind, field = event["type"], event["field"]
            if kind == "region_chunk" and not event.get("dirty"):
                text = self._trimmed(event["text"])
                if field == "content":
                    deltas.append(ResponseDelta(text=text))
                elif field in ("reasoning_content", "thinking"):
                    deltas.append(ResponseDelta(reasoning=text))
                continue
            if kind == "region_close" and field == "tool_calls":
                deltas.append(_tool_call_delta(event["value"]))
            if field != "content":
                self._white_space, self._after_marker = "", True
        return [delta for delta in deltas if delta != ResponseDelta()]

    def _trimmed(self, text: str) -> str:
        if self._after_marker:
            text = text.lstrip()
            self._after_marker = not text
        text, self._white_space = self._white_space + text, ""
        stripped = text.rstrip()
        self._white_space = text[len(stripped) :]
        return stripped


def _tool_call_delta(value: Any) -> ResponseDelta:
    """Return a parsed call; a value that is not a call is returned as text."""
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        text = function if isinstance(function, str) else json.dumps(value, ensure_ascii=False)
        return ResponseDelta(text=f"<tool_call>{text}</tool_call>")
    name, arguments = function["name"], function.get("arguments", function.get("parameters", {}))
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ResponseDelta(call=ToolCall(name, arguments, new_tool_call_id()))
