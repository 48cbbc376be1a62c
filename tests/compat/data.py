"""Table of data files: rows read by `data` and `eval`, by pandas and by `datasets`.

Run `python -m tests.compat.data`; it takes about a minute.
"""

import csv
import gzip
import io
import json
import logging
import re
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets

from llmctl.data.io.reader import read_examples, read_rows
from llmctl.errors import LlmctlError
from llmctl.evaluation.benchmarks.custom_benchmark import load_custom_benchmark
from tests.compat.table import write_table

Row = dict[str, Any]
pandas: Any = import_module("pandas")  # it has no types

ROWS: list[Row] = [
    {"question": "天空是什么颜色？", "answer": "晴天的时候是蓝色的，日落时是红色的。"},
    {"question": 'Which, "precisely"; is it?', "answer": "a,b;c\td"},
    {"question": "Six times seven?", "answer": "42"},
    {"question": "What is stored?", "answer": "null"},
    {"question": "哪里有老磨坊？", "answer": "在山路的尽头。\n往西走。"},
]
LATIN: list[Row] = [{"question": "Où est Zürich?", "answer": "là-bas"}]
CALL = {
    "id": "a",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CONVERSATIONS: dict[str, tuple[list[Row], object]] = {
    "conversations with `weight`": (
        [
            {
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Hello", "weight": 0},
                    {"role": "user", "content": "Bye"},
                    {"role": "assistant", "content": "See you", "weight": 1},
                ]
            },
            {
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Hello"},
                ]
            },
        ],
        [(1,), ()],
    ),
    "conversations with tool calls": (
        [
            {
                "messages": [
                    {"role": "user", "content": "Oslo?"},
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "content": "It rains.", "tool_call_id": "a"},
                    {"role": "assistant", "content": "It rains."},
                ],
                "tools": [TOOL],
            },
            {
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "42"},
                ]
            },
        ],
        [(), ()],
    ),
    "ShareGPT conversations": (
        [
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "gpt", "value": "42"},
                ]
            }
        ],
        [()],
    ),
    "preference pairs": ([{"prompt": "Hi", "chosen": "Hello", "rejected": "42"}], [()]),
}
"""Rows, and the masked turns of each."""


def json_lines(rows: list[Row] = ROWS) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def table(separator: str = ",", end: str = "\r\n", rows: list[Row] = ROWS) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def of_datasets(write: str, **options: Any) -> Callable[[Path], None]:
    """Return a function that writes `ROWS` with `datasets`."""

    def save(file: Path) -> None:
        getattr(datasets.Dataset.from_list(ROWS), write)(str(file), **options)

    return save


def pandas_parquet(file: Path) -> None:
    pandas.DataFrame(ROWS).to_parquet(file)


