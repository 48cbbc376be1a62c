"""Parsing of tool definitions and tool calls."""

import json
from collections.abc import Mapping
from typing import Any

from llmctl.data.rows.json_text import FieldPath, json_type_name
from llmctl.data.rows.row_errors import RowErrorCollector, join_names
from llmctl.types import Tool, ToolCall


def decode_json_cell(value: object) -> object:
    """Return the list or object that a table's cell holds as JSON, or the value unchanged."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def drop_nulls(value: Any) -> Any:
    """Return a value without the null fields of its objects, at any depth."""
    match value:
        case dict():
            return {key: drop_nulls(item) for key, item in value.items() if item is not None}
        case list():
            return [drop_nulls(item) for item in value]
    return value


def _drop_schema_nulls(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema without its null keywords and properties.

    `datasets` adds them where only other tools have the keyword or property. No keyword takes null
    but `default` and `const`, which keep it where the schema admits null, and the items of `enum`.
    """
    any_of = schema.get("anyOf") or schema.get("oneOf") or []
    types = [schema.get("type"), *(item.get("type") for item in any_of if isinstance(item, dict))]
    nullable = schema.get("nullable") is True or any(
        kind == "null" or (isinstance(kind, list) and "null" in kind) for kind in types
    )
    kept = ("default", "const") if nullable else ()
    cleaned: dict[str, Any] = {}
    for key, value in schema.items():
        if value is None and key not in kept:
            continue
        if key in ("enum", "examples", "default", "const"):
            cleaned[key] = value
        elif isinstance(value, dict):
            cleaned[key] = _drop_schema_nulls(value)
        elif isinstance(value, list):
            cleaned[key] = [_drop_schema_nulls(i) if isinstance(i, dict) else i for i in value]
        else:
            cleaned[key] = value
    return cleaned


def parse_tools(value: object, path: FieldPath, collector: RowErrorCollector) -> tuple[Tool, ...]:
    """Parse a list of tools, or JSON text of one: OpenAI's tool objects or bare functions."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    value = decode_json_cell(value)
    if not isinstance(value, list):
        found = "a string that is not JSON" if isinstance(value, str) else json_type_name(value)
        collector.add("wrong-type", path, found, "a list of tools")
        return ()
    tools = []
    for index, item in enumerate(value):
        here = (*path, index)
        inner = item.get("function") if isinstance(item, dict) else None
        function = inner if isinstance(inner, dict) else item
        if inner is function:
            here = (*here, "function")
        if not isinstance(function, dict):
            collector.add("wrong-type", here, json_type_name(function), 'an object with a "name"')
            continue
        parameters = function.get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            fix = "a JSON schema (an object)"
            collector.add("wrong-type", (*here, "parameters"), json_type_name(parameters), fix)
        elif name := _name(function, here, collector):
            description = function.get("description") or ""
            if not isinstance(description, str):
                where = (*here, "description")
                collector.add("wrong-type", where, json_type_name(description), "a string")
                continue
            parameters = None if parameters is None else _drop_schema_nulls(parameters)
            tools.append(Tool(name, description, parameters, bool(function.get("strict"))))
    return tuple(tools)


def parse_calls(
    item: Mapping[str, Any], path: FieldPath, collector: RowErrorCollector
) -> tuple[ToolCall, ...]:
    """Parse the calls of an assistant's turn: `tool_calls`, or the older `function_call`."""
    calls: tuple[ToolCall, ...] = ()
    if item.get("tool_calls"):
        calls += parse_call_list(item["tool_calls"], (*path, "tool_calls"), collector)
    if item.get("function_call"):
        calls += parse_call_list(item["function_call"], (*path, "function_call"), collector)
    return calls


def parse_call_list(
    value: object, path: FieldPath, collector: RowErrorCollector
) -> tuple[ToolCall, ...]:
    """Parse one call or a list of calls, or JSON text of either; empty if any has an error."""
    value = decode_json_cell(value)
    listed_calls = value if isinstance(value, list) else [value]
    calls = []
    for index, call in enumerate(listed_calls):
        here = (*path, index) if isinstance(value, list) else path
        if isinstance(call, dict):
            calls.append(_read_call(call, here, collector))
        else:
            found = "a string that is not JSON" if isinstance(call, str) else json_type_name(call)
            collector.add("wrong-type", here, found, '{"name": "...", "arguments": {...}}')
            calls.append(None)
    valid = tuple(call for call in calls if call is not None)
    return valid if len(valid) == len(calls) else ()


def _read_call(
    call: dict[str, Any], path: FieldPath, collector: RowErrorCollector
) -> ToolCall | None:
    inner = call.get("function")
    function, here = (inner, (*path, "function")) if isinstance(inner, dict) else (call, path)
    name = _name(function, here, collector)
    key = "parameters" if "parameters" in function and "arguments" not in function else "arguments"
    arguments, where = function.get(key), (*here, key)
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            collector.add("bad-arguments", where, "a string that is not JSON", "a JSON object")
            return None
    else:
        parsed, arguments = arguments, json.dumps(arguments, ensure_ascii=False)
    if not isinstance(parsed, dict):
        collector.add("bad-arguments", where, json_type_name(parsed), "a JSON object")
        return None
    call_id = call.get("id") or ""
    if not isinstance(call_id, str):
        collector.add("wrong-type", (*path, "id"), json_type_name(call_id), "a string")
        return None
    return None if name is None else ToolCall(name, arguments, call_id)


def _name(
    function: Mapping[str, object], path: FieldPath, collector: RowErrorCollector
) -> str | None:
    name = function.get("name")
    if isinstance(name, str) and name.strip():
        return name
    if "name" not in function:
        found = f"missing; the keys are {join_names(function) or 'none'}"
        collector.add("missing-key", (*path, "name"), found, "the function's name")
    else:
        found = "empty" if isinstance(name, str) else json_type_name(name)
        collector.add("wrong-type", (*path, "name"), found, "the function's name")
    return None
