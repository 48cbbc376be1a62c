"""JSON schemas: exact enforcement, narrowing, refusals, and the schemas that libraries write."""

import datetime
import decimal
import enum
import ipaddress
import json
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Optional

import pydantic
import pytest
from openai.lib._parsing import type_to_response_format_param

from llmctl.engine.batching.sampling.json_schema import normalize
from llmctl.engine.batching.sampling.json_schema.keywords import REFUSED
from llmctl.errors import RequestError
from tests.compat.schemas import RandomTexts, SchemaGenerator, problem

ZOD = pathlib.Path(__file__).parents[3] / "fixtures" / "zod-schemas.json"
STRUCTURED_OUTPUT = pathlib.Path(__file__).parents[4] / "docs" / "structured-output.md"
INT64 = 2**63


@pytest.fixture(scope="module")
def texts() -> RandomTexts:
    return RandomTexts()


def number(**bounds: Any) -> dict[str, Any]:
    return {"type": "number", **bounds}


def integer(**bounds: Any) -> dict[str, Any]:
    return {"type": "integer", **bounds}


def string(**keywords: Any) -> dict[str, Any]:
    return {"type": "string", **keywords}


A: dict[str, Any] = {"type": "object", "properties": {"a": integer()}, "required": ["a"]}
CAT = {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}
DOG = {"type": "object", "properties": {"kind": {"enum": ["dog"]}}, "required": ["kind"]}


