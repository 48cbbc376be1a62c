"""Cleaning of whole files: kept and removed rows, and that a second run changes nothing."""

import csv
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llmctl.data.cleaner import clean_dataset
from llmctl.data.cleaning.pipeline.chunk import CleanJob
from llmctl.data.cleaning.pipeline.corpus_rules import CleanedDataset
from llmctl.data.cleaning.pipeline.workers import CHUNK_ROWS
from llmctl.data.cleaning.report.outputs import CleanOutputs, write_outputs
from llmctl.data.cleaning.report.report import CleanReport
from llmctl.data.cleaning.report.summarize import build_report, explain_row
from llmctl.data.cleaning.settings import CleanSettings
from llmctl.data.digests import DatasetDigest
from llmctl.data.io.reader import read_examples
from llmctl.data.io.validating_reader import BadRowsError
from llmctl.data.rows.row_errors import RowErrorLog
from llmctl.errors import ConfigError
from llmctl.types import ignore_progress
from tests.data.cleaning.rows import settings


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def load(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def opened(
    source: Path, rules: CleanSettings | None = None, **options: Any
) -> Iterator[CleanedDataset]:
    job = CleanJob(rules or CleanSettings())
    defaults: dict[str, Any] = {"on_error": "skip", "workers": 1, "folder": source.parent}
    with clean_dataset(str(source), job, **defaults | options) as dataset:
        yield dataset


def run(source: Path, out: Path, rules: CleanSettings | None = None, **options: Any) -> CleanReport:
    with opened(source, rules, **options) as dataset:
        report = build_report(dataset, "in", "out", None)
        write_outputs(
            dataset, report, CleanOutputs.beside(out), overwrite=True, progress=ignore_progress
        )
    return report


def essay(random_: random.Random, words: int = 80) -> str:
    return " ".join(f"w{random_.randrange(4000)}x" for _ in range(words))


FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
MIXED: list[dict[str, Any]] = [
    {"instruction": "Say hi", "input": "", "output": "Hi! \r\n", "id": 7, "tags": ["a"]},
    {
        "conversations": [
            {"from": "human", "value": "你好\u200b"},
            {"from": "gpt", "value": "你好！"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "schÃ¶n?"}]},
            {"role": "assistant", "content": "ja"},
        ]
    },
    {"prompt": "2+2=", "completion": " 4"},
    {"text": "plain \ntext"},
    {"prompt": "Which?", "chosen": "A is better.\n", "rejected": "B is \u200bbetter."},
    {
        "tools": [{"type": "function", "function": FUNCTION}],
        "messages": [
            {"role": "user", "content": "Call f "},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c", "content": "raw \u200b output \n"},
            {"role": "assistant", "content": "Done. "},
        ],
    },
]


