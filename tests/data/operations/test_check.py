"""The check report: counts, lengths, duplicates, leakage."""

import json
from pathlib import Path

import pytest

from llmctl.data.io.validating_reader import ReadOptions
from llmctl.data.operations.check import CheckReport, Percentiles, TargetModel, check_rows
from llmctl.engine.chat.template import ChatTemplate
from llmctl.types import SourceLocation
from tests.tiny import byte_tokenizer

SAMPLES = Path(__file__).parents[1] / "samples"
TEMPLATE = ChatTemplate.of(byte_tokenizer())


def write(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def pair(prompt: str, completion: str, **more: object) -> dict[str, object]:
    return {"prompt": prompt, "completion": completion, **more}


def report_on(
    *files: str, eval_files: tuple[str, ...] = (), model: TargetModel | None = None
) -> CheckReport:
    return check_rows(files, eval_source=eval_files or None, options=ReadOptions(), model=model)


def lines(clusters: tuple[tuple[SourceLocation, ...], ...]) -> list[list[int]]:
    return [[origin.line for origin in cluster] for cluster in clusters]


def test_a_folder_of_all_formats_is_counted() -> None:
    report = report_on(str(SAMPLES))
    assert report.sound
    assert report.rows == report.whole_rows == 26
    assert report.formats == {
        "preference": 6,
        "prompt-completion": 6,
        "text": 5,
        "messages": 4,
        "alpaca": 3,
        "sharegpt": 2,
    }
    assert report.unused == {"sharegpt": ("id",), "prompt-completion": ("source",)}
    assert report.turns == Percentiles(1, 2, 3)
    assert (report.with_system, report.with_tools) == (4, 2)
    assert report.languages["zh"] == 9
    assert 0.1 < report.cjk_share < 0.3
    assert report.tokens is None


def test_duplicate_and_contradicting_rows_are_reported_by_line(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        pair("Is it far?", "No."),
        pair("Is it late?", "Yes."),
        pair("Is it far?", "No.", id=7),
        pair("is it  LATE?", "Not at all."),
        pair("Is it far?", "No."),
        {"text": "Is it far?"},
    )
    report = report_on(file)
    assert report.sound
    assert (report.duplicates.rows, lines(report.duplicates.largest)) == (2, [[1, 3, 5]])
    assert (report.contradictions.rows, lines(report.contradictions.largest)) == (2, [[2, 4]])


def test_pairs_and_rows_with_other_tools_are_not_contradictions(tmp_path: Path) -> None:
    ask = {"role": "user", "content": "Is it raining?"}
    tools = [{"type": "function", "function": {"name": "weather"}}]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "weather"}}]}
    file = write(
        tmp_path / "a.jsonl",
        {"messages": [ask, {"role": "assistant", "content": "I cannot see that."}]},
        {"messages": [ask, call], "tools": tools},
        {"prompt": "Is it raining?", "chosen": "Let me look.", "rejected": "Yes."},
        {"prompt": "Is it raining?", "chosen": "I shall look.", "rejected": "No."},
    )
    assert report_on(file).contradictions.rows == 0


