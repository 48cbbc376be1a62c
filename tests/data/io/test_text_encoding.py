"""Text files in other encodings than UTF-8, read by `data` and `eval` alike."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest

from llmctl.data.io.reader import read_rows
from llmctl.data.io.text_encoding import open_utf8
from llmctl.evaluation.benchmarks.custom_benchmark import load_custom_benchmark
from llmctl.evaluation.benchmarks.readers import BenchmarkDataError
from tests.cli.process import run_in_process

ROWS = [
    {"question": "天空是什么颜色？", "answer": "晴天的时候是蓝色的，日落时是红色的。"},
    {"question": 'Which, "precisely"; is it?', "answer": "a,b;c\td"},
    {"question": "哪里有老磨坊？", "answer": "在山路的尽头。\n往西走。"},
]
ENCODINGS = [
    *("utf-8", "utf-8-sig", "gb18030", "gbk", "gb2312", "utf-16", "utf-32"),
    *("utf-16-le", "utf-16-be"),  # without a byte order mark
]
FOREIGN = {
    "latin-1": "Où est la clé ? Elle est cachée là-bas, près de l'évier; déjà vu à Zürich, Köln.",
    "latin-1 alone": "Zürich",
    "cp1251": "Где находится старая мельница? В конце тропы, у самого моста.",
    "koi8-r": "Где находится старая мельница? В конце тропы, у самого моста.",
    "euc-kr": "오래된 방앗간은 어디에 있습니까? 길 끝에 있습니다.",
    "cp949": "오래된 방앗간은 어디에 있습니까? 길 끝에 있습니다.",
    "euc-jp": "古い水車小屋はどこにありますか？道の終わりにあります。",
    "shift_jis": "古い水車小屋はどこにありますか？道の終わりにあります。",
    "big5": "舊磨坊在哪裡？在山路的盡頭，往西走就會看到它。",
    "iso-8859-7": "Πού είναι ο παλιός μύλος; Στο τέλος του μονοπατιού.",
}


def text_of(kind: str) -> str:
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    if kind == "json":
        return json.dumps(ROWS, ensure_ascii=False, indent=2)
    text = io.StringIO(newline="")
    separator = {"csv": ",", "semicolon.csv": ";", "tab.csv": "\t", "tsv": "\t"}[kind]
    table = csv.DictWriter(text, ("question", "answer"), delimiter=separator)
    table.writeheader()
    table.writerows(ROWS)
    return text.getvalue()


KINDS = ["jsonl", "json", "csv", "semicolon.csv", "tab.csv", "tsv"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_read_in_every_encoding_by_data_and_eval(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, encoding: str
) -> None:
    file = tmp_path / f"rows.{kind}"
    file.write_bytes(text_of(kind).encode(encoding))
    assert [row.value for row in read_rows(file)] == ROWS
    assert [json.loads(row.raw) == row.value for row in read_rows(file) if kind == "jsonl"] in (
        [True] * 3,
        [],
    )
    docs = load_custom_benchmark(file).reader.read(file).docs
    assert [(doc.question, doc.gold) for doc in docs] == [tuple(row.values()) for row in ROWS]
    messages = [record.getMessage() for record in caplog.records]
    if encoding.startswith("utf-8"):
        assert messages == []
    else:
        (message,) = messages  # said once, though the file was read three times
        taken = message.removeprefix(f"{file} is not UTF-8; it is read as ")
        assert taken in {"GB18030", "UTF-16-LE", "UTF-16-BE", "UTF-32-LE"}
        assert (taken == "GB18030") is encoding.startswith("gb")


def test_compressed_text_is_read_in_other_encodings(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(text_of("jsonl").encode("gbk")))
    assert [row.value for row in read_rows(file)] == ROWS


def test_the_command_converts_a_spreadsheet_and_names_its_encoding(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    file.write_bytes(text_of("semicolon.csv").encode("gb18030"))
    done = run_in_process("data", "convert", str(file), "-o", str(out), "--to", "messages")
    assert done.returncode == 0, done.stderr
    assert f"{file} is not UTF-8; it is read as GB18030" in caplog.messages
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [row["messages"][0]["content"] for row in rows] == [row["question"] for row in ROWS]


@pytest.mark.parametrize("encoding", FOREIGN)
def test_text_in_other_legacy_encodings_is_refused_rather_than_read_as_chinese(
    tmp_path: Path, encoding: str
) -> None:
    text = json.dumps({"question": FOREIGN[encoding], "answer": "x"}, ensure_ascii=False)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(text.encode(encoding.split()[0]))
    (row,) = read_rows(file)
    assert [error.kind for error in row.errors] == ["utf8"]
    with pytest.raises(BenchmarkDataError, match=r"rows\.jsonl:1:.* is not valid UTF-8"):
        load_custom_benchmark(file)


def test_a_broken_row_of_a_utf8_file_is_one_error(tmp_path: Path) -> None:
    lines = text_of("jsonl").encode().splitlines(keepends=True)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines[0] + '{"question": "Köln"}\n'.encode("latin-1") + lines[1] + lines[2])
    rows = list(read_rows(file))
    assert [bool(row.errors) for row in rows] == [False, True, False, False]
    assert [row.value for row in rows if not row.errors] == ROWS


@pytest.mark.parametrize(("encoding", "broken"), [("gb18030", b"\xff"), ("utf-16-le", b"\x00\xd8")])
def test_a_broken_row_in_another_encoding_is_one_error(
    tmp_path: Path, encoding: str, broken: bytes
) -> None:
    head, tail = text_of("jsonl").split("a,b;", 1)
    file = tmp_path / "rows.jsonl"
    file.write_bytes(head.encode(encoding) + broken + tail.encode(encoding))
    rows = list(read_rows(file))
    assert [[str(error) for error in row.errors] for row in rows] == [
        [],
        [f"{file}:2:column 57: bytes that are no text (save the file as UTF-8)"],
        [],
    ]


def test_chinese_text_after_megabytes_of_ascii_is_found() -> None:
    ascii_row = json.dumps({"question": "a" * 1000, "answer": "b"}) + "\n"
    text = ascii_row * 3000 + text_of("jsonl")
    assert open_utf8(io.BytesIO(text.encode("gbk")), "late").read().decode() == text


@pytest.mark.parametrize("size", [1, 2, 3, 7, 4096])
def test_the_text_does_not_depend_on_the_sizes_of_reads(size: int) -> None:
    class Slow(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or limit, limit))

    limit = size
    for encoding in ENCODINGS:
        content = Slow(text_of("csv").encode(encoding))
        assert open_utf8(content, "slow").read().decode() == text_of("csv")


def test_null_bytes_that_are_no_utf16_are_an_error(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(text_of("jsonl").encode("utf-32-le"))
    (row,) = read_rows(file)
    assert "null bytes" in str(row.errors[0])


def test_a_table_without_a_header_is_a_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("What is 2+2?,4\nWhat is 3+3?,6\n")
    done = run_in_process("data", "check", str(file))
    assert done.returncode == 1
    assert "no known format has the columns What is 2+2?, 4" in done.stdout + done.stderr
    assert "in the first row of the file" in done.stdout + done.stderr
    with pytest.raises(BenchmarkDataError, match=r"rows\.csv:1: the first row names no column"):
        load_custom_benchmark(file)
