import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llmctl.cli.app import app
from llmctl.engine.hf_runner import HFRunner
from llmctl.errors import ConfigError
from llmctl.services.chat.conversation import Conversation
from llmctl.services.chat.store import ConversationStore
from llmctl.types import GenerationRequest, Message, SamplingParams
from tests.cli.process import COMMAND, error_lines, run_in_process, run_process

TINY_REPLY = SamplingParams(temperature=0, max_new_tokens=8)
REPLY_OPTIONS = ("-t", "0", "--max-tokens", "8", "--dtype", "float32", "--device", "cpu")


@pytest.fixture(scope="module")
def expected(tiny: HFRunner) -> str:
    request = GenerationRequest((Message("user", "hi"),), sampling=TINY_REPLY)
    return tiny.generate(request).choices[0].text


def test_a_question_is_answered_once_with_nothing_else_on_stdout(
    tiny_folder: Path, expected: str
) -> None:
    done = run_process("chat", "hi", "-m", str(tiny_folder), *REPLY_OPTIONS)
    assert done.returncode == 0
    assert done.stdout == expected + "\n"


def test_a_question_can_be_piped_in(tiny_folder: Path, expected: str) -> None:
    done = run_process("chat", "-m", str(tiny_folder), *REPLY_OPTIONS, stdin="hi\n")
    assert done.stdout == expected + "\n"


def test_what_is_piped_in_must_be_text() -> None:
    done = run_in_process("chat", stdin="你好".encode("gbk").decode(errors="surrogateescape"))
    assert done.returncode == 2
    assert "no text in UTF-8" in error_lines(done.stderr)[0]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize(
    ("way", "code", "said"),
    [
        ("chat <&- >&-", 2, "there is no question"),
        ("eval --list >/dev/full", 1, "No space left on device"),
    ],
)
def test_streams_that_cannot_be_used_give_one_error(way: str, code: int, said: str) -> None:
    shell = ["sh", "-c", f"{shlex.join(COMMAND)} {way}"]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    assert said in error_lines(done.stderr)[0]


def test_no_question_at_all_is_wrong_usage() -> None:
    done = run_process("chat")
    assert done.returncode == 2
    error, hint = error_lines(done.stderr)
    assert error == "error: there is no question"
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("chat", "x", "--temperature", "9"), 2, "--temperature"),
        (("chat", "x", "--quant", "3bit"), 2, "3bit"),
        (("chat", "x", "--nonsense"), 2, "--nonsense"),
        (("chatt",), 2, "chatt"),
        (("--nonsense",), 2, "--nonsense"),
        (("chat", "x", "-m", "./not/there"), 1, "not/there"),
        (("chat", "x", "-m", "./not-there.gguf"), 1, "not-there.gguf"),
        (("chat", "x", "-m", "smolm2-135m"), 1, "smolm2-135m"),
        (("chat", "x", "--device", "abacus"), 2, "abacus"),
    ],
)
def test_an_error_is_one_line_with_one_hint(words: tuple[str, ...], code: int, said: str) -> None:
    done = run_process(*words)
    lines = error_lines(done.stderr)
    assert done.returncode == code
    assert done.stdout == ""
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert sum(line.startswith("hint: ") for line in lines) == 1
    assert said in done.stderr


def test_a_file_that_is_no_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"not a model at all")
    done = run_process("chat", "x", "-m", str(fake))
    assert done.returncode == 1
    assert "fake.gguf" in done.stderr
    error_lines(done.stderr)


def test_a_traceback_is_shown_where_it_is_asked_for() -> None:
    done = run_process("chat", LLMCTL_TRACEBACK="1")
    assert "Traceback" in done.stderr


def test_a_script_gets_json_alone_and_an_exit_code_that_says_whether_it_is_whole(
    tiny_folder: Path, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(
        '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],'
        ' "additionalProperties": false}'
    )
    notes = tmp_path / "notes.txt"
    notes.write_text("a note")
    words = ("chat", "hi", "-m", str(tiny_folder), "-t", "0", "--device", "cpu", "-f", str(notes))
    done = run_process(*words, "--json", str(schema), LLMCTL_HOME=str(tmp_path))
    assert done.returncode == 0
    assert set(json.loads(done.stdout)) == {"ok"}
    short = run_process(
        *words, "--json", str(schema), "--max-tokens", "3", LLMCTL_HOME=str(tmp_path)
    )
    assert (short.returncode, short.stdout) == (1, "")
    assert "cut off before its JSON was whole" in short.stderr
    assert not (tmp_path / "conversations.db").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--json", "nothere.json"), "cannot read the schema nothere.json"),
        (("-f", "nothere.txt"), "cannot read nothere.txt"),
        (("--id", "abc"), "no conversation is 'abc'"),
        (("--resume",), "there is no conversation yet"),
        (("--resume", "--no-save"), "--no-save"),
        (("--api-key", "x"), "--api-key without a server"),
        (("--base-url", "nowhere"), "'nowhere' is not the URL"),
        (("--base-url", "http://127.0.0.1:9", "--quant", "4bit"), "--quant: only the server"),
    ],
)
def test_what_cannot_be_used_is_said_before_a_model_is_loaded(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path))
    ended = CliRunner().invoke(app, ["chat", "hi", *words])
    assert isinstance(ended.exception, ConfigError)
    assert said in str(ended.exception)


def test_conversations_are_listed_the_last_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path))
    store = ConversationStore()
    older = store.save(Conversation().asked("what\nis it?"), now=1.0)
    newer = store.save(Conversation().asked("and now?"), now=2.0)
    shown = CliRunner().invoke(app, ["chat", "--list"])
    assert [line.split("\t")[0] for line in shown.stdout.splitlines()] == [newer.id, older.id]
    listed = json.loads(CliRunner().invoke(app, ["chat", "--list", "--json", "-"]).stdout)
    assert [each["title"] for each in listed] == ["and now?", "what is it?"]
