"""Reading of files of every kind, compressed or not, of folders and of hub datasets."""

import gzip
import io
import json
import shutil
import subprocess
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmctl.data.io.json_stream import JsonStream
from llmctl.data.io.reader import read_examples, read_rows
from llmctl.data.io.sources import skipped_files
from llmctl.data.io.writer import RowWriter
from llmctl.data.rows.row_errors import DataError, RowErrorLog
from llmctl.errors import ConfigError
from llmctl.types import Progress

ROWS = [
    {"prompt": "Where does the path end?", "completion": "At the old mill.\nNot before."},
    {"prompt": "这条路通向哪里？", "completion": "通向“老磨坊”\\旁边。"},
    {"prompt": 'Is "left" right?', "completion": "No, [left] is {left}."},
]
SAMPLES = Path(__file__).parents[1] / "samples"


def read_prompts(source: str | Path | Sequence[Path]) -> list[str]:
    log = RowErrorLog()
    found = [e.messages[0].content for e in read_examples(source, on_row_error=log)]
    assert log.first == []
    return found


PROMPTS = [row["prompt"] for row in ROWS]


KINDS = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "jsonl.gz", "json.gz", "csv.gz"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_written_to_any_kind_of_file_are_read_back(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    with RowWriter(path) as writer:
        for row in ROWS:
            writer.write(row)
    assert [row.value for row in read_rows(path)] == ROWS
    assert read_prompts(path) == PROMPTS


@pytest.mark.parametrize("indent", [None, 0, 4])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_array_is_read_with_any_indentation(
    tmp_path: Path, indent: int | None, ascii_only: bool
) -> None:
    path = tmp_path / "rows.json"
    text = json.dumps(ROWS, indent=indent, ensure_ascii=ascii_only)
    path.write_text(text, encoding="utf-8")
    rows = list(read_rows(path))
    assert [row.value for row in rows] == ROWS
    starts = [line for line, content in enumerate(text.split("\n"), 1) if '"prompt"' in content]
    offset = 0 if indent is None else 1  # the brace is on the line above
    assert [row.origin.line + offset for row in rows] == (starts if indent is not None else [1] * 3)


def test_concatenated_indented_objects_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    assert read_prompts(path) == PROMPTS


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_byte_order_marks_and_windows_line_ends_change_nothing(
    tmp_path: Path, name: str, mark: str, end: str
) -> None:
    with RowWriter(tmp_path / name) as writer:
        for row in ROWS[1:]:
            writer.write(row)
    text = mark + (tmp_path / name).read_text(encoding="utf-8").replace("\n", end)
    (tmp_path / name).write_bytes(text.encode())
    assert read_prompts(tmp_path / name) == PROMPTS[1:]


def test_the_kind_of_a_file_without_a_suffix_is_detected_from_its_content(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text(json.dumps(ROWS[0]))
    assert read_prompts(path) == PROMPTS[:1]
    path.write_text("just some words")
    with pytest.raises(ConfigError, match="is of unknown kind"):
        read_prompts(path)


def test_a_header_may_have_spaces_and_an_unnamed_index_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(',prompt, completion ,"note"\n0,a, b,c\n')
    (row,) = read_rows(path)
    assert row.value == {"Unnamed: 0": "0", "prompt": "a", "completion": " b", "note": "c"}
    assert read_prompts(path) == ["a"]


def test_all_data_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text(json.dumps(ROWS[1]))
    (tmp_path / "a.json").write_text(json.dumps(ROWS[:1]))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.csv").write_text("prompt,completion\n" + "x,y\n")
    clean_outputs = ("out.rejected.jsonl", "out.report.json")
    for name in ("README.md", "LICENSE", "dataset_info.json", ".hidden.jsonl", *clean_outputs):
        (tmp_path / name).write_text("{}")
    assert read_prompts(tmp_path) == [*PROMPTS[:2], "x"]
    assert [Path(name).name for name in skipped_files(tmp_path)] == [
        "LICENSE",
        "README.md",
        "dataset_info.json",
        *clean_outputs,
    ]
    assert read_prompts([tmp_path / "b.jsonl", tmp_path / "a.json"]) == [PROMPTS[1], PROMPTS[0]]


def test_a_folder_without_data_files_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("all yours")
    with pytest.raises(DataError, match="has no data files"):
        read_prompts(tmp_path)


def test_a_missing_file_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(ConfigError) as caught:
        read_prompts(tmp_path / "trian.jsonl")
    assert caught.value.hint == f"did you mean {tmp_path / 'train.jsonl'}?"


def test_progress_is_the_share_of_the_file_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(
        gzip.compress("".join(json.dumps({"text": str(n)}) + "\n" for n in range(30_000)).encode())
    )
    reports: list[Progress] = []
    assert sum(1 for _ in read_rows(path, reports.append)) == 30_000
    size = path.stat().st_size
    done = [report.done or 0 for report in reports]
    assert {report.total for report in reports} == {size}
    assert done == sorted(done)
    assert size / 2 < done[-1] <= size


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv"])
def test_every_row_before_the_end_of_truncated_gzip_is_read(tmp_path: Path, kind: str) -> None:
    rows = [{"prompt": f"What is {n * 7919 % 5000}?", "completion": str(n)} for n in range(5000)]
    path = tmp_path / f"rows.{kind}.gz"
    with RowWriter(path) as writer:
        for row in rows:
            writer.write(row)
    compressed = path.read_bytes()
    path.write_bytes(compressed[: len(compressed) // 2])
    readable = zlib.decompressobj(31).decompress(path.read_bytes()).count(b"\n")
    *read, last = read_rows(path)
    assert [row.value for row in read] == rows[: len(read)]
    assert readable - 2 <= len(read) <= readable
    (error,) = last.errors
    assert (error.kind, error.origin.line - read[-1].origin.line) == ("gzip", 1)


class SlowStream(io.BytesIO):
    """A stream that returns a few bytes at a time, as a pipe may."""

    def __init__(self, content: bytes, step: int) -> None:
        super().__init__(content)
        self._step = step

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(min(self._step, len(self.getbuffer()) if size in (None, -1) else size))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    rows=st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=4),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    step=st.integers(1, 40),
)
def test_an_array_read_in_small_chunks_is_the_array(
    rows: list[dict[str, object]], indent: int | None, ascii_only: bool, step: int
) -> None:
    content = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode(errors="replace")
    elements = list(JsonStream(SlowStream(content, step)).elements())
    assert [element.errors for element in elements] == [()] * len(rows)
    assert [element.value for element in elements] == json.loads(content)
    lines = content.split(b"\n")
    for element in elements:
        assert element.raw.split(b"\n")[0] in lines[element.line - 1]


@given(content=st.binary(max_size=60) | st.text('[]{}",:\\ \n1a', max_size=60).map(str.encode))
def test_the_array_reader_accepts_any_bytes(content: bytes) -> None:
    for element in JsonStream(io.BytesIO(b"[" + content)).elements():
        assert element.errors or element.raw


def read_hub(home: Path, *names: str) -> list[str]:
    """Read datasets in a process of their own, since the library reads its environment once."""
    code = (
        "import sys\n"
        "from llmctl.data.io.reader import read_examples\n"
        "from llmctl.errors import LlmctlError\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n"
        "        for e in read_examples(name, on_row_error=print):\n"
        "            print(e.origin.line, e.messages[-1].content.split()[0])\n"
        "    except LlmctlError as error:\n"
        "        print(f'{error}|{error.hint}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=True,
        env={"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin"},
    )
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_hub_dataset_is_read_from_the_cache_or_is_an_error(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "hub" / "datasets--anna--letters"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    shutil.copy(SAMPLES / "prompt-completion.csv", snapshot / "train.csv")
    (snapshot / "test.csv").write_text("prompt,completion\na,\n")
    names = ("anna/letters", "anna/letters:test", "anna/letters:tset", "anna/nowhere")
    *rows, test, tset, nowhere = read_hub(tmp_path, *names)
    assert rows == ["1 Tepid.", "2 Rhine", "3 因为阳光斜射时穿过更厚的大气，蓝光被散射掉了。"]
    assert test.startswith("anna/letters:test:1:completion: missing; the row has prompt")
    assert tset == "the dataset anna/letters has no split 'tset'|one of: train, test"
    assert nowhere.startswith("no file anna/nowhere, and no dataset anna/nowhere in")
    assert "HF_HUB_OFFLINE" in nowhere
