"""Rows that the `datasets` library wrote or infers types for keep the values they had."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmctl.data.io.reader import read_examples
from llmctl.data.rows.row_errors import RowError, RowErrorLog
from llmctl.types import Example, SourceLocation
from tests.data.io.test_reader import read_hub

SCALARS = ["42", "null", "true", "007", "1e3", "NaN", "[1, 2]", '{"a": 1}', "plain", "“多”", "-"]


def tool(name: str, **properties: object) -> dict[str, object]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def call(name: str, **arguments: object) -> dict[str, object]:
    turns: list[dict[str, object]] = [{"role": "user", "content": "Do it."}]
    function = {"name": name, "arguments": arguments}
    turns.append({"role": "assistant", "tool_calls": [{"type": "function", "function": function}]})
    return {"messages": turns}


ROWS: dict[str, list[dict[str, Any]]] = {
    "text of prompts and turns in one column": [
        *({"prompt": "What is written?", "completion": text} for text in SCALARS),
        {
            "prompt": [{"role": "user", "content": "hi"}],
            "completion": [{"role": "assistant", "content": "42"}],
        },
    ],
    "content as text and as parts": [
        *(
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "7"}]}
            for text in SCALARS
        ),
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                {"role": "assistant", "content": "null"},
            ]
        },
    ],
    "arguments of different calls": [
        call("weather", city="Paris") | {"tools": [tool("weather", city={"type": "string"})]},
        call("convert", amount=3.5, unit={"to": "m"})
        | {"tools": [tool("convert", amount={"type": "number"}, unit={"type": "object"})]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    ],
    "optional columns": [
        {
            "instruction": "Add 1 and 2.",
            "input": "",
            "output": "3",
            "system": "Count.",
            "history": None,
        },
        {"instruction": "Say hello.", "output": "hello", "history": [["a", "b"]]},
    ],
    "pairs": [
        {"prompt": "5 + 5", "chosen": "10", "rejected": "11"},
        {
            "chosen": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
            "rejected": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "3"}],
        },
    ],
}


def examples(source: Path) -> list[Example]:
    log = RowErrorLog()
    found = [
        replace(example, origin=SourceLocation("", 0))
        for example in read_examples(source, on_row_error=log)
    ]
    assert log.first == []
    return found


MIXED = ["text of prompts and turns in one column", "content as text and as parts", "pairs"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, "parquet") for name in ROWS] + [(name, "jsonl") for name in ROWS if name not in MIXED],
)
def test_files_of_datasets_have_the_examples_of_the_original_rows(
    tmp_path: Path, name: str, kind: str
) -> None:
    original = tmp_path / "original.jsonl"
    original.write_text("\n".join(map(json.dumps, ROWS[name])), "utf-8")
    assert examples(written(tmp_path, name, kind)) == examples(original)


def written(folder: Path, name: str, kind: str) -> Path:
    """Write the rows with `datasets`."""
    import datasets

    data = datasets.Dataset.from_list(ROWS[name], on_mixed_types="use_json")
    path = folder / f"written.{kind}"
    (data.to_parquet if kind == "parquet" else data.to_json)(path)
    return path


def test_text_that_datasets_wrote_as_a_number_is_an_error(tmp_path: Path) -> None:
    errors: list[RowError] = []
    path = written(tmp_path, "text of prompts and turns in one column", "jsonl")
    kept = [e.messages[-1].content for e in read_examples(path, on_row_error=errors.append)]
    assert kept == ["plain", "“多”", "42"]
    assert {error.origin.line for error in errors} == {*range(1, 9), 11}


@pytest.mark.slow
def test_json_files_of_a_hub_dataset_are_read_as_they_are(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "datasets--anna--sums"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    rows = ROWS["text of prompts and turns in one column"]
    (snapshot / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n{", "utf-8")
    *lines, error = read_hub(tmp_path, "anna/sums")
    first_words = [text.split()[0] for text in SCALARS]
    assert lines == [f"{n} {word}" for n, word in enumerate([*first_words, "42"], 1)]
    assert error.startswith("anna/sums:13:")
