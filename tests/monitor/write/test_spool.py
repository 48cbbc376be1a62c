"""Spools hold all events, also after a truncated write."""

import math
from pathlib import Path

import pytest

from llmctl.monitor.write.events import (
    DatasetEvent,
    Event,
    FileEvent,
    IdFileEvent,
    MetricEvent,
    ModelInputEvent,
    ModelOutputEvent,
    ParamEvent,
    StatusEvent,
    TagEvent,
    TraceEvent,
    decode,
    encode,
)
from llmctl.monitor.write.spool import Spool, orphaned_spools
from llmctl.types import DatasetRef, RequestTrace, RunStart

EVENTS: list[Event] = [
    MetricEvent("loss", math.inf, 3, 1_800_000_000_000, "m-1"),
    ParamEvent("名字", "第一行\n第二行"),
    TagEvent("note", "\u2028"),
    FileEvent("/somewhere/a b.txt", "folder"),
    DatasetEvent(DatasetRef("d", "/d.jsonl", "ab", 1), "training"),
    ModelOutputEvent("key", "adapter", "/adapter", {"base": "tiny"}),
    ModelInputEvent("m-1"),
    TraceEvent("0" * 32, RequestTrace("r", 1.0, 2.0, prompt=[{"role": "user", "content": "你好"}])),
    StatusEvent("killed", 5),
    IdFileEvent("/caf\udce9/llmctl.json"),
]
URI = "http://tracking.example:5000"


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_encoded_event_is_decoded_unchanged(event: Event) -> None:
    line = encode(event)
    assert "\n" not in line
    assert decode(line) == event


@pytest.mark.parametrize("line", ["", "{}", '["Other", {}]', '["Point", {"key": "x"}]', "[1"])
def test_other_lines_are_rejected(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the text is of json
        decode(line)


def test_a_truncated_line_loses_only_its_event(home: Path) -> None:
    assert home.is_dir()
    spool = Spool.create(URI, RunStart("eval", "tiny", parent_run_id="p"), "a name", 17)
    spool.append(EVENTS)
    spool.set_run_id("r" * 32)
    with spool.file.open("a") as file:
        file.write(encode(EVENTS[0])[:20])
    contents = spool.read()
    assert contents.events == tuple(EVENTS)
    assert (contents.run_id, contents.name, contents.started_ms) == ("r" * 32, "a name", 17)
    assert contents.start == RunStart("eval", "tiny", parent_run_id="p")
    spool.replace(None, EVENTS[:1])
    assert (spool.read().run_id, spool.read().events) == (None, tuple(EVENTS[:1]))


def test_orphaned_spools_belong_to_dead_writers_of_the_same_store(home: Path) -> None:
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
