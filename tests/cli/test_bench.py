"""The `llmctl bench` command."""

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from llmctl.engine.stream import GenerationStream
from llmctl.errors import EngineFailedError
from llmctl.types import GenerationRequest
from tests.cli.process import (
    CommandRunner,
    RunningCommand,
    command_runner,
    error_lines,
    run_process,
)
from tests.fakes import FakeEngine
from tests.server.servers import running_server, wait_until

SMALL = ("--concurrency", "1,2", "--requests", "1", "--max-tokens", "2")


@pytest.fixture
def bench() -> CommandRunner:
    return command_runner("bench", *SMALL)


def test_server_is_measured_at_each_level(bench: CommandRunner) -> None:
    engine = FakeEngine()
    with running_server(engine) as url:
        done = bench("--base-url", url)
    assert done.code == 0, done.err
    assert [cells[:3] for cells in done.cells] == [["short", "1", "7"], ["short", "2", "7"]]
    assert {cells[-1] for cells in done.cells} == {"0"}
    assert len(engine.requests) == 1 + 1 + 2
    assert "fake-model" in done.err


@pytest.mark.slow
def test_two_servers_take_turns_with_the_same_prompts(bench: CommandRunner, tmp_path: Path) -> None:
    first, second = FakeEngine(), FakeEngine(("Hello",))
    picture = tmp_path / "figures.png"
    with running_server(first) as url, running_server(second) as other:
        done = bench(
            *("--base-url", url, "--vs", other, "--prompts", "all", "--rounds", "1", "--json"),
            *("--label", "one", "--label", "two", "--plot", str(picture), "--seed", "5"),
        )
    report = json.loads(done.out)
    assert Counter(request.messages[0] for request in first.requests) == Counter(
        request.messages[0] for request in second.requests
    )
    assert [level["side"] for level in report["levels"]] == [0, 1] * 8
    assert [side["label"] for side in report["sides"]] == ["one", "two"]
    assert report["settings"]["seed"] == 5
    assert len(report["summary"]) == 8
    assert report["summary"][0]["ratio"]["prompt_tokens"] == 1.0
    assert any("two: 15 of 15 replies were shorter than 2" in note for note in report["notes"])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_rounds_and_runs_have_different_prompts(bench: CommandRunner) -> None:
    engine = FakeEngine()
    with running_server(engine) as url:
        for _ in range(2):
            bench("--base-url", url, "--rounds", "2")
    prompts = [request.messages[0].content for request in engine.requests]
    assert len(set(prompts)) == len(prompts) == 2 * (1 + 2 * 3)


def test_engine_in_this_process_is_measured(bench: CommandRunner, tiny_folder: Path) -> None:
    model = ("-m", str(tiny_folder), "--device", "cpu")
    done = bench(*model, "--concurrency", "1", "--max-tokens", "32", "--json")
    report = json.loads(done.out)
    (level,) = report["levels"]
    assert report["sides"][0]["where"] == "in process"
    assert (level["replies"], level["output_tokens"], level["errors"]) == (1, 32, {})
    assert level["figures"]["peak_rss_bytes"] > 10**7


@pytest.mark.slow
def test_unreachable_server_is_one_error() -> None:
    done = run_process("bench", "--base-url", "http://127.0.0.1:9")
    error, hint = error_lines(done.stderr)
    assert done.returncode == 1
    assert error == "error: no server answers at http://127.0.0.1:9/v1"
    assert "llmctl serve" in hint


def test_server_that_fails_all_requests_exits_1(bench: CommandRunner) -> None:
    with running_server(FakeEngine(fail=EngineFailedError("it broke"))) as url:
        done = bench("--base-url", url, "--warmup", "0")
    assert done.code == 1
    assert [cells[-1] for cells in done.cells] == ["1", "2"]
    *_, note, error = error_lines(done.err)
    assert note.startswith("note: ")
    assert "3 x " in note
    assert "it broke" in note
    assert "answered no request" in error


def test_ctrl_c_prints_completed_levels_and_exits_130() -> None:
    class StopsAfterFive(FakeEngine):
        def submit(self, request: GenerationRequest) -> GenerationStream:
            if len(self.requests) == 5:
                self.hold = threading.Event()
            return super().submit(request)

    engine = StopsAfterFive()
    with running_server(engine) as url:
        words = ("bench", *SMALL, "--concurrency", "1,2,4", "--base-url", url)
        with RunningCommand(*words) as process:
            assert wait_until(lambda: engine.hold is not None, within_s=60)
            process.send_signal(signal.SIGINT)
            code, out, err = process.communicate()
    assert code == 130
    assert [line.split("\t")[1] for line in out.splitlines()] == ["1", "2"]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--concurrency", "1,x"], "1,x"),
        (["--concurrency", "0"], "concurrency"),
        (["--vs", "localhost:8000"], "localhost:8000"),
        (["--base-url", "http://h", "--vs", "http://h"], "same server"),
        (["--base-url", "http://h", "--quant", "4bit"], "--quant"),
        (["--api-key", "k"], "--api-key"),
        (["--vs-model", "m"], "--vs-model"),
        (["--pid", "1"], "--pid"),
        (["--label", "a", "--label", "b"], "--label"),
        (["--plot", "figures.jpg"], "figures.jpg"),
        (["--plot", "nowhere/figures.png"], "figures.png"),
    ],
)
def test_invalid_options_are_rejected_first(
    bench: CommandRunner, words: list[str], named: str
) -> None:
    done = bench(*words)
    assert done.code == 2
    assert named in error_lines(done.err)[0]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from llmctl.cli.app import main\n"
        "try: main(['bench', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'transformers', 'fastapi', 'uvicorn', 'mlflow', 'peft', 'datasets',\n"
        "         'matplotlib', 'numpy', 'openai', 'psutil'}\n"
        "print(sorted(heavy & {*sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
