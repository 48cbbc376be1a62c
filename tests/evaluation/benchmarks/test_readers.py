"""Benchmark files as spreadsheets save them."""

import io
from pathlib import Path

import pytest

from llmctl.data.io.text_encoding import open_utf8
from llmctl.evaluation.benchmarks.custom_benchmark import load_custom_benchmark
from llmctl.evaluation.benchmarks.readers import (
    BenchmarkDataError,
    DatasetReader,
    read_ceval_csv,
    read_mmlu_csv,
)

ROWS = (
    ("id", "question", "A", "B", "C", "D", "answer"),
    ("0", "天空是什么颜色？", "红", "蓝", "绿", "黄", "B"),
    ("1", 'Which, "precisely"; is it?', "a,b", "c;d", "e", "f", "C"),
)


def content(separator: str, encoding: str) -> bytes:
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"' if set(text) & set(',;"\t') else text

    return "\r\n".join(separator.join(map(cell, row)) for row in ROWS).encode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "gbk", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_is_read_in_every_encoding_and_with_every_separator(
    separator: str, encoding: str
) -> None:
    file = Path("law_val.csv")
    stream = open_utf8(io.BytesIO(content(separator, encoding)), "law_val.csv")
    docs = list(read_ceval_csv(file, stream))
    assert [doc.question for doc in docs] == [row[1] for row in ROWS[1:]]
    assert [doc.options for doc in docs] == [row[2:6] for row in ROWS[1:]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"1,2,3\n", "law.csv:1: 3 columns"),
        ("q,a,b,c,d,A\nq,é,b,c,d,A\n".encode("latin-1"), "law.csv:2: the byte 0xe9 is not valid"),
        (b'q,a,b,c,d,A\nq,"a,b,c,d,A\n', "law.csv:2: a quote in this row is never closed"),
        (b'q,"a"b,b,c,d,A\n', "law.csv:1: text after a closing quote"),
    ],
)
def test_a_malformed_table_is_an_error_with_its_line(
    tmp_path: Path, text: bytes, expected: str
) -> None:
    file = tmp_path / "law.csv"
    file.write_bytes(text)
    with pytest.raises(BenchmarkDataError) as caught:
        DatasetReader("law.csv", read_mmlu_csv, "six columns").read(file)
    assert expected in str(caught.value)
    assert caught.value.hint == "expected: six columns"


def test_the_index_column_of_pandas_is_ignored(tmp_path: Path) -> None:
    file = tmp_path / "law.csv"
    file.write_text(",question,answer\n0,Why?,Because.\n")
    (doc,) = load_custom_benchmark(file).reader.read(file).docs
    assert (doc.question, doc.gold) == ("Why?", "Because.")


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ("question,answer,", "column 3 has no name"),
        ("question,answer,answer", "are named 'answer'"),
    ],
)
def test_columns_without_a_name_of_their_own_are_errors(
    tmp_path: Path, header: str, error: str
) -> None:
    file = tmp_path / "law.csv"
    file.write_text(f"{header}\nWhy?,Because.,x\n")
    with pytest.raises(BenchmarkDataError, match=error):
        load_custom_benchmark(file)