@pytest.mark.parametrize(
    ("schema", "allowed", "forbidden"),
    [
        # Numbers
        (number(exclusiveMinimum=0, maximum=0.5), ["0.5", "0.001"], ["0", "0.0", "-0"]),
        (number(minimum=-0.5, exclusiveMaximum=0), ["-0.5", "-0.001"], ["0", "-0.0"]),
        (integer(minimum=2**53 + 1), [str(2**53 + 2)], [str(2**53), str(2**53 - 1)]),
        (integer(maximum=-(2**53) - 1), [str(-(2**53) - 2)], [str(-(2**53))]),
        (number(minimum=2**53 + 1), [str(2**53 + 2)], [str(2**53)]),
        (integer(minimum=-INT64, maximum=INT64 - 1), [str(INT64 - 1), "-5"], [str(INT64)]),
        (integer(minimum=0, maximum=2**64 - 1), [str(INT64 - 1)], [str(INT64), "-1"]),
        (number(minimum=-3.4e38, maximum=3.4e38), ["1.5", str(2**60)], [str(2**70)]),
        (number(minimum=-1.7976931348623157e308), ["1e300", "-2.5"], ["1e309"]),
        (integer(), [str(INT64 - 1), "-12"], ["1" * 20, "1" * 190, str(INT64)]),
        (number(), ["6.02e23", "-1.5e-300"], ["1e999", "1" * 30, "0." + "3" * 40]),
        ({}, ['{"a": 1e5}'], ['{"a": 1e999}', "1" * 30]),
        ({"minimum": 1, "exclusiveMinimum": True, "type": "integer"}, ["2"], ["1"]),
        (integer(multipleOf=5), ["15", "0"], ["7", "5" * 20]),
        ({"type": "integer", "format": "uint8"}, ["255"], ["256", "-1"]),
        # Dates and times
        (string(format="date"), ['"2024-02-29"', '"2000-02-29"', '"0004-02-29"'], []),
        (string(format="date"), [], ['"2023-02-29"', '"1900-02-29"', '"0000-01-01"']),
        (string(format="time"), ['"12:30:59Z"', '"00:00:00.5+02:00"'], ['"12:30:60Z"']),
        (string(format="date-time"), ['"2024-02-29T00:00:00Z"'], ['"2023-02-29T00:00:00Z"']),
        # Keys
        ({**A, "additionalProperties": {"type": "string"}}, ['{"a":1,"b":"x"}'], []),
        ({**A, "additionalProperties": {"type": "string"}}, [], ['{"a":1,"\\u0061":"x"}']),
        ({"type": "object", "minProperties": 2}, ['{"a":1,"b":2}'], ['{"a":1,"a":2}']),
        ({"type": "object", "minProperties": 2}, [], ['{"a":{"a":1},"a":2}', '{"a/":1,"a\\/":2}']),
        ({"type": "object"}, ['{"a":{"a":1},"b":[{"a":1},{"a":2}]}'], ['{"b":[{"a":1,"a":2}]}']),
        ({"const": "\u0001/"}, ['"\\u0001/"'], []),
        # Patterns
        (string(pattern='^[^"]*$'), ['"a\\\\b"'], ['"a\\"b"']),
        (string(pattern='^[^-"\\\\/]*$'), ['"ab"'], ['"\\""', '"\\\\"', '"-"']),
        (string(pattern=r"^\d\w$"), ['"1a"'], ['"\u0661a"', '"1\u00e9"']),
        # Keywords with another spelling, or without an effect
        ({"type": "array", "items": {}, "minItems": 2.0}, ["[1,2]"], ["[1]"]),
        ({"type": "array", "uniqueItems": False}, ["[1,1]"], []),
        ({"type": "array", "items": [{"const": 1}], "additionalItems": False}, ["[1]"], ["[1,1]"]),
        ({"type": "string", "nullable": True}, ['"x"', "null"], ["1"]),
        ({"type": "object", "properties": {"a": {"not": {}}}}, ["{}"], ['{"a":1}']),
        # Unique items
        (
            {"type": "array", "items": string(), "uniqueItems": True, "minItems": 2},
            ['["a","b"]', '["","a", "ab"]'],
            ['["a","a"]', '["a", "b","a"]'],
        ),
        (
            {"type": "array", "items": integer(), "uniqueItems": True},
            ["[1,2,12]", "[]"],
            ["[1,1]", "[0,-0]", "[1,2,1 ]"],
        ),
        (
            {"type": "array", "items": {"enum": ["a", 1, None]}, "uniqueItems": True},
            ['[1,"a",null]', "[]", "[null]"],
            ["[1,1]", '["a",null,"a"]'],
        ),
        # Names of properties
        ({"type": "object", "propertyNames": {"type": "string"}}, ['{"x":1}'], []),
        ({"type": "object", "propertyNames": {"enum": ["a", "b"]}}, ['{"b":1}'], ['{"c":1}']),
        ({"type": "object", "propertyNames": {"pattern": "^x"}}, ['{"xy":1}'], ['{"y":1}']),
        ({"type": "object", "propertyNames": {"minLength": 2}}, ['{"xy":1}'], ['{"y":1}']),
        # Closed objects
        (A, ['{"a":1}'], ['{"a":1,"b":2}']),
        ({**A, "additionalProperties": True}, ['{"a":1,"b":2}'], []),
        ({"allOf": [A, {"properties": {"b": {}}}]}, ['{"a":1,"b":2}'], ['{"a":1,"c":2}']),
        ({**A, "anyOf": [{"properties": {"b": {}}}]}, ['{"a":1,"b":2}'], ['{"a":1,"c":2}']),
        ({"type": "object", "properties": {}}, ["{}"], ['{"a":1}']),
        ({**A, "required": ["a", "b"]}, ['{"a":1,"b":2}'], ['{"a":1}']),
        # Alternatives
        ({"oneOf": [CAT, DOG]}, ['{"kind":"cat"}', '{"kind":"dog"}'], ['{"kind":"cow"}']),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, ["1", "2"], ["3"]),
        ({"oneOf": [integer(maximum=1), integer(minimum=2)]}, ["1", "2"], []),
        # Recursion
        (
            {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#"}, "minItems": 1}]},
            ["null", "[[null]]"],
            ["[]"],
        ),
        (
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}, "b": {}}}
            | {"$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1}}},
            ['{"b":1}'],
            ['{"a":[['],
        ),
    ],
)
def test_exactly_the_valid_texts_are_allowed(
    texts: RandomTexts, schema: Any, allowed: list[str], forbidden: list[str]
) -> None:
    for text in allowed:
        assert texts.allows(schema, text), text
    for text in forbidden:
        assert not texts.allows(schema, text), text


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"properties": {"a": {"not": A}}}, "'not' at #/properties/a "),
        ({"items": {"uniqueItems": True}}, "'uniqueItems' at #/items "),
        (
            {
                "properties": {
                    "x": {"type": "array", "items": string(), "uniqueItems": True},
                    "y": {},
                }
            },
            "'uniqueItems' at #/properties/x ",
        ),
        (
            {"properties": {"x": {"type": "array", "items": string(), "uniqueItems": True}}}
            | {"additionalProperties": {"prefixItems": [integer(), integer()], "items": False}},
            "'uniqueItems' at #/properties/x ",
        ),
        ({"properties": {"x": string(pattern="(?=a)")}}, "(at #/properties/x)"),
        ({"properties": {"x": string(format="iri")}}, "'format' at #/properties/x is 'iri'"),
        ({"properties": {"x": {"type": "strong"}}}, "'type' at #/properties/x is \"strong\""),
        ({"anyOf": [{"type": "null"}, {"minItems": 1.5}]}, "'minItems' at #/anyOf/1 is 1.5"),
        ({"properties": {"x": integer(minimum=0.2, maximum=0.8)}}, "at #/properties/x"),
        ({"$ref": "#/$defs/x"}, "'$ref' at # is '#/$defs/x', which does not exist"),
        ({"oneOf": [integer(), number()]}, "'oneOf' at # is not supported"),
        ({**A, "propertyNames": {"pattern": "^a"}}, "'propertyNames' at #"),
        ({**A, "properties": {"a": {"$ref": "#"}}}, "no finite document"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "no finite document"),
        ({"type": "integer", "minimum": 10**400}, "no number is between the bounds"),
        ({"properties": {"n" * 10**6: {"not": A}}}, "..."),
    ],
)
def test_a_refusal_names_the_keyword_and_its_place(
    texts: RandomTexts, schema: Any, message: str
) -> None:
    with pytest.raises(RequestError) as refused:
        texts.allows(schema, "")
    assert message in str(refused.value)
    assert len(str(refused.value)) < 800


