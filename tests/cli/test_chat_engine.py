"""`llmctl chat` on a terminal with a model in its process."""

import sys
from pathlib import Path

import pytest

from tests.adapters import save_adapter
from tests.cli.terminal import Terminal
from tests.tiny import save_tiny_model

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

TINY = ("-t", "0", "--max-tokens", "60", "--device", "cpu", "--dtype", "float32")


@pytest.mark.slow
def test_full_context_and_switches_of_model_and_adapter(tiny_folder: Path, tmp_path: Path) -> None:
    other = save_tiny_model(tmp_path / "other", max_position_embeddings=512)
    adapter = save_adapter(tmp_path / "manners", tiny_folder)
    (tmp_path / "schema.json").write_text('{"enum": ["yes"]}')
    with Terminal(
        "chat", "-m", str(tiny_folder), *TINY, LLMCTL_HOME=str(tmp_path / "home")
    ) as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("hello", "[cut off: after 60 tokens; /set max_tokens 120 allows more]")
        chat.ask("/tokens", "/ 256")
        chat.ask("and?", "/summarise or /drop makes room")
        # The next question does not fit any more.
        chat.send("b" * 50 + "\r")
        chat.wait("The oldest 2 turns must be removed")
        chat.wait("or [c]ancel?")
        chat.send("c\r")
        chat.see(">>> " + "b" * 50)  # the input is kept
        chat.send("\r")
        chat.wait("or [c]ancel?")
        chat.send("d\r")
        chat.wait("the oldest 2 turns are no longer in the prompt", prompt=True)
        chat.ask("/history", "the turns above are no longer in the prompt")
        assert "hello" in chat.output
        chat.ask("c" * 300, "the message is too long: ")
        chat.ask("/clear", "new conversation")
        chat.ask("/json " + str(tmp_path / "schema.json"), "follow the schema")
        chat.ask("is it so?", '"yes"')
        chat.ask("/json off", "not constrained")
        # A failed switch keeps the model.
        chat.ask("/model ./not/there", "error:")
        chat.ask(f"/adapter {tmp_path}", "error:")
        chat.ask("is it still so?", "[cut off")
        chat.ask(f"/adapter {adapter}", "adapter:")  # a long path is on the next line
        chat.ask("/regen", "[cut off")
        chat.ask("/adapter off", "adapter: none")
        chat.ask(f"/model {other}", "context 512 tokens")
        chat.ask("/regen", "[cut off")
        broken = tmp_path / "broken"
        broken.mkdir()
        for file in other.iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        (broken / "config.json").write_text('{"model_type": "llama", "hidden_size": 7}')
        chat.ask(f"/model {broken}", "error:")
        chat.ask("/tokens", "/ 512")
        chat.ask("/retry", "[cut off")
        chat.send("\x04")
        chat.wait("continues this conversation")
        assert chat.end() == 0


@pytest.mark.slow
@pytest.mark.real_model
def test_chat_with_the_real_model(tmp_path: Path) -> None:
    # In bfloat16 its first two tokens are so near to each other that processors differ.
    with Terminal("chat", "-t", "0", "--stats", "--no-save", "--dtype", "float32") as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("What is the capital of France?", "The capital of France is Paris.")
        assert "s to first token" in chat.output
        chat.send("Write a very long story about a dragon.\r")
        chat.wait("dragon.\n")
        chat.wait(" the ")
        chat.interrupt()
        chat.wait("[stopped; the partial reply is kept]", prompt=True)
        chat.ask("/undo", "removed: Write a very long")
        chat.ask("/regen", "The capital of France is Paris.")
        chat.ask(f"/export {tmp_path}/good.jsonl", "row 1")
        chat.send("/exit\r")
        assert chat.end() == 0
    (row,) = (tmp_path / "good.jsonl").read_text().splitlines()
    assert "The capital of France is Paris." in row
