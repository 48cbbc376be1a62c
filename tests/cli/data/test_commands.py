"""The `llmctl data` commands."""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.cli.process import CommandRunner, command_runner, run_process
from tests.cli.terminal import Terminal

SAMPLES = Path(__file__).parents[2] / "data" / "samples"
GOOD = '{"prompt": "Where is the key?", "completion": "Under the mat."}\n'
BAD = '{"prompt": "Where is the key?", "compeltion": "Under the mat."}\n'


@pytest.fixture
def data() -> CommandRunner:
    return command_runner("data")


@pytest.fixture(autouse=True)
def no_default_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "store"))


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(lines))
    return path


def test_check_of_valid_files(data: CommandRunner) -> None:
    code, out, _ = data("check", SAMPLES)
    assert code == 0
    found = {line.split("  ")[0]: line for line in out.splitlines()}
    assert found["rows"].endswith("  26")
    assert "preference 6, prompt-completion 6" in found["format"]
    assert "id (sharegpt)" in found["not used"]
    assert "not counted" in found["tokens"]


def test_check_exits_1_and_lists_all_row_errors(data: CommandRunner, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", GOOD, BAD, GOOD, "{\n")
    code, out, _ = data("check", file)
    assert code == 1
    assert out.splitlines()[-2:] == [
        f"{file}:2:completion: missing; did you mean 'compeltion'? "
        "(rename it, or --column completion=compeltion)",
        f"{file}:4:column 2: the row ends before it is complete "
        "(a closing bracket; or is the row truncated?)",
    ]


def test_check_limits_similar_errors_unless_all(data: CommandRunner, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", BAD * 50, GOOD, "{\n")
    _, out, _ = data("check", file)
    assert out.count("did you mean") == 3
    assert "column 2" in out
    assert out.splitlines()[-1] == "and 47 more (missing-column 47); --all prints them"
    _, out, _ = data("check", file, "--all")
    assert out.count("did you mean") == 50


@pytest.mark.slow
def test_check_as_json(data: CommandRunner, tmp_path: Path, tiny_folder: Path) -> None:
    file = write(tmp_path / "a.jsonl", GOOD, BAD, GOOD)
    held = write(tmp_path / "b.jsonl", GOOD)
    code, out, _ = data(
        "check", file, "--eval-file", held, "-m", tiny_folder, "--max-length", "60", "--json"
    )
    report = json.loads(out)
    assert code == 1
    assert (report["rows"], report["whole_rows"], report["sound"]) == (3, 2, False)
    assert report["problems"][0]["origin"] == {"file": str(file), "line": 2}
    assert report["problems"][0]["message"].startswith(f"{file}:2:completion: missing")
    assert report["duplicates"]["rows"] == 1
    assert report["leaks"]["rows"] == 1
    assert report["tokens"]["overlong"]["rows"] == 0
    length = report["tokens"]["per_row"]["max"]
    assert report["tokens"]["total"] == 2 * length
    assert report["tokens"]["learnt"] == 2 * (len("Under the mat.") + 1)


def test_check_uses_the_context_of_the_model(
    data: CommandRunner, tmp_path: Path, tiny_folder: Path
) -> None:
    long = json.dumps({"prompt": "Sing.", "completion": "la" * 200})
    code, out, _ = data("check", write(tmp_path / "a.jsonl", GOOD, long), "-m", tiny_folder)
    assert code == 0
    (line,) = (text for text in out.splitlines() if text.startswith("too long"))
    assert line.removeprefix("too long").strip() == (
        "1 row (50.0%) over 256 tokens, such as line 2; truncated, 1 row would lose the "
        "end-of-turn token, and 1 row every complete reply"
    )


def test_show_marks_trained_tokens(data: CommandRunner, tiny_folder: Path) -> None:
    code, out, _ = data("show", SAMPLES / "messages.jsonl", "4", "-m", tiny_folder)
    assert code == 0
    assert "[W][h][o][ ][i][s]" in out
    assert "G|o| |a|w|a|y|.|<|im_end|>|↵|" in out
    assert "[?][<|im_end|>]↵|" in out
    assert "[trained] context|" in out


def test_show_as_json_has_all_tokens_and_the_text(data: CommandRunner, tiny_folder: Path) -> None:
    _, out, _ = data("show", SAMPLES / "alpaca.json", "--line", "7", "-m", tiny_folder, "--json")
    (row,) = json.loads(out)
    (sequence,) = row["sequences"]
    assert (row["line"], row["row"]) == (7, 2)
    # A character of three bytes is three tokens here; the later ones show as a dot.
    text = "".join(token["text"] for token in sequence["tokens"])
    assert text.replace("·", "") == sequence["text"]
    trained = sum(token["learnt"] for token in sequence["tokens"])
    assert trained == len("麻烦您把窗户关上，谢谢。".encode()) + 1


def test_show_reports_invalid_and_missing_rows(
    data: CommandRunner, tmp_path: Path, tiny_folder: Path
) -> None:
    file = write(tmp_path / "a.jsonl", GOOD, BAD)
    code, out, err = data("show", file, "2", "-m", tiny_folder)
    assert (code, out) == (1, "")
    assert f"{file}:2:completion: missing" in err
    code, _, err = data("show", file, "3", "-m", tiny_folder)
    assert code == 2
    assert "has no row 3" in err
    assert "it has 2 rows" in err
    file.write_text(f"{GOOD}\n\n{GOOD}")
    for words in (("show", file, "-m", tiny_folder, "--line"), ("clean", file, "--explain")):
        for line, hint in (("2", "rows are at lines 1 and 4"), ("5", "the last row is at line 4")):
            code, out, err = data(*words, line)
            assert (code, out) == (2, "")
            assert f"error: no row is at line {line}\nhint: {hint}\n" in err
        assert data(*words, "4")[0] == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_show_uses_colour_on_a_terminal(tiny_folder: Path) -> None:
    words = ("data", "show", str(SAMPLES / "messages.jsonl"), "-m", str(tiny_folder))
    with Terminal(*words) as terminal:
        terminal.end()
    shown = terminal.raw.partition("trained: ")[0]
    trained = re.findall(r"\x1b\[30;(42|102)m([^\x1b]+)", shown)
    assert "".join(text for _, text in trained) == "Seven minutes for a soft yolk.<|im_end|>"
    shades = [shade for shade, _ in trained]
    assert all(one != next_one for one, next_one in pairwise(shades))


def test_convert_writes_and_reports_counts(data: CommandRunner, tmp_path: Path) -> None:
    out_file = tmp_path / "out.jsonl"
    code, out, err = data("convert", SAMPLES / "alpaca.json", "--to", "messages", "-o", out_file)
    assert (code, out) == (0, "")
    assert "3 rows read\n" in err
    assert f"3 rows written to {out_file}\n" in err
    assert len(out_file.read_text().splitlines()) == 3


def test_convert_writes_nothing_if_rows_do_not_fit(data: CommandRunner, tmp_path: Path) -> None:
    words = ("convert", SAMPLES / "messages.jsonl", "--to", "alpaca", "-o", tmp_path / "out.jsonl")
    code, _, err = data(*words)
    assert code == 1
    assert "messages.jsonl:3: alpaca cannot represent tools and tool calls (--to messages)" in err
    assert "error: 3 errors in 4 rows; nothing was written" in err
    assert list(tmp_path.iterdir()) == []
    code, _, err = data(*words, "--on-error", "skip")
    assert code == 0
    assert "4 rows read, 3 of them skipped" in err


def test_columns_are_renamed_by_option(data: CommandRunner, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", '{"ask": "a", "reply": "b"}\n')
    assert data("check", file)[0] == 1
    code, out, _ = data("check", file, "--column", "prompt=ask", "--column", "completion=reply")
    assert code == 0
    assert "not used" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("check", "nowhere.jsonl"), "there is no file nowhere.jsonl"),
        (("check", str(SAMPLES), "--column", "output"), "--column 'output' has no `=`"),
        (("check", str(SAMPLES), "--column", "ouput=x"), "did you mean output?"),
        (("check", str(SAMPLES), "--format", "chatml"), "unknown format 'chatml'"),
        (("check", str(SAMPLES), "--chat-template", "a.jinja"), "need a model"),
        (("convert", str(SAMPLES), "--to", "yaml", "-o", "out.jsonl"), "unknown format 'yaml'"),
        (("convert", str(SAMPLES), "--to", "text", "-o", "out.doc"), "out.doc"),
        (
            ("convert", str(SAMPLES), "--to", "text", "-o", f"{SAMPLES}/a.jsonl"),
            "is in the folder",
        ),
        (("merge", str(SAMPLES), "-o", f"{SAMPLES}/a.jsonl"), "is in the folder"),
        (
            ("split", str(SAMPLES), "--train", "a.jsonl", "--eval", f"{SAMPLES}/a.json"),
            "a.json is in",
        ),
        (
            ("clean", str(SAMPLES), "-o", f"{SAMPLES}/deep/a.jsonl"),
            "deep/a.jsonl is in the folder",
        ),
        (("merge", "a.jsonl=many", "-o", "out.jsonl"), "'many' in a.jsonl=many is not a weight"),
        (("merge", "a.jsonl=0", "-o", "out.jsonl"), "the weight of a.jsonl is 0.0"),
        (("split", str(SAMPLES), "--train", "t.jsonl"), "--eval"),
    ],
)
def test_invalid_arguments_exit_2_with_a_message(
    data: CommandRunner, words: tuple[str, ...], message: str
) -> None:
    code, out, err = data(*words)
    assert (code, out) == (2, "")
    assert message in err


def test_merge_undoes_split(data: CommandRunner, tmp_path: Path) -> None:
    rows = [json.dumps({"prompt": f"What is {n}?", "completion": str(n)}) for n in range(60)]
    file = write(tmp_path / "all.jsonl", "\n".join(rows))
    train, held, back = (tmp_path / f"{name}.jsonl" for name in ("train", "eval", "back"))
    assert data("split", file, "--train", train, "--eval", held, "--fraction", "0.3")[0] == 0
    assert data("merge", train, held, "-o", back)[0] == 0
    assert sorted(back.read_text().splitlines()) == sorted(rows)
    assert 5 < len(held.read_text().splitlines()) < 35
    assert data("check", train, "--eval-file", held)[0] == 0


def test_merge_applies_source_weights(data: CommandRunner, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", GOOD), SAMPLES / "text.jsonl"
    code, _, err = data("merge", f"{a}=3", b, "-o", tmp_path / "out.jsonl")
    assert code == 0
    assert "3 rows read" in err
    assert "5 rows written" in err


def test_data_without_a_subcommand_prints_help() -> None:
    done = run_process("data")
    assert done.returncode == 0
    for name in ("check", "show", "clean", "split", "convert", "merge"):
        assert name in done.stdout