def test_an_object_stays_open_on_request() -> None:
    nested = json.dumps({"type": "object", "properties": {"x": A}})
    closed, opened = normalize(nested).schema, normalize(nested, open_objects=True).schema
    assert closed["additionalProperties"] is False
    assert closed["properties"]["x"]["additionalProperties"] is False
    assert "additionalProperties" not in json.dumps(opened)


@pytest.mark.parametrize("repeated", [2, 3])
def test_references_that_multiply_are_refused(texts: RandomTexts, repeated: int) -> None:
    definitions: dict[str, Any] = {"x20": A}
    for number in range(20):
        both = {"allOf": [{"$ref": f"#/$defs/x{number + 1}"}] * repeated}
        definitions[f"x{number}"] = {"type": "object", "properties": {"y": both, "z": both}}
    schema = {"$defs": definitions, "$ref": "#/$defs/x0"}
    with pytest.raises(RequestError, match=r"parts with its references|too large"):
        texts.allows(schema, "")


def test_long_chains_of_references_are_refused() -> None:
    definitions = {f"x{i}": {"items": {"$ref": f"#/$defs/x{i + 1}"}} for i in range(700)}
    schema = {"$defs": {**definitions, "x700": {}}, "$ref": "#/$defs/x0"}
    with pytest.raises(ValueError, match="levels of nesting"):
        normalize(json.dumps(schema))


@pytest.mark.parametrize("number", range(40))
def test_random_texts_of_generated_schemas_are_valid(texts: RandomTexts, number: int) -> None:
    schema = SchemaGenerator(number).schema()
    try:
        found = [texts.write(schema, seed) for seed in range(4)]
    except RequestError as error:
        if "no number is between the bounds" not in str(error):
            raise
        return
    for text in found:
        assert text is None or not problem(schema, text), text


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(pydantic.BaseModel):
    kind: Literal["dog", "wolf"]
    friend: Optional["Dog"] = None


class Point(NamedTuple):
    x: int
    y: float


