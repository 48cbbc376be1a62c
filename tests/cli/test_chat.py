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


@pytest.mark.slow
def test_single_reply_is_the_only_text_on_stdout(tiny_folder: Path, expected: str) -> None:
    done = run_process("chat", "hi", "-m", str(tiny_folder), *REPLY_OPTIONS)
    assert done.returncode == 0
    assert done.stdout == expected + "\n"


@pytest.mark.slow
def test_message_is_read_from_stdin(tiny_folder: Path, expected: str) -> None:
    done = run_process("chat", "-m", str(tiny_folder), *REPLY_OPTIONS, stdin="hi\n")
    assert done.stdout == expected + "\n"


def test_stdin_must_be_utf8() -> None:
    done = run_in_process("chat", stdin="你好".encode("gbk").decode(errors="surrogateescape"))
    assert done.returncode == 2
    assert "not UTF-8 text" in error_lines(done.stderr)[0]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell")
@pytest.mark.parametrize(
    ("way", "code", "message"),
    [
        ("chat <&- >&-", 2, "there is no message"),
        ("eval --list >/dev/full", 1, "No space left on device"),
    ],
)
def test_unusable_streams_give_one_error(way: str, code: int, message: str) -> None:
    shell = ["sh", "-c", f"{shlex.join(COMMAND)} {way}"]
    done = subprocess.run(shell, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == code
    assert message in error_lines(done.stderr)[0]


def test_missing_message_is_a_usage_error() -> None:
    done = run_process("chat")
    assert done.returncode == 2
    error, hint = error_lines(done.stderr)
    assert error == "error: there is no message"
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(
    ("words", "code", "message"),
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
def test_error_is_one_line_with_one_hint(words: tuple[str, ...], code: int, message: str) -> None:
    done = run_process(*words)
    lines = error_lines(done.stderr)
    assert done.returncode == code
    assert done.stdout == ""
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert sum(line.startswith("hint: ") for line in lines) == 1
    assert message in done.stderr


@pytest.mark.slow
def test_invalid_model_file_is_named_in_the_error(tmp_path: Path) -> None:
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"not a model at all")
    done = run_process("chat", "x", "-m", str(fake))
    assert done.returncode == 1
    assert "fake.gguf" in done.stderr
    error_lines(done.stderr)


def test_traceback_is_shown_on_request() -> None:
    done = run_process("chat", LLMCTL_TRACEBACK="1")
    assert "Traceback" in done.stderr


@pytest.mark.slow
def test_json_reply_is_complete_or_the_exit_code_is_1(tiny_folder: Path, tmp_path: Path) -> None:
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
    assert "cut off before its JSON was complete" in short.stderr
    assert not (tmp_path / "conversations.db").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--json", "nothere.json"), "cannot read the schema nothere.json"),
        (("-f", "nothere.txt"), "cannot read nothere.txt"),
        (("--id", "abc"), "there is no conversation 'abc'"),
        (("--resume",), "there is no conversation yet"),
        (("--resume", "--no-save"), "--no-save"),
        (("--api-key", "x"), "--api-key without a server"),
        (("--base-url", "nowhere"), "'nowhere' is not the URL"),
        (("--base-url", "http://127.0.0.1:9", "--quant", "4bit"), "--quant: only the server"),
    ],
)
def test_invalid_options_are_reported_before_the_model_is_loaded(
    words: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path))
    ended = CliRunner().invoke(app, ["chat", "hi", *words])
    assert isinstance(ended.exception, ConfigError)
    assert message in str(ended.exception)


def test_conversations_are_listed_most_recent_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMCTL_HOME", str(tmp_path))
    store = ConversationStore()
    older = store.save(Conversation().with_message("what\nis it?"), now=1.0)
    newer = store.save(Conversation().with_message("and now?"), now=2.0)
    shown = CliRunner().invoke(app, ["chat", "--list"])
    assert [line.split("\t")[0] for line in shown.stdout.splitlines()] == [newer.id, older.id]
    listed = json.loads(CliRunner().invoke(app, ["chat", "--list", "--json", "-"]).stdout)
    assert [each["title"] for each in listed] == ["and now?", "what is it?"]
