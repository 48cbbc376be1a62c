"""Conversion between formats: round trips, and what a format cannot represent."""

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmctl.data.formats.parse import FORMATS, parse_row
from llmctl.data.formats.render import render_example
from llmctl.data.io.reader import read_examples
from llmctl.data.io.validating_reader import BadRowsError, ReadOptions
from llmctl.data.io.writer import RowWriter
from llmctl.data.operations.convert import convert_rows
from llmctl.data.rows.row import RawRow
from llmctl.data.rows.row_errors import RowErrorLog
from llmctl.errors import ConfigError
from llmctl.types import Example, Message, ToolCall
from tests.data.conversations import ORIGIN, TEXTS, examples, pairs, plain_turns

SAMPLES = Path(__file__).parents[1] / "samples"


def round_trip(value: dict[str, object]) -> Example:
    """Parse a rendered row, through JSON."""
    text = json.dumps(value, ensure_ascii=False)
    example = parse_row(RawRow(ORIGIN, text.encode(), json.loads(text)))
    assert isinstance(example, Example), [str(error) for error in example]
    return example


@given(example=examples(), format=st.sampled_from(sorted(FORMATS)))
def test_an_example_survives_a_round_trip_through_every_format_that_can_represent_it(
    example: Example, format: str
) -> None:
    row = render_example(example, format)
    if isinstance(row, dict):
        back = round_trip(row)
        assert back.format == format
        assert replace(back, format=example.format) == example
    else:
        assert format != "messages"


@given(turns=plain_turns(), format=st.sampled_from(["messages", "sharegpt", "alpaca"]))
def test_every_conversation_format_can_represent_plain_turns(
    turns: tuple[Message, ...], format: str
) -> None:
    row = render_example(Example(ORIGIN, "messages", turns), format)
    assert isinstance(row, dict)
    assert round_trip(row).messages == turns


@given(pair=pairs())
def test_a_preference_pair_survives_a_round_trip(pair: Example) -> None:
    row = render_example(pair, "preference")
    assert isinstance(row, dict)
    assert round_trip(row) == pair


TEXT_ROWS = st.builds(Example, st.just(ORIGIN), st.just("text"), text=TEXTS)
MIXED = st.lists(examples() | pairs() | TEXT_ROWS, min_size=1, max_size=5)


@settings(max_examples=15)
@given(rows=MIXED, kind=st.sampled_from(["jsonl", "json", "csv", "parquet"]))
def test_rows_of_all_formats_survive_a_round_trip_through_files_of_all_kinds(
    rows: list[Example], kind: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows.{kind}"
        with RowWriter(path) as writer:
            for example in rows:
                row = render_example(example, example.format)
                assert isinstance(row, dict)
                writer.write(row)
        log = RowErrorLog()
        back = list(read_examples(path, on_row_error=log))
        assert log.first == []
        assert [replace(example, origin=ORIGIN) for example in back] == rows


CALLING = Message("assistant", "", tool_calls=(ToolCall("a", "{}", "1"), ToolCall("b", "{}", "2")))
ANSWERED = [Message("tool", "x", tool_call_id="2"), Message("tool", "y", tool_call_id="1")]
ASK, ANSWER = Message("user", "a"), Message("assistant", "b")


@pytest.mark.parametrize(
    ("turns", "masked", "format", "expected"),
    [
        ([ASK, CALLING, *ANSWERED, ANSWER], (), "sharegpt", "tool results in another order"),
        ([ASK, CALLING], (), "alpaca", "tools and tool calls"),
        ([ASK, Message("assistant", "b", reasoning="c")], (), "sharegpt", "reasoning"),
        ([ASK, ANSWER, ASK, ANSWER], (), "prompt-completion", "a loss on earlier answers"),
        ([ASK, ANSWER, ASK, ANSWER], (1,), "alpaca", "turns excluded from the loss"),
        ([ASK, ANSWER], (), "preference", "a row without a rejected answer"),
        ([ASK, ANSWER], (), "text", "a conversation"),
    ],
)  # fmt: skip
def test_the_parts_that_a_format_cannot_represent_are_errors(
    turns: Sequence[Message], masked: tuple[int, ...], format: str, expected: str
) -> None:
    example = Example(ORIGIN, "messages", tuple(turns), masked=masked)
    errors = render_example(example, format)
    assert isinstance(errors, tuple)
    assert f"made.jsonl:1: {format} cannot represent {expected}" in str(errors[0])


def test_a_row_that_cannot_be_converted_prevents_the_output(tmp_path: Path) -> None:
    with pytest.raises(BadRowsError) as caught:
        convert_rows(
            SAMPLES / "messages.jsonl", "alpaca", tmp_path / "out.json", options=ReadOptions()
        )
    assert caught.value.log.kinds == {"cannot-hold": 3}
    assert [error.origin.line for error in caught.value.log.first] == [2, 3, 4]
    assert os.listdir(tmp_path) == []


def test_rows_that_cannot_be_converted_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    written = convert_rows(
        [str(SAMPLES / "messages.jsonl"), str(SAMPLES / "text.jsonl")],
        "alpaca",
        out,
        options=ReadOptions(on_error="skip"),
    )
    assert (written.rows, written.bad_rows, written.files) == (6, 5, ((out, 1),))
    assert json.loads(out.read_text()) == {
        "instruction": "How long do I boil an egg?",
        "input": "",
        "output": "Seven minutes for a soft yolk.",
    }


def test_an_existing_file_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    source = SAMPLES / "sharegpt.json"
    with pytest.raises(ConfigError, match="already exists"):
        convert_rows(source, "messages", out, options=ReadOptions())
    assert out.read_text() == "mine"
    convert_rows(source, "messages", out, options=ReadOptions(), overwrite=True)
    assert len(out.read_text().splitlines()) == 2


def _write_and_stop(path: Path) -> None:
    with RowWriter(path, overwrite=True) as writer:
        writer.write({"text": "a"})
        raise KeyboardInterrupt


def test_an_interrupted_writer_leaves_the_old_file_and_nothing_else(
    tmp_path: Path,
) -> None:
    for name in ("out.jsonl", "out.csv.gz", "out.parquet"):
        out = tmp_path / name
        out.write_text("mine")
        with pytest.raises(KeyboardInterrupt):
            _write_and_stop(out)
        assert out.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["out.csv.gz", "out.jsonl", "out.parquet"]


def test_equal_rows_give_equal_compressed_files(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        convert_rows(SAMPLES / "sharegpt.json", "messages", tmp_path / name, options=ReadOptions())
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_parquet_columns_without_a_common_type_are_written_as_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows: list[dict[str, object]] = [
        {"text": "a", "about": {"n": 1}, "mixed": 1, "none": {}},
        {"text": "b", "about": {"n": "x"}, "mixed": "y", "none": {}},
        {"text": "c", "late": [1.5]},
    ]
    with RowWriter(path) as writer:
        for row in rows:
            writer.write(row)
    log = RowErrorLog()
    assert [e.text for e in read_examples(path, on_row_error=log)] == ["a", "b", "c"]
    assert log.total == 0


@pytest.mark.parametrize("name", ["out.xml", "out", "out.parquet.gz", "there/out.jsonl"])
def test_an_output_that_cannot_be_written_is_an_error_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        convert_rows(SAMPLES / "text.txt", "text", tmp_path / name, options=ReadOptions())