PYDANTIC: dict[str, Any] = {
    "text": Annotated[str, pydantic.Field(min_length=1, max_length=9, pattern=r"^a\w+$")],
    "data": bytes,
    "when": datetime.datetime,
    "aware": pydantic.AwareDatetime,
    "day": datetime.date,
    "clock": datetime.time,
    "span": datetime.timedelta,
    "identity": uuid.UUID,
    "identity4": pydantic.UUID4,
    "password": pydantic.SecretStr,
    "secret": pydantic.SecretBytes,
    "colour": Colour,
    "choice": Literal["a", 1, True, None],
    "either": int | str | list[int],
    "pair": tuple[int, str],
    "point": Point,
    "many": tuple[int, ...],
    "set": set[str],
    "numbers": frozenset[int],
    "colours": set[Colour],
    "mapping": Mapping[str, int],
    "by_choice": dict[Literal["a", "b"], int],
    "by_identity": dict[uuid.UUID, int],
    "listed": Sequence[Annotated[int, pydantic.Field(ge=-INT64, le=INT64 - 1)]],
    "address": pydantic.IPvAnyAddress,
    "address4": ipaddress.IPv4Address,
    "network": pydantic.IPvAnyNetwork,
    "network6": ipaddress.IPv6Network,
    "interface": ipaddress.IPv4Interface,
    "file": pathlib.Path,
    "ratio": Annotated[float, pydantic.Field(gt=0, le=0.5)],
    "finite": pydantic.FiniteFloat,
    "positive": pydantic.PositiveInt,
    "size": pydantic.ByteSize,
    "anything": Any,
    "tree": pydantic.JsonValue,
    "pet": Annotated[Cat | Dog, pydantic.Field(discriminator="kind")],
}
"""Types whose schemas say all that pydantic checks."""
LOOSE: dict[str, Any] = {
    "base64": pydantic.Base64Str,
    "price": Annotated[decimal.Decimal, pydantic.Field(max_digits=5, decimal_places=2)],
    "amount": decimal.Decimal,
    "by_number": dict[int, str],
    "any url": pydantic.AnyUrl,
    "url": pydantic.HttpUrl,
    "database": pydantic.PostgresDsn,
    "future": pydantic.FutureDate,
    "folder": pydantic.DirectoryPath,
    "json": pydantic.Json,
}
"""Types that pydantic checks beyond their schemas."""


def answer(value: Any) -> type[pydantic.BaseModel]:
    model: type[pydantic.BaseModel] = pydantic.create_model("Answer", value=(value, ...))
    return model


@pytest.mark.parametrize("name", PYDANTIC)
def test_pydantic_reads_random_texts_under_its_own_schema(texts: RandomTexts, name: str) -> None:
    model = answer(PYDANTIC[name])
    for seed in range(4):
        if (text := texts.write(model.model_json_schema(), seed)) is not None:
            model.model_validate_json(text)


@pytest.mark.parametrize("name", LOOSE)
def test_schemas_of_types_with_further_checks_are_accepted(texts: RandomTexts, name: str) -> None:
    schema = answer(LOOSE[name]).model_json_schema()
    text = texts.write(schema, 1)
    assert text is None or not problem(schema, text)


@pytest.mark.parametrize("model", [Cat, Dog])
def test_the_openai_client_parses_replies_under_its_own_schema(
    texts: RandomTexts, model: type[pydantic.BaseModel]
) -> None:
    wanted: Any = type_to_response_format_param(model)
    for seed in range(4):
        text = texts.write(wanted["json_schema"]["schema"], seed)
        assert text is None or model.model_validate_json(text)


def test_the_schemas_of_zod_are_accepted(texts: RandomTexts) -> None:
    for name, schema in json.loads(ZOD.read_text(encoding="utf-8")).items():
        for seed in range(2):
            text = texts.write(schema, seed)
            if text is not None and name.endswith("2020-12"):
                assert not problem(_without_look_around(schema), text), name


def _without_look_around(schema: dict[str, Any]) -> dict[str, Any]:
    # Python has no `\p{...}`; zod uses it beside look-around only.
    pattern = str(schema.get("pattern", ""))
    return {k: v for k, v in schema.items() if k != "pattern" or "\\p" not in pattern}


def test_the_documentation_lists_the_refused_keywords() -> None:
    text = STRUCTURED_OUTPUT.read_text(encoding="utf-8")
    listed = text.split("<!-- refused -->\n")[1].split("<!-- /refused -->")[0]
    assert listed == "".join(f"- `{key}`: {reason}.\n" for key, reason in REFUSED.items())
