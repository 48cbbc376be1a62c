"""Report, table and plot of a run."""

import json
from pathlib import Path

from llmctl.bench.plot import draw_report
from llmctl.bench.table import summary_table
from tests.bench.records import level, report


def test_rounds_become_medians_and_sides_a_ratio() -> None:
    first = [level(interval_s) for interval_s in (0.1, 0.3, 0.2)]
    second = [level(interval_s, side=1) for interval_s in (0.4, 0.4, 0.4)]
    (row,) = report(*first, *second).rows()
    assert [metrics.ttft_p50_s for metrics in row.sides] == [0.2, 0.4]
    assert row.ratio is not None
    assert row.ratio.ttft_p50_s == 0.5


def test_an_interrupted_run_has_rows_of_the_measured_levels() -> None:
    (row,) = report(level(0.1), complete=False).rows()
    assert row.sides[1].ttft_p50_s is None


def test_the_table_has_a_line_per_side_and_one_for_the_ratio() -> None:
    columns, lines = summary_table(report(level(0.1), level(0.2, side=1, errors=3)))
    assert [line[2] for line in lines] == ["a", "b", "ratio"]
    assert [line[-1] for line in lines] == ["0", "3", ""]
    ttft = columns.index("ttft\np50")
    assert [line[ttft] for line in lines] == ["100", "200", "0.50x"]
    assert {len(line) for line in lines} == {len(columns)}


def test_the_table_of_one_side_has_no_empty_columns() -> None:
    columns, lines = summary_table(report(level(0.1), sides=1))
    assert len(lines) == 1
    assert not {"side", "in\ncache", "RAM\nMB"} & {*columns}


def test_errors_are_notes() -> None:
    notes = report(level(0.1, errors=2), level(0.2, errors=1), sides=1).notes()
    assert notes == ["a: 3 x the request failed"]


def test_a_side_with_a_reply_has_not_failed() -> None:
    whole = report(level(0.1), level(0.2, side=1))
    assert whole.failed_sides() == []
    assert report(level(0.1)).failed_sides() == []


def test_a_report_is_json_serialisable() -> None:
    data = json.loads(json.dumps(report(level(0.1, errors=2), sides=1).to_dict()))
    assert data["complete"]
    assert data["levels"][0]["errors"] == {"the request failed": 2}
    assert data["settings"]["concurrency"] == [1, 2]
    assert data["machine"]["cpu"] == "a cpu"
    assert data["summary"][0]["sides"][0]["ttft_p50_s"] == 0.1


def test_complete_and_partial_reports_are_drawn(tmp_path: Path) -> None:
    for number, one in enumerate(
        (
            report(level(0.1), level(0.2, side=1), level(0.1, concurrency=2)),
            report(level(0.1), sides=1),
        )
    ):
        picture = tmp_path / f"{number}.png"
        draw_report(one, picture)
        assert picture.read_bytes().startswith(b"\x89PNG")
