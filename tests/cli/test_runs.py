"""Output of the `llmctl runs` commands, as text and as JSON."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.cells import cell_len

from llmctl.cli import render
from llmctl.cli.views import braille_plot
from llmctl.monitor.store import store_uri
from llmctl.monitor.write.spool import Spool
from llmctl.types import RunStart
from tests.cli.process import (
    CommandRunner,
    Ended,
    RunningCommand,
    command_runner,
    error_lines,
)
from tests.cli.terminal import Terminal
from tests.monitor.tracking_history import TrackingHistory, empty_home, end_tracker, start_tracker
from tests.server.servers import wait_until


@pytest.fixture
def runs(tracking_history: TrackingHistory, monkeypatch: pytest.MonkeyPatch) -> CommandRunner:
    """Runs the command on the store with a history."""
    tracking_history.enter(monkeypatch)
    return command_runner("runs")


@pytest.fixture
def own(
    tracking_history: TrackingHistory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runs: CommandRunner,
) -> CommandRunner:
    """The same with an empty store, which a test may change."""
    empty_home(tracking_history, tmp_path / "home", monkeypatch)
    return runs


def on_terminal(*words: str) -> list[str]:
    """Return the lines of a command on a terminal with 80 columns."""
    with Terminal(*words, rows=50) as terminal:
        assert terminal.end() == 0, terminal.raw
    return terminal.output.splitlines()


def test_the_list_says_how_many_runs_wait_for_the_store(own: CommandRunner) -> None:
    spool = Spool.create(store_uri(), RunStart("eval"), "waits", 1)
    try:
        done = own("list")
        assert (done.code, done.out) == (0, "")
        assert "1 run waits on the disk" in done.err
        spool.set_run_id("r" * 32)
        assert "on the disk" not in own("list").err
    finally:
        spool.remove()


@pytest.mark.slow
def test_runs_without_a_subcommand_lists_the_newest_first(
    runs: CommandRunner, tracking_history: TrackingHistory
) -> None:
    done = runs()
    assert [cells[0] for cells in done.cells] == [
        tracking_history.ids[name][:8]
        for name in ("broken", "serve", "eval", "fast", "slow", "clean")
    ]
    fast = done.cells[3]
    assert fast[1:5] == ["微调-fast", "finetune", "smollm2-135m", "finished"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", fast[5])
    assert fast[7] == "loss 1.400"
    assert done.cells[0][3] == "我的模型"
    assert done == runs("list")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--kind", "eval"), ["eval"]),
        (("--status", "failed"), ["broken"]),
        (("--model", "我的"), ["broken"]),
        (("--kind", "finetune", "--sort", "eval/loss"), ["fast", "slow", "broken"]),
        (("--kind", "finetune", "--sort", "-eval/loss"), ["slow", "fast", "broken"]),
        (("--kind", "finetune", "--sort", "eval/loss", "--reverse"), ["slow", "fast", "broken"]),
        (("--reverse", "--limit", "2"), ["clean", "slow"]),
        (("--since", "1h", "--limit", "1"), ["broken"]),
        (("--since", "2100-01-01"), []),
    ],
)
def test_list_is_filtered_and_sorted(
    runs: CommandRunner, tracking_history: TrackingHistory, words: tuple[str, ...], names: list[str]
) -> None:
    done = runs("list", *words)
    assert done.code == 0
    assert [cells[0] for cells in done.cells] == [tracking_history.ids[name][:8] for name in names]
    if not names:
        assert done.err == "no matching runs\n"


def test_list_reports_omitted_runs(runs: CommandRunner) -> None:
    assert runs("list", "--limit", "2").err == "2 of 6 runs; --limit 0 shows all\n"
    assert runs("list", "--limit", "0").err == ""


def test_missing_store_has_no_runs_and_is_not_created(
    runs: CommandRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path / "nowhere"))
    for words in ((), ("list",), ("ui",)):
        assert runs(*words) == Ended(0, "", "no runs yet\n")
    assert runs("list", "--json").out == "[]\n"
    for command in ("show @", "best --metric x", "rm a"):
        done = runs(*command.split())
        assert done.code == 1
        assert "yet" in error_lines(done.err)[0]
    file = tmp_path / "nope/x.db"
    for named in ((), ("--json",), ("--kind", "eval")):
        done = runs("list", "--tracking-uri", f"sqlite:///{file}", *named)
        assert (done.code, done.err) == (0, f"no runs yet: {file} does not exist\n")
    assert list(tmp_path.iterdir()) == []


def test_show_prints_all_sections_in_order(
    runs: CommandRunner, tracking_history: TrackingHistory
) -> None:
    done = runs("show", "微调-fast")
    assert done.code == 0
    parts = ["parameters", "metrics", "train/loss", "made from", "led to", "files"]
    assert [line for line in done.out.splitlines() if line in parts] == parts
    tree = done.out[done.out.index("made from") :]
    assert "└─ training: 客服.clean.jsonl (bbbbbbbb, 1,100 rows)" in tree
    assert "      └─ source: 客服.jsonl (aaaaaaaa, 1,200 rows)" in tree
    assert f"   ├─ {next(c[1] for c in runs().cells if c[2] == 'eval')} [" in tree
    assert f"adapter {tracking_history.adapter}" in tree
    assert "config.yaml\t11 B" in tree


def test_show_of_a_failed_run_has_its_error_and_finite_values(runs: CommandRunner) -> None:
    done = runs("show", "broken")
    assert re.search(r"^error +the loss is NaN$", done.out, re.MULTILINE)
    assert "train/loss\t2\tinf\t2\tinf\t3" in done.out.splitlines()


def test_show_as_json_has_lineage_and_files(
    runs: CommandRunner, tracking_history: TrackingHistory
) -> None:
    shown: dict[str, Any] = json.loads(runs("show", "@", "--json").out)
    assert shown["id"] == tracking_history.ids["broken"]
    assert [one["highest"] for one in shown["curves"]] == [None]
    shown = json.loads(runs("show", tracking_history.ids["clean"][:6], "--json").out)
    (source,) = shown["made_from"]
    assert (source["type"], source["role"], source["rows"]) == ("dataset", "source", 1200)
    assert [branch["type"] for branch in shown["led_to"][0]["branches"]] == ["run", "run"]
    assert [file["path"] for file in shown["files"]] == ["reports/report.md"]


def test_compare_marks_the_better_value(runs: CommandRunner, tmp_path: Path) -> None:
    picture = tmp_path / "both.png"
    done = runs("compare", "微调-slow", "微调-fast", "-o", str(picture))
    rows = {cells[0]: cells[1:] for cells in done.cells}
    assert rows["lr"] == ["1e-05", "0.0001"]
    assert rows["eval/loss"] == ["1.490 ▼", "1.400 ▲"]
    assert rows["train/learning_rate"] == ["1.000e-05", "1.000e-04"]
    assert "2 parameters are equal" in done.err
    assert picture.read_bytes().startswith(b"\x89PNG")
    plain = json.loads(runs("compare", "微调-slow", "微调-fast", "--json").out)
    assert plain["metrics"]["eval/loss"]["best"] == [1]
    assert plain["equal"] == {"batch": "8", "lora.rank": "16"}


def test_best_shows_one_run(runs: CommandRunner, tracking_history: TrackingHistory) -> None:
    done = runs("best", "--metric", "eval/loss")
    assert [cells[0] for cells in done.cells] == [tracking_history.ids["fast"][:8]]
    assert done.err == "lowest eval/loss: 1.400\n"
    done = runs("best", "--metric", "eval/loss", "--max", "--json")
    assert json.loads(done.out)["id"] == tracking_history.ids["slow"]


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["show", "nothing"], 1, "nothing"),
        (["show", "微调"], 2, "2 runs"),
        (["show", "微调-fast", "--metric", "x"], 2, "'x'"),
        (["list", "--since", "soon"], 2, "soon"),
        (["list", "--sort", "x"], 2, "'x'"),
        (["list", "--kind", "x"], 2, "x"),
        (["list", "--tracking-uri", "nowhere"], 2, "nowhere"),
        (["compare", "微调-fast"], 2, "needs two runs"),
        (["compare", "微调-fast", "微调-slow", "--metric", "x"], 2, "--metric"),
        (["plot", "微调-fast"], 2, "--output"),
        (["tag", "微调-fast", "novalue"], 2, "novalue"),
        (["tag", "微调-fast", "sp ace/ü@=x"], 2, "sp ace/ü@"),
        (["rm", "微调-fast", "--purge"], 2, "confirmation needs a terminal"),
    ],
)
def test_invalid_arguments_are_one_error(
    runs: CommandRunner, words: list[str], code: int, named: str
) -> None:
    done = runs(*words)
    assert done.code == code
    assert named in error_lines(done.err)[0]


def test_note_tag_trash_restore_and_purge(own: CommandRunner) -> None:
    end_tracker(start_tracker("bench", name="一次"))
    assert own("note", "一次", "the good one").code == 0
    assert own("note", "@").out == "the good one\n"
    own("tag", "@", "team=a")
    assert ["team", "a"] in own("tag", "@").cells
    assert "restores it" in own("rm", "一次").err
    assert own().err == "no runs yet\n"
    assert [cells[1] for cells in own("list", "--trash").cells] == ["一次"]
    assert own("restore", "一次").err == "一次 is restored\n"
    assert own("rm", "一次", "--purge", "--yes").err == "一次 is deleted\n"
    assert own("list", "--trash").err == "the trash is empty\n"


@pytest.mark.slow
def test_lines_fit_80_columns_and_brackets_are_not_markup(
    tracking_history: TrackingHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking_history.enter(monkeypatch)
    lines = on_terminal("runs")
    assert lines[0].split()[:3] == ["ID", "NAME", "KIND"]
    assert len(lines) == 1 + 6
    assert max(map(cell_len, lines)) <= 80
    assert "[/x]" in lines[1]
    lines = on_terminal("runs", "show", "微调-fast")
    assert max(map(cell_len, lines)) <= 80


@pytest.mark.slow
def test_ui_serves_the_runs_and_ends_with_all_its_processes(
    tracking_history: TrackingHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking_history.enter(monkeypatch)
    with RunningCommand("runs", "ui") as process:
        url = process.stdout.readline().strip()
        found = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/#/experiments/(\d+)/runs", url)
        assert found is not None, process.stderr.read()
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        assert b"<html" in opener.open(found[1], timeout=30).read()
        body = json.dumps({"experiment_ids": [found[2]]}).encode()
        request = urllib.request.Request(
            f"{found[1]}/ajax-api/2.0/mlflow/runs/search",
            body,
            {"Content-Type": "application/json"},
        )
        answer = json.load(opener.open(request, timeout=30))
        names = {run["info"]["run_name"] for run in answer["runs"]}
        assert {"微调-fast", "微调-slow", "清洗-客服"} <= names
        fast = tracking_history.ids["fast"]
        file = opener.open(f"{found[1]}/get-artifact?path=config.yaml&run_uuid={fast}", timeout=30)
        assert file.read() == b"lr: 0.0001\n"
        process.send_signal(signal.SIGINT)
        code, _, err = process.communicate()
    assert code == 130, err
    assert "Traceback" not in err
    assert wait_until(lambda: not any(member.is_running() for member in family), within_s=5)


def test_ui_rejects_a_port_in_use(runs: CommandRunner) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = runs("ui", "--port", port)
    assert done.code == 2
    assert port in error_lines(done.err)[-2]


def test_list_imports_neither_mlflow_nor_numpy(
    tracking_history: TrackingHistory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking_history.enter(monkeypatch)
    code = (
        "import sys\n"
        "from llmctl.cli.app import main\n"
        "for words in (['list'], ['show', '@'], ['best', '--metric', 'eval/loss']):\n"
        "    try: main(['runs', *words])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "heavy = {'mlflow', 'sqlalchemy', 'numpy', 'pandas', 'matplotlib', 'torch'}\n"
        "print(sorted(heavy & {*sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_plot_of_a_falling_curve_and_of_a_gap() -> None:
    lines = braille_plot.draw_curve([0, 1, 2, 3], [3.0, 2.0, 1.0, 0.0], width=4, height=4)
    assert [len(line) for line in lines] == [4] * 4
    # The dots of the first character are at the top, those of the last one at the bottom.
    assert [line.strip() != "" for line in lines] == [True] * 4
    assert lines[0][0] != " "
    assert lines[0][-1] == " "
    assert lines[-1][-1] != " "
    gap = braille_plot.draw_curve([0, 1, 2], [1.0, float("nan"), 1.0], width=9, height=1)
    assert gap[0].strip(" ")[1:-1].strip() == ""
    assert braille_plot.draw_curve([0], [float("inf")], width=3, height=2) == ["   ", "   "]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.25, "0.2500"),
        (1.2345678, "1.235"),
        (12345.678, "12,346"),
        (1e-5, "1.000e-05"),
        (1_000_000.0, "1,000,000"),
        (float("nan"), "nan"),
        (-0.5, "-0.5000"),
    ],
)
def test_number_has_four_significant_digits(value: float, text: str) -> None:
    assert render.format_number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0s"),
        (59.7, "1m00s"),
        (61, "1m01s"),
        (3661, "1h01m"),
        (90000, "25h00m"),
        (9e5, "10d10h"),
    ],
)
def test_duration_format(seconds: float, text: str) -> None:
    assert render.format_duration(seconds) == text


def test_text_is_shortened_in_the_middle_by_columns() -> None:
    assert render.shorten("微调-客服助手-abcdef", 12) == "微调-…bcdef"
    assert render.shorten("short", 12) == "short"
