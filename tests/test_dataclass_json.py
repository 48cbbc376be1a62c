"""Dataclasses from JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from llmctl.dataclass_json import from_json


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Box:
    first: Item
    items: tuple[Item, ...]
    second: Item | None = None
    label: object = None
    counts: Mapping[str, int] = field(default_factory=dict)


def test_nested_dataclasses_and_tuples_are_built() -> None:
    value = {
        "first": {"name": "a", "sizes": [1, 2]},
        "items": [{"name": "b"}],
        "second": None,
        "label": ["x"],
        "counts": {"y": 1},
    }
    assert from_json(Box, value) == Box(
        Item("a", (1, 2)), (Item("b"),), None, ["x"], counts={"y": 1}
    )


def test_unknown_keys_are_ignored_or_refused() -> None:
    value = {"name": "a", "color": "red"}
    assert from_json(Item, value) == Item("a")
    with pytest.raises(ValueError, match="Item has no field color"):
        from_json(Item, value, unknown="refuse")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({}, "first: Field required"),
        ({"first": {"name": 1}, "items": []}, "first.name: Input should be a valid string"),
        ({"first": {"name": "a"}, "items": [{}]}, "items.0.name: Field required"),
        (["a"], "Input should be a dictionary"),
    ],
)
def test_a_missing_or_wrong_field_is_an_error_that_names_it(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(Box, value)
