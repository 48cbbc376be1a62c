import sys
from pathlib import Path

import pexpect
import pytest

from llmctl.engine.hf_runner import HFRunner
from llmctl.types import GenerationRequest, Message, SamplingParams
from tests.cli.process import COMMAND, error_lines, run

TINY_REPLY = SamplingParams(temperature=0, max_new_tokens=8)
REPLY_OPTIONS = ("-t", "0", "--max-tokens", "8", "--dtype", "float32", "--device", "cpu")


@pytest.fixture(scope="module")
def expected(tiny: HFRunner) -> str:
    request = GenerationRequest((Message("user", "hi"),), sampling=TINY_REPLY)
    return tiny.generate(request).choices[0].text


def test_a_question_is_answered_once_with_nothing_else_on_stdout(
    tiny_folder: Path, expected: str
) -> None:
    done = run("chat", "hi", "-m", str(tiny_folder), *REPLY_OPTIONS)
    assert done.returncode == 0
    assert done.stdout == expected + "\n"


def test_a_question_can_be_piped_in(tiny_folder: Path, expected: str) -> None:
    done = run("chat", "-m", str(tiny_folder), *REPLY_OPTIONS, stdin="hi\n")
    assert done.stdout == expected + "\n"


def test_no_question_at_all_is_wrong_usage() -> None:
    done = run("chat")
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
    done = run(*words)
    lines = error_lines(done.stderr)
    assert done.returncode == code
    assert done.stdout == ""
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert sum(line.startswith("hint: ") for line in lines) == 1
    assert said in done.stderr


def test_a_file_that_is_no_model_is_an_error_that_names_it(tmp_path: Path) -> None:
    fake = tmp_path / "fake.gguf"
    fake.write_bytes(b"not a model at all")
    done = run("chat", "x", "-m", str(fake))
    assert done.returncode == 1
    assert "fake.gguf" in done.stderr
    error_lines(done.stderr)


def test_a_traceback_is_shown_where_it_is_asked_for() -> None:
    done = run("chat", LLMCTL_TRACEBACK="1")
    assert "Traceback" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="pexpect needs a pseudo-terminal")
def test_ctrl_c_stops_the_reply_and_ctrl_d_leaves(tiny_folder: Path) -> None:
    terminal = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], "chat", "-m", str(tiny_folder), "-t", "0", "--device", "cpu"],
        encoding="utf-8",
        timeout=60,
        dimensions=(24, 80),
    )
    terminal.expect(">>> ")
    # Enough tokens that the reply cannot have ended before the interrupt.
    terminal.sendline("tell me everything")
    terminal.expect("\r\n")
    terminal.sendintr()
    terminal.expect(r"\[stopped\]|>>> ")
    terminal.sendline("/nonsense")
    terminal.expect("unknown command /nonsense")
    terminal.sendline("/clear")
    terminal.expect("forgotten")
    terminal.expect(">>> ")
    terminal.sendeof()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