def test_an_eval_row_whose_prompt_is_in_train_is_a_leak(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", pair("one", "1"), pair("two", "2"), pair("three", "3"))
    held = write(tmp_path / "b.jsonl", pair("four", "4"), pair(" Two", "zwei"), pair("five", "5"))
    report = report_on(train, eval_files=(held,))
    assert report.eval_rows == 3
    assert report.leaks is not None
    assert report.leaks.rows == 1
    assert report.leaks.largest == ((SourceLocation(held, 2), SourceLocation(train, 2)),)
    assert not report.sound
    assert report_on(train, eval_files=(write(tmp_path / "c.jsonl", pair("six", "6")),)).sound


def test_errors_of_train_and_eval_are_reported(tmp_path: Path) -> None:
    train = write(tmp_path / "a.jsonl", pair("one", ""), pair("two", "2"))
    held = write(tmp_path / "b.jsonl", pair("", "4"))
    report = report_on(train, eval_files=(held,))
    assert not report.sound
    assert (report.rows, report.whole_rows) == (2, 1)
    assert report.problem_kinds == {"empty": 2}
    assert [error.origin.file for error in report.problems] == [train, held]


def test_a_file_without_valid_rows_has_a_report(tmp_path: Path) -> None:
    report = report_on(write(tmp_path / "a.jsonl", {"nothing": 1}))
    assert (report.rows, report.whole_rows, report.turns) == (1, 0, None)
    assert report.duplicates.rows == 0
    assert report.contradictions.rows == 0


def length(*texts: str) -> int:
    """Return the tokens of a row: one per byte, plus those of the tiny model's template."""
    turns = [f"<|im_start|>{role}\n<|im_end|>\n" for role in ("user", "assistant")]
    rendered = "".join(turns[i % 2] for i in range(len(texts)))
    controls = rendered.count("<|im_start|>") + rendered.count("<|im_end|>")
    plain = rendered.replace("<|im_start|>", "").replace("<|im_end|>", "")
    return controls + len(plain) + sum(len(text.encode()) for text in texts)


def test_lengths_are_in_tokens_of_the_models_tokenizer_and_template(tmp_path: Path) -> None:
    rows = [("a" * n, "你" * n) for n in range(1, 21)]
    file = write(tmp_path / "a.jsonl", *(pair(*row) for row in rows))
    tokens = report_on(file, model=TargetModel("tiny", TEMPLATE, None)).tokens
    assert tokens is not None
    lengths = [length(*row) for row in rows]
    assert tokens.per_row == Percentiles(lengths[10], lengths[19], lengths[19])
    assert tokens.total == sum(lengths)
    assert tokens.learnt == sum(3 * n + 1 for n in range(1, 21))
    assert tokens.overlong is None


def test_rows_that_truncation_would_damage_are_counted(tmp_path: Path) -> None:
    turns = ("a", "b" * 10, "c", "d" * 50)
    roles = ("user", "assistant") * 2
    long = [{"role": r, "content": c} for r, c in zip(roles, turns, strict=True)]
    file = write(
        tmp_path / "a.jsonl",
        pair("short", "row"),
        {"messages": long},
        pair("x" * 100, "no reply fits"),
        {"text": "y" * 200},
    )
    # All but the newline after the last end-of-turn token of the second row.
    complete = length(*turns) - 1
    found = report_on(file, model=TargetModel("tiny", TEMPLATE, complete)).tokens
    assert found is not None
    assert found.overlong is not None
    assert (found.overlong.rows, found.overlong.lose_end, found.overlong.lose_all) == (3, 1, 1)
    found = report_on(file, model=TargetModel("tiny", TEMPLATE, complete - 1)).tokens
    assert found is not None
    assert found.overlong is not None
    assert (found.overlong.rows, found.overlong.lose_end, found.overlong.lose_all) == (3, 2, 1)
    assert [origin.line for origin in found.overlong.first] == [2, 3, 4]


def test_a_row_that_the_template_refuses_is_an_error_of_that_row(tmp_path: Path) -> None:
    picky = "{% if messages|length > 2 %}{{ raise_exception('too many turns') }}{% endif %}"
    template = ChatTemplate.of(byte_tokenizer(picky + byte_tokenizer().chat_template))
    turns = [{"role": r, "content": "a"} for r in ("system", "user", "assistant")]
    file = write(tmp_path / "a.jsonl", pair("a", "b"), {"messages": turns})
    report = report_on(file, model=TargetModel("picky", template, None))
    assert [error.kind for error in report.problems] == ["template"]
    assert report.problems[0].origin == SourceLocation(file, 2)
    assert "too many turns" in str(report.problems[0])


@pytest.mark.parametrize("count", [1, 2, 19, 20, 21, 100])
def test_percentiles_are_observed_values(tmp_path: Path, count: int) -> None:
    rows: list[dict[str, object]] = [{"messages": turns(n)} for n in range(1, count + 1)]
    spread = report_on(write(tmp_path / "a.jsonl", *rows)).turns
    assert spread is not None
    assert (spread.p50, spread.max) == (count // 2 + 1, count)
    assert spread.p95 == -(-(count - 1) * 95 // 100) + 1


def turns(questions: int) -> list[dict[str, str]]:
    return [{"role": r, "content": "a"} for _ in range(questions) for r in ("user", "assistant")]
