import json
from pathlib import Path

from llmctl.bench.plot import draw_report
from llmctl.bench.table import summary_table
from tests.bench.records import level, report


def test_rounds_become_medians_and_sides_a_ratio() -> None:
    ours = [level(pace_s) for pace_s in (0.1, 0.3, 0.2)]
    theirs = [level(pace_s, side=1) for pace_s in (0.4, 0.4, 0.4)]
    (row,) = report(*ours, *theirs).rows()
    assert [figures.ttft_p50_s for figures in row.sides] == [0.2, 0.4]
    assert row.ratio is not None
    assert row.ratio.ttft_p50_s == 0.5


def test_an_interrupted_run_shows_what_it_has() -> None:
    (row,) = report(level(0.1), complete=False).rows()
    assert row.sides[1].ttft_p50_s is None


def test_the_table_has_a_line_per_side_and_one_for_the_ratio() -> None:
    columns, lines = summary_table(report(level(0.1), level(0.2, side=1, errors=3)))
    assert [line[2] for line in lines] == ["a", "b", "ratio"]
    assert [line[-1] for line in lines] == ["0", "3", ""]
    ttft = columns.index("ttft\np50")
    assert [line[ttft] for line in lines] == ["100", "200", "0.50x"]
    assert {len(line) for line in lines} == {len(columns)}


def test_the_table_of_one_side_leaves_out_what_nobody_has() -> None:
    columns, lines = summary_table(report(level(0.1), sides=1))
    assert len(lines) == 1
    assert not {"side", "in\ncache", "RAM\nMB"} & {*columns}


def test_errors_and_short_replies_are_told_in_words() -> None:
    notes = report(level(0.1, errors=2), level(0.2, errors=1), sides=1).notes()
    assert notes == ["a: 3 x it broke"]


def test_only_a_side_that_never_answered_is_silent() -> None:
    whole = report(level(0.1), level(0.2, side=1))
    assert whole.silent_sides() == []
    assert report(level(0.1)).silent_sides() == []


def test_a_report_is_json() -> None:
    plain = json.loads(json.dumps(report(level(0.1, errors=2), sides=1).plain()))
    assert plain["complete"]
    assert plain["levels"][0]["errors"] == {"it broke": 2}
    assert plain["settings"]["concurrency"] == [1, 2]
    assert plain["machine"]["cpu"] == "a cpu"
    assert plain["summary"][0]["sides"][0]["ttft_p50_s"] == 0.1


def test_a_report_can_be_drawn_whole_or_in_part(tmp_path: Path) -> None:
    for number, some in enumerate(
        (
            report(level(0.1), level(0.2, side=1), level(0.1, concurrency=2)),
            report(level(0.1), sides=1),
        )
    ):
        picture = tmp_path / f"{number}.png"
        draw_report(some, picture)
        assert picture.read_bytes().startswith(b"\x89PNG")
