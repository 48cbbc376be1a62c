"""Table of JSON schemas: generated schemas, and random texts that their grammars allow.

Run `python -m tests.compat.schemas`; it takes about a minute on two cores. It also writes the
list of refused keywords to docs/structured-output.md.
"""

import datetime
import json
import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import torch

from llmctl.engine.batching.sampling.grammar import GrammarCompiler
from llmctl.engine.batching.sampling.json_schema.keywords import REFUSED
from llmctl.engine.batching.sampling.logprobs import TokenBytes
from llmctl.errors import RequestError
from llmctl.types import Grammar
from tests.compat.table import write_table
from tests.tiny import byte_tokenizer

SCHEMAS, TEXTS = 1000, 40
_MOST_TOKENS = 600
_BOUNDS = (
    0,
    1,
    -1,
    0.5,
    -0.5,
    0.1,
    7,
    -3.25,
    1e-7,
    100,
    2**31,
    2**53 + 1,
    -(2**63),
    2**63 - 1,
    1e20,
)
_PATTERNS = (
    *("^[^a-z]{2}$", "[^-x]", "^\\S+$", "^.{2,4}$", "^[\\s\\S]*$", '^(?:[^\\n"]|x)+$', "^[^]a]*$"),
    *("^[a-c]{1,3}$", "b+c", "^x", "[0-9]$", "^(?:ab|c)*$", "^\\d{2}-\\w+$", '^[^"\\\\/]*$'),
)
_FORMATS = (
    *("date", "time", "date-time", "uuid", "uuid4", "email", "ipv4", "ipv6", "duration"),
    *("hostname", "password", "uri"),
)
_VALUES = (
    "a",
    "",
    "\u4f60/\n",
    'say "x"\\',
    0,
    1,
    -7,
    2.5,
    True,
    None,
    [1, "a"],
    {"k": [None]},
    10**17,
)
_NAMES = ("a", "b", "name", "x1", "a/b", 'q"', "\u540d")