FILES: dict[str, tuple[str, bytes | Callable[[Path], None]]] = {
    "CSV, UTF-8": ("csv", table().encode()),
    "CSV, UTF-8 with a byte order mark": ("csv", table().encode("utf-8-sig")),
    "CSV, `;`": ("csv", table(";").encode()),
    "CSV, tab": ("csv", table("\t").encode()),
    "CSV, `;`, GB18030": ("csv", table(";").encode("gb18030")),
    "CSV, GBK": ("csv", table().encode("gbk")),
    "CSV, tab, UTF-16 (Excel's Unicode text)": ("csv", table("\t").encode("utf-16")),
    "CSV, UTF-16 without a byte order mark": ("csv", table().encode("utf-16-le")),
    "CSV, index of pandas": (
        "csv",
        table(rows=[{"": str(i)} | row for i, row in enumerate(ROWS)]).encode(),
    ),
    "JSON lines, UTF-8": ("jsonl", json_lines().encode()),
    "JSON lines, byte order mark, Windows line ends": (
        "jsonl",
        json_lines().replace("\n", "\r\n").encode("utf-8-sig"),
    ),
    "JSON lines, GB18030": ("jsonl", json_lines().encode("gb18030")),
    "JSON lines, UTF-16": ("jsonl", json_lines().encode("utf-16")),
    "JSON array": ("json", json.dumps(ROWS, ensure_ascii=False).encode()),
    "JSON array, indented": ("json", json.dumps(ROWS, ensure_ascii=False, indent=2).encode()),
    "JSON objects, indented": (
        "json",
        "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    ),
    "JSON lines of `datasets`": ("jsonl", of_datasets("to_json", force_ascii=False)),
    "CSV of `datasets`": ("csv", of_datasets("to_csv", index=False)),
    "Parquet of `datasets`": ("parquet", of_datasets("to_parquet")),
    "Parquet of pandas": ("parquet", pandas_parquet),
    "JSON lines, gzip": ("jsonl.gz", gzip.compress(json_lines().encode())),
    "JSON lines, Latin-1": ("jsonl", json_lines(LATIN).encode("latin-1")),
    "CSV, Latin-1": ("csv", table(rows=LATIN).encode("latin-1")),
    "CSV without names of columns": ("csv", table().partition("\r\n")[2].encode()),
    "CSV, an open quote": ("csv", table().encode() + b'"Why?,"because\r\n'),
    "JSON lines, cut off": ("jsonl", json_lines().encode()[:-9]),
    "JSON lines, a key twice": (
        "jsonl",
        json_lines().encode() + b'{"question": "a", "answer": "b", "answer": "c"}\n',
    ),
    "JSON lines, NaN": ("jsonl", json_lines().encode() + b'{"question": "a", "answer": NaN}\n'),
    "gzip, cut off": ("jsonl.gz", gzip.compress(json_lines().encode())[:-20]),
}


class _BadRowError(LlmctlError):
    """A row cannot be read."""


def by_data(file: Path) -> list[Row]:
    rows = []
    for row in read_rows(file):
        if row.errors:
            raise _BadRowError(str(row.errors[0]))
        rows.append({name: row.value.get(name) for name in ("question", "answer")})
    errors: list[object] = []
    list(read_examples(file, on_row_error=errors.append))
    if errors:
        raise _BadRowError(str(errors[0]))
    return rows


def by_eval(file: Path) -> list[Row]:
    docs = load_custom_benchmark(file).reader.read(file).docs
    return [{"question": doc.question, "answer": doc.gold} for doc in docs]


def by_pandas(file: Path) -> list[Row]:
    read: Any = {".csv": pandas.read_csv, ".parquet": pandas.read_parquet}.get(file.suffix)
    if read is None:
        found: Any = pandas.read_json(file, lines=".jsonl" in file.name)
    else:
        found = read(file)
    rows: list[Row] = found[["question", "answer"]].to_dict("records")
    return rows


def by_datasets(file: Path) -> list[Row]:
    kind = {"jsonl": "json", "gz": "json"}.get(file.suffix[1:], file.suffix[1:])
    with tempfile.TemporaryDirectory() as cache:
        loaded = datasets.load_dataset(kind, data_files=str(file), split="train", cache_dir=cache)
        rows: list[Row] = loaded.to_list()
    return [{name: row[name] for name in ("question", "answer")} for row in rows]


def outcome(read: Callable[[Path], list[Row]], file: Path) -> str:
    """Return `right`, or the error, or that the rows are others."""
    try:
        rows = read(file)
    except LlmctlError as error:
        message = re.sub(r"\S*/(rows\.\S*)", r"\1", str(error).splitlines()[0])
        return "refused: " + message.replace("|", "or")[:110]
    except Exception as error:  # other libraries may raise anything
        return type(error).__name__
    return "right" if rows in (ROWS, LATIN) else "other rows, no error"


def conversations(kind: str, folder: Path) -> list[str]:
    """Return the table's row of a file of conversations, written by `json` and by `datasets`."""
    rows, masked = CONVERSATIONS[kind]
    own, written = folder / "own.jsonl", folder / "written.jsonl"
    own.write_text(json_lines(rows))
    datasets.Dataset.from_list(rows).to_json(str(written))
    results = []
    expected = None
    for file in (own, written):
        errors: list[object] = []
        found = list(read_examples(file, on_row_error=errors.append))
        values = [
            ([(m.role, m.content, m.tool_calls) for m in e.messages], e.masked, len(e.tools))
            for e in found
        ]
        expected = values if file is own else expected
        right = not errors and [e.masked for e in found] == masked and values == expected
        results.append("right" if right else f"**{errors or values}**")
    loaded = [json.loads(line) for line in written.read_text().splitlines()]
    plain = "right" if loaded == rows else "nulls for absent fields"
    return [kind, f"{results[0]}; written by `datasets`: {results[1]}", "", "", plain]


def main() -> None:
    """Read every file with every reader."""
    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    rows = []
    for kind, (suffix, content) in FILES.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"rows.{suffix}"
            if callable(content):
                content(file)
            else:
                file.write_bytes(content)
            readers = [by_data, by_eval, by_pandas, by_datasets]
            found = [outcome(read, file) for read in readers]
            if suffix in ("parquet", "jsonl.gz"):
                found[1] = "not a benchmark file"
        rows.append([kind, *found])
        print(rows[-1], flush=True)
    for kind in CONVERSATIONS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(conversations(kind, Path(folder)))
        print(rows[-1], flush=True)
    header = ["file", "`data`, `finetune`", "`eval`", "pandas", "`datasets`"]
    write_table("data", header, rows, ["pandas", "datasets", "pyarrow"])


if __name__ == "__main__":
    main()
