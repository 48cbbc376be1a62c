"""Benchmark files as spreadsheets save them."""

from pathlib import Path

import pytest

from llmctl.evaluation.benchmarks.readers import BenchmarkDataError, decode, read_ceval_csv

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
    docs = list(read_ceval_csv(file, decode(file, content(separator, encoding))))
    assert [doc.question for doc in docs] == [row[1] for row in ROWS[1:]]
    assert [doc.options for doc in docs] == [row[2:6] for row in ROWS[1:]]


def test_text_in_another_encoding_is_refused() -> None:
    with pytest.raises(BenchmarkDataError, match=r"law\.csv.*utf-8") as caught:
        decode(Path("law.csv"), "question,é\n".encode("latin-1"))
    assert "UTF-8" in str(caught.value.hint)