class SchemaGenerator:
    """Random JSON schemas."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def schema(self) -> dict[str, Any]:
        """Return a schema, of an object in most cases, with a recursive definition in some."""
        if self._rng.random() < 0.05:
            return self._sets()
        root = self._object(3) if self._rng.random() < 0.8 else self._any(3)
        if self._rng.random() < 0.3:
            node = {
                "type": "object",
                "properties": {
                    "v": self._any(1),
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["v", "next"],
            }
            root = {"$defs": {"node": node}, "allOf": [root]}
            if self._rng.random() < 0.5:
                root = {
                    "$defs": {"node": node},
                    "type": "array",
                    "items": {"$ref": "#/$defs/node"},
                    "minItems": self._rng.randint(0, 2),
                    "maxItems": 3,
                }
        return root

    def _sets(self) -> dict[str, Any]:
        items = [{"type": "string"}, {"type": "integer"}, {"enum": ["a", 0, None]}]
        fields = {
            name: {"type": "array", "items": self._rng.choice(items), "uniqueItems": True}
            for name in self._rng.sample(_NAMES, 2)
        }
        return {"type": "object", "properties": fields, "required": list(fields)}

    def _any(self, depth: int) -> dict[str, Any]:
        simple: list[Callable[[int], dict[str, Any]]] = [
            self._number,
            self._number,
            self._text,
            self._text,
            self._values,
            self._mixed,
        ]
        nested: list[Callable[[int], dict[str, Any]]] = [
            self._object,
            self._array,
            self._combined,
            self._one_of,
        ]
        kind = self._rng.choice([*simple, *(nested if depth > 0 else [])])
        return kind(depth - 1)

    def _maybe(self, probability: float = 0.5) -> bool:
        return self._rng.random() < probability

    def _number(self, _: int) -> dict[str, Any]:
        found: dict[str, Any] = {"type": self._rng.choice(["integer", "number"])}
        low, high = sorted(self._rng.sample(_BOUNDS, 2))
        if self._maybe():
            found[self._rng.choice(["minimum", "exclusiveMinimum"])] = low
        if self._maybe():
            found[self._rng.choice(["maximum", "exclusiveMaximum"])] = high
        if self._maybe(0.15):
            found["multipleOf"] = self._rng.choice([2, 5, 0.5, 0.01, 3])
        return found

    def _text(self, _: int) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "string"}
        match self._rng.randrange(4):
            case 0:
                found["format"] = self._rng.choice(_FORMATS)
            case 1:
                found["pattern"] = self._rng.choice(_PATTERNS)
            case 2:
                found["minLength"] = self._rng.randint(0, 3)
                found["maxLength"] = self._rng.choice([3, 5.0, 8])
        return found

    def _values(self, _: int) -> dict[str, Any]:
        if self._maybe(0.4):
            return {"const": self._rng.choice(_VALUES)}
        return {"enum": self._rng.sample(_VALUES, self._rng.randint(1, 5))}

    def _mixed(self, _: int) -> dict[str, Any]:
        kinds = ["string", "integer", "null", "boolean", "number"]
        found: dict[str, Any] = {"type": self._rng.sample(kinds, self._rng.randint(1, 3))}
        if self._maybe():
            found |= {"minimum": self._rng.choice(_BOUNDS), "maxLength": 4}
        return found

    def _array(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "array", "uniqueItems": False}
        if self._maybe(0.8):
            found["items"] = self._any(depth)
        if self._maybe(0.3):
            found["prefixItems"] = [self._any(depth) for _ in range(self._rng.randint(1, 2))]
        if self._maybe():
            found["minItems"] = self._rng.choice([0, 1, 2.0])
        if self._maybe(0.8):
            found["maxItems"] = self._rng.randint(2, 4)
        return found

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "object"}
        names = self._rng.sample(_NAMES, self._rng.randint(1, 4))
        if self._maybe(0.8):
            found["properties"] = {name: self._any(depth) for name in names}
            found["required"] = names if self._maybe(0.4) else self._rng.sample(names, 1)
            match self._rng.randrange(4):
                case 0:
                    found["additionalProperties"] = self._rng.choice([True, False])
                case 1:
                    found["additionalProperties"] = self._any(0)
                case 2 if found["required"] is names:
                    found |= {"additionalProperties": {"type": "boolean"}, "minProperties": 5}
        else:
            match self._rng.randrange(4):
                case 0:
                    found["patternProperties"] = {"^[a-d]": self._any(0)}
                    found["additionalProperties"] = self._rng.choice([{"type": "null"}, False])
                case 1:
                    found["propertyNames"] = {"enum": names}
                    found["additionalProperties"] = self._any(0)
                case 2:
                    found["propertyNames"] = {"minLength": 1, "maxLength": 3}
                case _:
                    found |= {"additionalProperties": self._any(0), "minProperties": 2}
        return found

    def _combined(self, depth: int) -> dict[str, Any]:
        if self._maybe():
            return {"anyOf": [self._any(depth) for _ in range(self._rng.randint(1, 3))]}
        return {
            "allOf": [
                {"type": "object", "properties": {"a": self._any(depth)}, "required": ["a"]},
                {"type": "object", "properties": {"b": self._any(depth)}},
            ]
        }

    def _one_of(self, depth: int) -> dict[str, Any]:
        def member(kind: str) -> dict[str, Any]:
            fields = {"kind": {"const": kind}, "value": self._any(depth)}
            return {"type": "object", "properties": fields, "required": ["kind"]}

        return {"oneOf": [member("cat"), member("dog"), {"type": "null"}]}


class RandomTexts:
    """Random texts that the grammar of a schema allows, one byte per token."""

    def __init__(self) -> None:
        tokenizer = byte_tokenizer()
        self._size, self._end = len(tokenizer), int(tokenizer.eos_token_id)
        texts = TokenBytes(tokenizer)
        self._words = [texts.of(i) for i in range(self._size)]
        self._closing = {i for i, word in enumerate(self._words) if word in (b'"', b"}", b"]")}
        self._plain = {i for i, word in enumerate(self._words) if b" " < word < b"\x7f"}
        self._compiler = GrammarCompiler(tokenizer, self._size, [self._end])

    def allows(self, schema: Any, text: str) -> bool:
        """Return whether the grammar allows a whole text.

        Raises:
            RequestError: the schema is refused.
        """
        matcher = self._compiler.compile(Grammar("json_schema", json.dumps(schema)))
        for byte in text.encode():
            token = self._words.index(bytes([byte]))
            logits = torch.zeros(self._size)
            matcher.apply(logits)
            if not logits[token].isfinite():
                return False
            matcher.accept(token)
        logits = torch.zeros(self._size)
        matcher.apply(logits)
        return bool(logits[self._end].isfinite())

    def write(self, schema: Any, seed: int) -> str | None:
        """Return a complete text, or `None` if it became too long.

        Raises:
            RequestError: the schema is refused.
        """
        rng = random.Random(seed)
        matcher = self._compiler.compile(Grammar("json_schema", json.dumps(schema)))
        text = b""
        calm = rng.choice([15, 40, 80])
        for step in range(_MOST_TOKENS):
            logits = torch.zeros(self._size)
            matcher.apply(logits)
            allowed = set(logits.isfinite().nonzero().flatten().tolist())
            choice = allowed
            if step > calm and allowed & {self._end}:
                choice = {self._end}
            elif allowed & self._closing and (step > calm or rng.random() < 0.3):
                choice = allowed & self._closing
            elif allowed & self._plain and rng.random() < 0.9:
                choice = allowed & self._plain
            token = rng.choice(sorted(choice))
            if token == self._end:
                return text.decode()
            matcher.accept(token)
            text += self._words[token]
        return None


def problem(schema: dict[str, Any], text: str) -> str:
    """Return why `jsonschema` or a reader of 64-bit numbers refuses a text, or an empty text."""
    exact = json.loads(json.dumps(schema), parse_float=Decimal)
    checker = jsonschema.FormatChecker()
    checker.checks("time", ValueError)(_is_time)
    checker.checks("date-time", ValueError)(_is_time)
    try:
        value = json.loads(text, parse_float=Decimal, object_pairs_hook=_unique)
        jsonschema.Draft202012Validator(exact, format_checker=checker).validate(value)
        json.loads(text, parse_float=_double, parse_int=_int64)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def _is_time(value: object) -> bool:
    if isinstance(value, str):
        parse = datetime.datetime if "T" in value else datetime.time
        return parse.fromisoformat(value).tzinfo is not None
    return True


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a key occurs twice in {pairs}")
    return dict(pairs)


def _double(text: str) -> float:
    if abs(float(text)) == float("inf"):
        raise ValueError(f"{text} is not a double")
    return float(text)


def _int64(text: str) -> int:
    if not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{text} is not an int64")
    return int(text)


def check(number: int) -> Counter[str]:
    """Return the counts of one schema and its texts; print what is refused or invalid."""
    texts, schema = RandomTexts(), SchemaGenerator(number).schema()
    try:
        found = [texts.write(schema, seed) for seed in range(TEXTS)]
    except RequestError as error:
        print(f"{number} refused: {str(error)[:200]}")
        return Counter(refused=1)
    problems = {text: why for text in found if text is not None and (why := problem(schema, text))}
    for text, why in problems.items():
        print(f"{number} invalid: {why[:300]} in {text[:300]} under {json.dumps(schema)}")
    unfinished = found.count(None)
    complete = len(found) - unfinished
    return Counter(accepted=1, unfinished=unfinished, texts=complete, invalid=len(problems))


def main() -> None:
    """Generate schemas and texts, and write the table and the list of refused keywords."""
    with ProcessPoolExecutor() as pool:
        counts = sum(pool.map(check, range(SCHEMAS), chunksize=10), Counter[str]())
    rows = [
        [
            "generated schemas",
            str(SCHEMAS),
            f"{counts['accepted']} accepted, {counts['refused']} refused",
        ],
        ["complete texts", str(counts["texts"]), f"{counts['invalid']} invalid"],
        ["texts cut off at 600 bytes", str(counts["unfinished"]), "not compared"],
    ]
    write_table("schemas", ["what", "tried", "result"], rows, ["llguidance", "jsonschema"])
    document = Path(__file__).parents[2] / "docs" / "structured-output.md"
    begin, end = "<!-- refused -->\n", "<!-- /refused -->"
    before, rest = document.read_text(encoding="utf-8").split(begin)
    lines = [f"- `{keyword}`: {reason}.\n" for keyword, reason in REFUSED.items()]
    after = rest.split(end, 1)[1]
    document.write_text(before + begin + "".join(lines) + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
