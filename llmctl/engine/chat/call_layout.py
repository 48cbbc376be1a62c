"""How a model writes calls, found by rendering examples with its chat template."""

import re

from llmctl.engine.chat.formats.element_calls import ElementCalls
from llmctl.engine.chat.formats.format_types import ToolCallFormat
from llmctl.engine.chat.formats.gemma_calls import GemmaCalls
from llmctl.engine.chat.formats.named_calls import NamedCalls
from llmctl.engine.chat.formats.parameter_calls import ParameterCalls
from llmctl.engine.chat.formats.pythonic_calls import PythonicCalls
from llmctl.engine.chat.parsing.call_reader import CallReader
from llmctl.engine.chat.parsing.channels import Channels
from llmctl.engine.chat.parsing.parameter_types import ToolParameters
from llmctl.engine.chat.template_probe import PROBE, PROBE_ID, TemplateProbe
from llmctl.types import ARGUMENTS, CALL_ID, INDEX, NAME, CallLayout, ParameterLayout, Tool

_VALUE = {"probe_value": "x"}
_JSON = re.compile(r'\{\s*"probe_value":\s*"x"\s*\}')
_KEY_1, _TEXT, _KEY_2, _NUMBER = "probe_key1", "probe text", "probe_key2", 7031
_EXAMPLE = re.compile(r'\{\s*"a":\s*1,\s*"b":\s*"x"\s*\}')
_LONGEST_END = 100
_CONSTRAINTS = frozenset({"pattern", "minLength", "maxLength", "format", "enum", "const"})
_OBJECT_KEYWORDS = frozenset(
    {"type", "properties", "required", "additionalProperties", "description", "title"}
) | {"$schema", "$defs", "$id"}
_CHOICE_KEYWORDS = frozenset(
    {"type", "enum", "const", "title", "description", "default", "examples"}
)


def call_layout(probe: TemplateProbe, calls: ToolCallFormat) -> CallLayout | None:
    """Return how the template prints calls; `None` if no grammar can be made of it.

    A template that prints none has the layout of the format's example.
    """
    reader = calls.reader
    if isinstance(reader, ElementCalls):
        return None
    if isinstance(reader, PythonicCalls):
        return _list_layout(reader, calls.example, "(", ")", _PYTHON_PARAMETERS)
    if isinstance(reader, GemmaCalls):
        return _list_layout(reader, calls.example, "{", "}", _GEMMA_PARAMETERS)
    if isinstance(reader, Channels) and reader.calls is not None:
        return None
    if isinstance(reader, ParameterCalls):
        return _parameter_layout(probe, reader)
    one = _JSON.sub(ARGUMENTS, _marked(probe.calls_text(_VALUE, 1)))
    two = _JSON.sub(ARGUMENTS, _marked(probe.calls_text(_VALUE, 2)))
    if one.count(ARGUMENTS) != 1:
        one = _EXAMPLE.sub(ARGUMENTS, calls.example.replace("add", NAME))
        two = _repeated(one, reader)
    return _layout(one, two, reader, None)


_PYTHON_PARAMETERS = ParameterLayout(
    key="",
    before_string="='",
    before_json="=",
    end="'",
    json_end="",
    separator=", ",
    string_pattern=r"""([^'\\]|\\[\\'"nrt])*""",
)
_GEMMA_PARAMETERS = ParameterLayout(
    key="", before_string=':<|"|>', before_json=":", end='<|"|>', json_end="", separator=","
)


def _list_layout(
    reader: CallReader, example: str, opening: str, closing: str, parameters: ParameterLayout
) -> CallLayout:
    """Return the layout of an example whose arguments are a list in brackets."""
    begin, _, rest = example.partition(f"add{opening}")
    end = closing + rest.rpartition(closing)[2]
    if "[" in begin:
        further = f"{closing}, {NAME}{opening}"
    elif begin.endswith("\n"):
        further = f"{closing}\n{NAME}{opening}"
    else:
        further = f"{end}{begin}{NAME}{opening}"
    first = f"{begin}{NAME}{opening}"
    return CallLayout(first, further, end, parameters, _opening(first, reader))


def allows(layout: CallLayout, tool: Tool) -> bool:
    """Whether the arguments of a tool can be enforced in a layout."""
    if layout.parameters is None:
        return True
    schema = dict(tool.parameters or {})
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or set(schema) - _OBJECT_KEYWORDS:
        return False
    if schema.get("additionalProperties") or not isinstance(required, list):
        return False
    if set(required) - set(properties):
        return False
    types = ToolParameters(schema)
    return all(
        choices(part) is not None or not types.may_be_string(key) or not _restricts(part)
        for key, part in properties.items()
    )