def test_texts_are_repaired_in_place_in_every_format(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    report = run(save(tmp_path / "in.jsonl", MIXED), out)
    assert (report.after.rows, report.removed, report.unreadable) == (7, 0, 0)
    rows = load(out)
    assert rows[0] == MIXED[0] | {"output": "Hi!"}
    assert rows[1]["conversations"][0]["value"] == "你好"
    assert rows[2]["messages"][0]["content"] == [{"type": "text", "text": "schön?"}]
    assert rows[3] == MIXED[3]
    assert rows[4] == {"text": "plain\ntext"}
    assert rows[5] == {"prompt": "Which?", "chosen": "A is better.", "rejected": "B is better."}
    assert rows[6]["tools"] == MIXED[6]["tools"]
    assert rows[6]["messages"][1:3] == MIXED[6]["messages"][1:3]
    assert rows[6]["messages"][3]["content"] == "Done."


@pytest.mark.parametrize(
    "name", ["out.jsonl", "out.json", "out.csv", "out.parquet", "out.jsonl.gz"]
)
def test_every_file_format_can_be_written_and_cleaned_again(tmp_path: Path, name: str) -> None:
    rows: list[dict[str, Any]] = [
        {"instruction": f"Say {n}", "input": "", "output": f"{n}! \n"} for n in range(5)
    ]
    first = run(save(tmp_path / "in.jsonl", rows), tmp_path / name)
    again = run(tmp_path / name, tmp_path / f"again-{name}")
    assert first.changed == 5
    assert again.is_clean
    assert first.digest_after == again.digest_before == again.digest_after


def test_parquet_columns_outside_json_types_are_preserved(tmp_path: Path) -> None:
    now = datetime(2024, 1, 2, 3, 4, 5, 678901)
    nanoseconds = [now, pa.scalar(1, pa.timestamp("ns")).as_py()]
    columns: dict[str, Any] = {
        "prompt": ["Say 1", "Say 2"],
        "completion": ["1! \n", "2!"],
        "image": [{"bytes": b"\x89PNG\0", "path": "a.png"}, {"bytes": b"", "path": "b.png"}],
        "raw": [b"\xff", None],
        "at": [now] * 2,
        "zoned": [now.replace(tzinfo=UTC)] * 2,
        "summer": pa.array([now, now + timedelta(days=180)], pa.timestamp("us", "Europe/Rome")),
        "fine": pa.array(nanoseconds, pa.timestamp("ns")),
        "day": [now.date(), None],
        "hour": [now.time()] * 2,
        "span": [timedelta(days=400, microseconds=1)] * 2,
        "price": [Decimal("1.10"), Decimal("12.345")],
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "in.parquet")
    run(tmp_path / "in.parquet", tmp_path / "out.parquet")
    out = pq.read_table(tmp_path / "out.parquet")
    assert out["completion"].to_pylist() == ["1!", "2!"]
    for name in table.column_names[2:]:
        assert out[name].to_pylist() == table[name].to_pylist()
        assert out[name].type == table[name].type
    run(tmp_path / "in.parquet", tmp_path / "out.jsonl")
    first = load(tmp_path / "out.jsonl")[0]
    assert first["image"] == {"bytes": "iVBORwA=", "path": "a.png"}
    assert first["at"] == first["fine"] == "2024-01-02T03:04:05.678901"
    assert (first["summer"], first["day"]) == ("2024-01-02T04:04:05.678901+01:00", "2024-01-02")
    run(tmp_path / "in.parquet", tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        cells = next(csv.DictReader(file))
    assert json.loads(cells["image"]) == first["image"]
    assert (cells["raw"], cells["price"]) == ("/w==", "1.100")


def test_removed_rows_are_written_with_line_rule_and_original(tmp_path: Path) -> None:
    long = essay(random.Random(1))
    source = tmp_path / "in.jsonl"
    rows: list[dict[str, Any]] = [
        {"prompt": "Tell", "completion": long, "n": 1},
        {"prompt": "Tell ", "completion": long + " ", "n": 2},
        {"prompt": "Tell", "completion": long + " more", "n": 3},
        {"prompt": "Do", "completion": "TODO"},
    ]
    save(source, rows)
    with source.open("a") as file:
        file.write('{"prompt": "half\n')
    report = run(source, tmp_path / "out.jsonl")
    assert [row["n"] for row in load(tmp_path / "out.jsonl")] == [1]
    removed = load(tmp_path / "out.rejected.jsonl")
    assert [(row["line"], row["rule"]) for row in removed] == [
        (2, "duplicates"), (3, "near-duplicates"), (4, "placeholder"), (5, "unreadable")
    ]  # fmt: skip
    assert removed[0]["original"] == rows[1]
    assert removed[0]["detail"] == "the same as 1"
    assert removed[1]["detail"].endswith("similar to 1")
    assert removed[3]["original"] == '{"prompt": "half'
    saved = json.loads((tmp_path / "out.report.json").read_text())
    assert saved["unreadable"] == 1
    assert saved["after"]["rows"] == 1
    assert report.clusters[0].others == ("2", "3")


@pytest.mark.slow
def test_cleaning_is_idempotent_and_independent_of_the_number_of_processes(
    tmp_path: Path,
) -> None:
    random_ = random.Random(3)
    rows: list[dict[str, Any]] = []
    for n in range(2 * CHUNK_ROWS + 50):
        text = essay(random_) if n % 4 or n == 0 else rows[random_.randrange(n)]["completion"]
        if n % 8 == 0:
            text = text.replace("w1", "v1", 1) + random_.choice([" ", "\u200b", ""])
        rows.append({"prompt": "Go on", "completion": text})
    source = save(tmp_path / "in.jsonl", rows)
    one = run(source, tmp_path / "one.jsonl")
    two = run(source, tmp_path / "two.jsonl", workers=2)
    assert one.removed > 100
    assert one.to_dict() == two.to_dict()
    for ending in (".jsonl", ".rejected.jsonl", ".report.json"):
        files = [(tmp_path / f"{name}{ending}").read_bytes() for name in ("one", "two")]
        assert files[0] == files[1]
    again = run(tmp_path / "one.jsonl", tmp_path / "again.jsonl")
    assert (again.changed, again.removed) == (0, 0)
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


def test_a_chain_of_small_changes_does_not_remove_dissimilar_rows(
    tmp_path: Path,
) -> None:
    words = [f"w{n}" for n in range(100)]
    rows = []
    for step in range(20):
        words[step * 5 : step * 5 + 5] = [f"v{step}-{n}" for n in "abcde"]
        rows.append({"text": " ".join(words)})
    with opened(
        save(tmp_path / "in.jsonl", rows), settings(**{"near-duplicates": {"ignore-numbers": True}})
    ) as dataset:
        kept = dataset.index.is_kept
        earlier = dataset.earlier_rows["near-duplicates"].indices
    assert kept[0]
    assert 1 < kept.sum() < 20
    assert all(kept[earlier[row]] for row in range(20) if not kept[row])


def test_the_explanation_of_a_duplicate_names_the_earlier_row(tmp_path: Path) -> None:
    source = save(tmp_path / "in.jsonl", [{"text": "one text"}, {"text": "one  text\u200b"}])
    with opened(source) as dataset:
        explanation = explain_row(dataset, 2, None)
        with pytest.raises(ConfigError, match="no row is at line 0"):
            explain_row(dataset, 0, None)
        with pytest.raises(ConfigError, match="no row is at line 3"):
            explain_row(dataset, 3, None)
    source.write_text(json.dumps([{"text": "one"}, {"text": "two"}], indent=1))
    with opened(source) as dataset:
        assert explain_row(dataset, 6, None).where == "5"
        with pytest.raises(ConfigError) as failed:
            explain_row(dataset, 8, None)
        assert failed.value.hint == "the last row is at line 7"
    source.write_text(json.dumps([{"text": "one"}, {"text": "two"}]))
    with opened(source) as dataset:
        assert explain_row(dataset, 2, None).where == "row 2"
        with pytest.raises(ConfigError, match="there is no row 3"):
            explain_row(dataset, 3, None)
    assert explanation.removed_by == "duplicates"
    assert {verdict.rule: verdict.says for verdict in explanation.said if verdict.says} == {
        "control-characters": "'\\u200b' -> ''",
        "duplicates": "the same as 1",
    }
    assert explanation.changes == (("one  text\u200b", "one  text"),)


def test_unreadable_rows_are_an_error_unless_skipped(tmp_path: Path) -> None:
    source = save(tmp_path / "in.jsonl", [{"text": "fine"}, {"txet": "not"}])
    with pytest.raises(BadRowsError) as failed, opened(source, on_error="fail"):
        pass
    assert [str(problem).split(":")[1] for problem in failed.value.log.first] == ["2"]
    only_bad = save(tmp_path / "bad.jsonl", [{"txet": "not"}])
    with pytest.raises(BadRowsError) as failed, opened(only_bad):
        pass
    assert "--column" in failed.value.hint


def test_a_failure_while_writing_leaves_no_files(tmp_path: Path) -> None:
    source = save(tmp_path / "in.jsonl", [{"text": "fine"}])
    out = tmp_path / "out.jsonl"

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), opened(source) as dataset:
        write_outputs(
            dataset,
            build_report(dataset, "in", "out", None),
            CleanOutputs.beside(out),
            progress=stop,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_an_existing_file_is_only_overwritten_on_request(tmp_path: Path) -> None:
    outputs = CleanOutputs.beside(tmp_path / "out.v2.jsonl.gz")
    assert outputs.report.name == "out.v2.report.json"
    outputs.check(overwrite=False)
    outputs.report.touch()
    with pytest.raises(ConfigError, match="exists already"):
        outputs.check(overwrite=False)
    outputs.check(overwrite=True)


def test_digests_equal_those_of_training(tmp_path: Path) -> None:
    source = save(tmp_path / "in.jsonl", MIXED)
    report = run(source, tmp_path / "out.jsonl")
    for path, digest in (
        (source, report.digest_before),
        (tmp_path / "out.jsonl", report.digest_after),
    ):
        expected = DatasetDigest()
        for example in read_examples(path, on_row_error=RowErrorLog()):
            expected.add(example)
        assert digest == expected.ref(path).digest


def test_a_missing_column_is_an_error(tmp_path: Path) -> None:
    source = save(tmp_path / "in.jsonl", [{"text": "fine"}])
    job = CleanJob(CleanSettings(), columns={"output": "reply"})
    with pytest.raises(ConfigError, match="'reply'"), clean_dataset(str(source), job):
        pass


TEXT = st.text(alphabet="ab 好\u200b\ufeff\n\r\t`~Ã©1@.<>|\u00a0", max_size=30).map(
    lambda t: f"q{t}"
)


@st.composite
def a_row(draw: st.DrawFn) -> dict[str, Any]:
    ask, say, other = draw(TEXT), draw(TEXT), draw(TEXT)
    return draw(
        st.sampled_from(
            [
                {"instruction": ask, "input": other, "output": say},
                {"prompt": ask, "chosen": say, "rejected": other + "!"},
                {"text": say},
                {"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": say}]},
            ]
        )
    )


@pytest.mark.slow
@given(st.lists(a_row(), min_size=1, max_size=6))
@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_cleaning_is_idempotent_for_any_rows(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    rules = settings(**{"personal-data": "change"})
    source = save(tmp_path / "in.jsonl", [*rows, {"text": "one that is sound"}])
    run(source, tmp_path / "once.jsonl", rules)
    again = run(tmp_path / "once.jsonl", tmp_path / "twice.jsonl", rules)
    assert (again.changed, again.removed, again.unreadable) == (0, 0, 0)
    assert (tmp_path / "once.jsonl").read_bytes() == (tmp_path / "twice.jsonl").read_bytes()
