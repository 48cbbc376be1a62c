"""Commands and replies of `llmctl chat` on a pseudo-terminal."""

import base64
import json
import sys
from pathlib import Path

import pytest

from llmctl.data.io.reader import read_examples
from llmctl.data.rows.row_errors import RowError
from llmctl.types import Message
from tests.cli.chat_server import SCRIPT, ChatServer
from tests.cli.process import run_in_process

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")


@pytest.mark.slow
def test_invalid_commands_and_values_are_reported_and_change_nothing(
    chat_server: ChatServer, tmp_path: Path
) -> None:
    (tmp_path / "broken.json").write_text('{"turns": [{"role": "assistant", "content": "x"}]}')
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\0\xff")
    (tmp_path / "notes.txt").write_text("remember the milk")
    (tmp_path / "large.txt").write_text("word " * 4000)
    with chat_server.chat() as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("hello", "hello")
        for line, message in (
            ("/hepl", "unknown command /hepl; did you mean /help?"),
            ("/Re-gen now", "unknown command /re-gen; did you mean /regen?"),
            ("/帮助", "unknown command /帮助"),
            (f"/save {tmp_path}/notes.txt", "exists and is not a saved conversation"),
            ("/set temprature 1", "did you mean temperature?"),
            ("/set temperature 9", "temperature is 9.0; it must be between 0.0 and 2.0"),
            ("/set top_k few", "top_k is 'few'; it must be an integer of at least 0"),
            ("/set seed", "/set seed needs a value"),
            ("/regen 99", "a number from 1 to 9"),
            ("/think maybe", "show or hide"),
            ("/json {no", "the schema is not valid JSON"),
            ("/json nothere.json", "cannot read the schema nothere.json"),
            (f"/load {tmp_path}/broken.json", "turn 1 has the role assistant, out of order"),
            (f"/load {tmp_path}/nots.txt", "No such file or directory"),
            (f"/read {tmp_path}/picture.txt", "is not UTF-8 text"),
            (f"/read {tmp_path}/note.txt", "did you mean"),
            ("/model fake-modl", "did you mean fake-model?"),
            ("/adapter other", "has no adapter 'other'"),
            ("/export x.csv", "is not a .jsonl file"),
            ("/resume ffffffffff", "there is no conversation 'ffffffffff'"),
        ):
            assert "error: " in chat.ask(line, message.split()[-1]).replace("\n", " ")
            assert message in chat.output.replace("\n", " ")
        # Nothing has changed.
        chat.ask("/model alias", "alias at http")
        chat.ask("/READ off", "no file was attached")
        chat.ask(f"/read {tmp_path}/broken.json", "is sent with the next message")
        chat.ask(f"/read {tmp_path}/large.txt", "does not fit with the other attachments")
        chat.ask("/read off", "broken.json detached")
        chat.ask(f"/read {tmp_path}/notes.txt", "is sent with the next message")
        chat.ask("what must I remember?", "milk")
        assert chat_server.last_messages == [
            ("user", "hello"),
            ("assistant", "hello"),
            ("user", "notes.txt:\n```txt\nremember the milk\n```\n\nwhat must I remember?"),
        ]


def test_single_reply_reports_length_limit_and_full_context(chat_server: ChatServer) -> None:
    words = (
        "chat",
        "code",
        "--base-url",
        chat_server.url,
        "--max-tokens",
        str(len(SCRIPT["code"])),
    )
    done = run_in_process(*words, LLMCTL_HOME=str(chat_server.home))
    assert done.stdout.endswith("It works.\n")
    assert "[cut off: after 6 tokens; --max-tokens 12 allows more]" in done.stderr
    done = run_in_process(
        "chat", "x" * 3500, "--base-url", chat_server.url, LLMCTL_HOME=str(chat_server.home)
    )
    assert "the context is 85% full" in done.stderr


def test_markdown_and_wide_characters_fit_the_width(chat_server: ChatServer) -> None:
    with chat_server.chat("--no-save") as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("poem", "Done.")
        chat.see(
            "春晓",
            "",
            "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。春眠不觉晓，处处闻啼鸟。夜来风雨",
            "声，花落知多少。春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。春眠不觉晓，处处",
            "闻啼鸟。夜来风雨声，花落知多少。",
            "",
            "名字  n",
            "────────",
            "猫    1",
            "dog   22",
            "",
            "Done.",
        )
        # Complete rows are written once: no flicker, no remains in the scrollback.
        assert chat.output.count("\n闻啼鸟。夜来风雨声，花落知多少。\n") <= 2
        chat.ask("code", "works.")
        chat.see("Here:", "", "```python", "def f():", "    return 1", "```", "", "It works.")
        assert "\x1b[" in chat.raw.rpartition("return")[0][-12:], "code has no colours"
        chat.ask("long", "Line 60 of many.")
        assert all(chat.output.count(f"Line {n} of many.") >= 1 for n in range(1, 61))
        chat.ask("evil", "html")
        assert "red ␛[31malert␛[2J and <b>html</b>" in "\n".join(chat.rows)
    with chat_server.chat("--no-save", columns=40) as chat:
        chat.wait("Ctrl-D exits", prompt=True)
        chat.ask("poem", "Done.")
        chat.see(
            "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落",
            "知多少。春眠不觉晓，处处闻啼鸟。夜来风雨",
            "声，花落知多少。春眠不觉晓，处处闻啼鸟。",
        )
        chat.ask("/stats", "context")
        chat.ask("/help", "Ctrl-D exits")
        assert max(map(len, chat.output.split("\n"))) <= 40