def choices(schema: object) -> list[str] | None:
    """Return the strings that a schema lists, if it does nothing else."""
    if not isinstance(schema, dict) or set(schema) - _CHOICE_KEYWORDS:
        return None
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if schema.get("type", "string") != "string" or not isinstance(values, list):
        return None
    return values if all(isinstance(v, str) and v for v in values) else None


def _restricts(schema: object) -> bool:
    """Whether a schema restricts strings, or may do so by a reference."""
    if isinstance(schema, dict):
        if _CONSTRAINTS & schema.keys() or "$ref" in schema:
            return True
        return any(map(_restricts, schema.values()))
    return isinstance(schema, list) and any(map(_restricts, schema))


def _parameter_layout(probe: TemplateProbe, reader: ParameterCalls) -> CallLayout | None:
    arguments = {_KEY_1: _TEXT, _KEY_2: _NUMBER}
    one = _marked(probe.calls_text(arguments, 1))
    two = _marked(probe.calls_text(arguments, 2))
    key = re.escape(reader.key)
    match = re.search(f"{key}{_KEY_1}(.*?){_TEXT}(.*?){key}{_KEY_2}(.*?){_NUMBER}", one, re.DOTALL)
    if match is None:
        return None
    before_string, end, before_json = match.groups()
    if not one.startswith(end, match.end()):  # nothing follows the last value but its own mark
        end = end.rstrip()
    region = f"{match[0]}{end}"
    if region not in one:
        return None
    parameters = ParameterLayout(reader.key, before_string, before_json, end)
    one, two = one.replace(region, ARGUMENTS), two.replace(region, ARGUMENTS)
    return _layout(one, two, reader, parameters)


def _marked(text: str) -> str:
    """Return a text with the placeholders of names and ids."""
    text = text.replace(PROBE, NAME).lstrip()
    return re.sub(rf"{PROBE_ID[:-1]}\d", CALL_ID, text)


def _layout(
    one: str, two: str, reader: CallReader | Channels, parameters: ParameterLayout | None
) -> CallLayout | None:
    """Return the layout from a turn with one call and, if there can be one, a turn with two."""
    if one.count(ARGUMENTS) != 1 or NAME not in one.partition(ARGUMENTS)[0]:
        return None
    if not isinstance(reader, Channels):  # without reasoning that the template prints before
        starts = [one.find(mark) for mark in reader.openings if mark in one]
        start = min(starts, default=0)
        one, two = one[start:], two[start:]
    first, _, rest = one.partition(ARGUMENTS)
    further, first_index = "", 0
    if two.count(ARGUMENTS) == 2 and two.startswith(first):
        further = two[len(first) + 1 :].partition(ARGUMENTS)[0]
        for number in (0, 1):
            digit = rf"(?<!\d){number + 1}(?!\d)"
            if re.search(rf"(?<!\d){number}(?!\d)", first) and re.search(digit, further):
                further, first_index = re.sub(digit, INDEX, further, count=1), number
                break
    end = _up_to_end(rest, reader.marks)
    opening = _opening(first, reader)
    return CallLayout(first, further, end, parameters, opening, first_index)


def _opening(first: str, reader: CallReader | Channels) -> str:
    """Return the mark with which calls begin, empty if there is none."""
    if isinstance(reader, Channels):
        return ""
    found = [mark for mark in reader.openings if first.startswith(mark)]
    return max(found, key=len, default="")


def _up_to_end(text: str, marks: tuple[str, ...]) -> str:
    """Return the end of the calls without that of the turn: up to the last mark or bracket."""
    text = text[:_LONGEST_END]
    places = [text.rfind(mark) + len(mark) for mark in marks if len(mark) > 2 and mark in text]
    brackets = [at + 1 for at, char in enumerate(text) if char in "]})"]
    return text[: max(places or brackets or [0])]


def _repeated(one: str, reader: CallReader | Channels) -> str:
    """Return two calls from the example of one: in its list, or with marks of their own."""
    if isinstance(reader, NamedCalls) and reader.section:
        call = one.removeprefix(reader.section).removesuffix(reader.section_end)
        return reader.section + call + call.replace(":0", ":1") + reader.section_end
    first, _, end = one.partition(ARGUMENTS)
    at = first.find("[{")
    if at >= 0:
        return f"{first}{ARGUMENTS}}}, {first[at + 1 :]}{ARGUMENTS}{end}"
    return f"{one}\n{one}"
