"""What waits on the disk is what was put there, whatever a crash cut off."""

import math
from pathlib import Path

import pytest

from llmctl.monitor.write.events import (
    Data,
    File,
    Made,
    Param,
    Point,
    Row,
    Status,
    Tag,
    Traced,
    Used,
    decode,
    encode,
)
from llmctl.monitor.write.spool import Spool, orphaned_spools
from llmctl.types import DatasetRef, RequestTrace, RunStart

ROWS: list[Row] = [
    Point("loss", math.inf, 3, 1_800_000_000_000, "m-1"),
    Param("名字", "第一行\n第二行"),
    Tag("note", "\u2028"),
    File("/somewhere/a b.txt", "folder"),
    Data(DatasetRef("d", "/d.jsonl", "ab", 1), "training"),
    Made("key", "adapter", "/adapter", {"base": "tiny"}),
    Used("m-1"),
    Traced("0" * 32, RequestTrace("r", 1.0, 2.0, prompt=[{"role": "user", "content": "你好"}])),
    Status("killed", 5),
]
URI = "http://tracking.example:5000"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
def test_a_row_comes_back_as_it_was(row: Row) -> None:
    line = encode(row)
    assert "\n" not in line
    assert decode(line) == row


@pytest.mark.parametrize("line", ["", "{}", '["Other", {}]', '["Point", {"key": "x"}]', "[1"])
def test_what_is_no_row_is_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        decode(line)


def test_half_a_line_costs_that_row_only(home: Path) -> None:
    assert home.is_dir()
    spool = Spool.create(URI, RunStart("eval", "tiny", parent_run_id="p"), "a name", 17)
    spool.append(ROWS)
    spool.know_run("r" * 32)
    with spool.file.open("a") as file:
        file.write(encode(ROWS[0])[:20])
    waiting = spool.read()
    assert waiting.rows == tuple(ROWS)
    assert (waiting.run_id, waiting.name, waiting.started_ms) == ("r" * 32, "a name", 17)
    assert waiting.start == RunStart("eval", "tiny", parent_run_id="p")
    spool.replace(None, ROWS[:1])
    assert (spool.read().run_id, spool.read().rows) == (None, tuple(ROWS[:1]))


def test_only_what_nobody_writes_any_more_is_for_others_and_for_the_same_store(home: Path) -> None:
    assert home.is_dir()
    ours = Spool.create(URI, RunStart("eval"), "a", 1)
    other = Spool.create("http://user:secret@other.example", RunStart("eval"), "b", 1)
    assert orphaned_spools(URI) == []
    ours.abandon()
    other.abandon()
    assert [spool.file for spool in orphaned_spools(URI)] == [ours.file]
    assert all("secret" not in file.read_text() for file in ours.file.parent.iterdir())
    ours.remove()
    assert orphaned_spools(URI) == []