def test_reasoning_is_dimmed_and_can_be_folded(chat_server: ChatServer) -> None:
    with chat_server.chat("--stats") as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("think", "four")
        assert "\x1b[2mTwo and two, hm." in chat.raw
        chat.see("Two and two, hm.", "", "It is four.")
        assert "context" in chat.output
        assert "2 of them cached" in chat.output.replace("\n", " ")
        chat.ask("/think hide", "folded")
        chat.ask("raw think", "Seven.")
        chat.see("Seven.")
        assert "▸ thought" in chat.output
        assert "Let me see." not in chat.output
        chat.ask("/think show", "Let me see.")
        # Earlier reasoning is not sent again.
        chat.ask("last", "last")
        assert chat_server.last_messages[-2] == ("assistant", "Seven.")


def test_regen_undo_edit_and_settings(chat_server: ChatServer, tmp_path: Path) -> None:
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nprintf "edited question" > "$1"\n')
    editor.chmod(0o755)
    with chat_server.chat(EDITOR=str(editor)) as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("one", "one")
        chat_server.engine.script["one"] = ["another"]
        chat.ask("/regen", "another")
        chat_server.engine.script["one"] = ["a third"]
        chat.send("/regen 2\r")
        chat.wait("keep which: 1, 2, none?")
        chat.send("2\r")
        chat.wait("reply 2 is kept", prompt=True)
        chat.ask("two", "two")
        assert chat_server.last_messages[:2] == [("user", "one"), ("assistant", "a third")]
        chat.ask("/edit", "edited question")
        assert chat_server.last_messages[2:] == [("user", "edited question")]
        editor.write_text('#!/bin/sh\ncat "$1" >> "$1.seen"; yes word | head -4000 > "$1"\n')
        chat.ask("/edit", "the next /edit starts with your text")
        assert "the message is too long" in chat.output
        chat.ask("/undo", "removed: edited question")
        chat.ask("/undo", "removed: one")
        chat.ask("/undo", "has no message yet")
        chat.ask("/system Speak like a pirate.", "is set")
        chat.ask("/set temperature 0", "temperature is 0")
        chat.ask('/set stop ["END"]', "stop is")
        chat.ask('/json {"type": "object"}', "follow the schema")
        chat_server.engine.script["three"] = ['{\n  "a": "**b** and _c_"\n}']
        chat.ask("three", "}")
        chat.see("{", '  "a": "**b** and _c_"', "}")
        chat.ask("/history", "}")
        chat.see("{", '  "a": "**b** and _c_"', "}")
        assert chat_server.last_messages == [("system", "Speak like a pirate."), ("user", "three")]
        sampling = chat_server.engine.requests[-1].sampling
        assert (sampling.temperature, sampling.stop) == (0.0, ("END",))
        assert sampling.grammar is not None
        chat.ask("/params", "frequency_penalty")
        chat.ask("/clear", "the earlier one is saved: /resume")


def test_copy_save_load_and_export(chat_server: ChatServer, tmp_path: Path) -> None:
    saved, exported = tmp_path / "talk.json", tmp_path / "good.jsonl"
    with chat_server.chat("--system", "Be brief.") as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("code", "works.")
        chat.ask("/copy", "to the clipboard")
        sequence = chat.raw.rpartition("\x1b]52;c;")[2].partition("\a")[0]
        assert base64.b64decode(sequence).decode() == "".join(SCRIPT["code"])  # type: ignore[arg-type]
        chat.ask("/copy code", "to the clipboard")
        sequence = chat.raw.rpartition("\x1b]52;c;")[2].partition("\a")[0]
        assert base64.b64decode(sequence).decode() == "def f():\n    return 1"
        chat.ask(f"/export {exported}", "row 1")
        chat.send("slow\r")
        chat.see("Once upon a time")
        chat.interrupt()
        chat.wait("[stopped", prompt=True)
        chat.ask(f"/export {exported}", "row 1")
        chat.ask(f"/save {saved}", "4 turns saved to")
        chat.ask("/clear", "new conversation")
        chat.ask("another", "another")
        chat.ask(f"/export {exported}", "row 2")
        chat.ask(f"/load {saved}", "[stopped]")
        chat.ask("go on", "go on")
        assert chat_server.last_messages[0] == ("system", "Be brief.")
        assert len(chat_server.last_messages) == 6
    first, second = map(json.loads, exported.read_text().splitlines())
    assert [m["role"] for m in first["messages"]] == ["system", *["user", "assistant"] * 2]
    assert [m.get("weight") for m in first["messages"]] == [None, None, None, None, 0]
    assert second["messages"][-1] == {"role": "assistant", "content": "another"}
    problems: list[RowError] = []
    examples = list(read_examples([str(exported)], on_row_error=problems.append))
    assert problems == []
    assert examples[0].messages[-1] == Message("assistant", "Once upon a time ")
    assert examples[0].masked == (4,)
