"""`llmctl chat` as a person uses it, on a pseudo-terminal, against a server that is scripted."""

import base64
import json
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmctl.data.problems import Problem
from llmctl.data.reading import read_examples
from llmctl.engine.parts import Part
from llmctl.errors import EngineFailedError
from llmctl.services.chat.store import ConversationStore
from llmctl.types import Message
from tests.cli.scripted import ScriptedEngine, Step
from tests.cli.terminal import Terminal
from tests.server.servers import running

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")

NEVER = threading.Event()
POEM = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"
TABLE = "| 名字 | n |\n| --- | --- |\n| 猫 | 1 |\n| dog | 22 |\n"
SCRIPT: dict[str, list[Step]] = {
    "slow": ["Once upon ", "a time ", NEVER],
    "mute": [NEVER],
    "fail": ["It began ", EngineFailedError("the card fell off the bus")],
    "think": [Part(reasoning="Two and two, "), Part(reasoning="hm."), "It is **four**."],
    "raw think": ["<thi", "nk>\nLet me ", "see.\n</th", "ink>\n\nSeven."],
    "poem": ["# 春晓\n\n", *POEM * 4, "\n\n", *TABLE, "\nDone."],
    "code": ["Here:\n\n```python\n", "def f():\n", "    return 1\n", "```\n", "It ", "works."],
    "long": [f"Line {n} of many.\n" for n in range(1, 61)],
    "evil": ["red \x1b[31malert\x1b[2J and <b>html</b>"],
}


@dataclass
class Place:
    """Where the chats of a test happen."""

    engine: ScriptedEngine
    url: str
    home: Path

    def chat(self, *words: str, columns: int = 80, rows: int = 24, **env: str) -> Terminal:
        words = ("chat", "--base-url", self.url, *words)
        return Terminal(*words, columns=columns, rows=rows, LLMCTL_HOME=str(self.home), **env)

    @property
    def asked(self) -> list[tuple[str, str]]:
        """The messages of the last request."""
        return [(m.role, m.content) for m in self.engine.requests[-1].messages]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    engine = ScriptedEngine(SCRIPT)
    with running(engine) as url:
        yield Place(engine, url, tmp_path / "home")


def test_what_is_pasted_or_written_on_several_lines_is_one_question(place: Place) -> None:
    lines = ["/etc/hosts is the file", *(f"line {n}" for n in range(2, 200)), "ends with \\"]
    with place.chat() as chat:
        chat.wait("/help lists", prompt=True)
        chat.paste("\n".join(lines))
        chat.see("... ends with \\")
        assert not place.engine.requests
        chat.ask("\b.", "ends with .")
        assert place.asked == [("user", "\n".join([*lines[:-1], "ends with ."]))]
        chat.paste("/help\nis a command")
        chat.ask("", "is a command")
        assert place.asked[-1] == ("user", "/help\nis a command")
        chat.send("first \\\r")
        chat.see(">>> first", "...")
        chat.send("second\x1b\r")
        chat.see("... second", "...")
        chat.ask("third", "third")
        assert place.asked[-1] == ("user", "first \nsecond\nthird")
        chat.send('"""one\r')
        chat.see('>>> """one', "...")
        chat.send("\r")
        chat.see('>>> """one', "...", "...")
        chat.ask('two"""', "two")
        assert place.asked[-1] == ("user", "one\n\ntwo")
        chat.ask("/usr/bin/env is a path", "is a path")
        assert place.asked[-1] == ("user", "/usr/bin/env is a path")
        chat.ask("//help", "/help")
        assert place.asked[-1] == ("user", "/help")


def test_ctrl_c_stops_the_reply_and_keeps_what_came(place: Place) -> None:
    with place.chat() as chat:
        chat.wait("/help lists", prompt=True)
        chat.send("slow\r")
        chat.see("Once upon a time")
        chat.send("\x03\x03\x03")
        chat.wait("[stopped; the part above is kept]", prompt=True)
        chat.ask("and then?", "and then?")
        assert place.asked == [
            ("user", "slow"),
            ("assistant", "Once upon a time "),
            ("user", "and then?"),
        ]
        # While nothing has come yet.
        chat.send("mute\r")
        chat.wait("… ")
        chat.interrupt()
        chat.wait("[no reply; /retry asks again]", prompt=True)
        chat.ask("hello", "hello")
        assert ("user", "mute") not in place.asked
        # At the prompt: a line is cleared, and can be had back; an empty one gives a hint.
        chat.send("half a thou")
        chat.wait("half a thou")
        chat.interrupt()
        chat.send("\x03")
        chat.wait("Ctrl-D or /exit leaves", prompt=True)
        chat.ask("\x1b[A", "half a thou")
        assert place.asked[-1] == ("user", "half a thou")
        chat.send("\x04")
        assert chat.end() == 0


def test_a_killed_chat_goes_on_where_it_was(place: Place) -> None:
    with place.chat("--system", "Be brief.") as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("one", "one")
        chat.ask("two", "two")
        chat.send("slow\r")
        chat.see("Once upon a time")
        os.kill(chat.pid, signal.SIGKILL)
        chat.end()
    with place.chat("--resume") as chat:
        chat.wait("[no reply yet; /retry asks again]", prompt=True)
        assert "5 turns" in chat.raw
        place.engine.script["slow"] = ["The end."]
        chat.ask("/retry", "The end.")
        assert place.asked == [
            ("system", "Be brief."),
            *[(role, word) for word in ("one", "two") for role in ("user", "assistant")],
            ("user", "slow"),
        ]
        # The same conversation in a second window does not overwrite the first one's turns.
        with place.chat("--resume", "--plain") as other:
            other.wait("The end.", prompt=True)
            other.ask("from the other", "from the other")
        chat.ask("from here", "went on in another window")
        chat.send("/exit\r")
        assert chat.end() == 0
    store = ConversationStore(place.home / "conversations.db")
    first, second = store.list()
    assert {first.turns, second.turns} == {8}
    last = {store.read(each.id).turns[-1].message.content for each in (first, second)}
    assert last == {"from here", "from the other"}


def test_a_wrong_command_or_value_says_what_would_be_right(place: Place, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"turns": [{"role": "assistant", "content": "x"}]}')
    (tmp_path / "picture.txt").write_bytes(b"\x89PNG\0\xff")
    (tmp_path / "notes.txt").write_text("remember the milk")
    with place.chat() as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("hello", "hello")
        for line, said in (
            ("/hepl", "unknown command /hepl; did you mean /help?"),
            ("/set temprature 1", "did you mean temperature?"),
            ("/set temperature 9", "temperature is 9.0; it must be between 0.0 and 2.0"),
            ("/set top_k few", "top_k is 'few'; it must be a whole number from 0 on"),
            ("/set seed", "/set seed needs a value"),
            ("/regen 99", "a number from 1 to 9"),
            ("/think maybe", "show or hide"),
            ("/json {no", "the schema is no JSON"),
            ("/json nothere.json", "cannot read the schema nothere.json"),
            (f"/load {tmp_path}/broken.json", "turn 1 is the assistant's, out of turn"),
            (f"/load {tmp_path}/nots.txt", "No such file or directory"),
            (f"/read {tmp_path}/picture.txt", "is no text in UTF-8"),
            (f"/read {tmp_path}/note.txt", "did you mean"),
            ("/model other", "has no model 'other'"),
            ("/adapter other", "has no adapter 'other'"),
            ("/export x.csv", "is no .jsonl file"),
            ("/resume ffffffffff", "no conversation is 'ffffffffff'"),
        ):
            assert "error: " in chat.ask(line, said.split()[-1]).replace("\n", " ")
            assert said in chat.said.replace("\n", " ")
        # After all of that everything is as it was.
        chat.ask(f"/read {tmp_path}/notes.txt", "goes with the next question")
        chat.ask("what must I remember?", "milk")
        assert place.asked == [
            ("user", "hello"),
            ("assistant", "hello"),
            ("user", "notes.txt:\n```txt\nremember the milk\n```\n\nwhat must I remember?"),
        ]


def test_a_server_that_fails_or_goes_away_loses_nothing(place: Place) -> None:
    with place.chat() as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("fail", "[broken off; the part above is kept, /retry asks again]")
        assert "the card fell off the bus" in chat.said
        place.engine.script["fail"] = ["It ended well."]
        chat.ask("/retry", "It ended well.")
        chat.ask("/history", "It ended well.")
        assert "It began" not in chat.said
    with breaking_server() as url, Terminal(
        "chat", "--base-url", url, "-m", "any", LLMCTL_HOME=str(place.home)
    ) as chat:  # fmt: skip
        chat.wait("/help lists", prompt=True)
        chat.ask("hello", "/retry asks again]")
        assert "went away before the reply was complete" in chat.said.replace("\n", " ")
        chat.ask("/history", "half a rep")
        chat.ask("/retry", "[no reply; the old one stays]")
        chat.ask("/history", "half a rep")


@contextmanager
def breaking_server() -> Iterator[str]:
    """Yield the URL of a server that closes the connection in the middle of its first reply."""
    body = b'data: {"choices": [{"index": 0, "delta": {"content": "half a rep"}}]}\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        broken = False
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with closing(connection):
                request = connection.recv(65536)
                if b"/chat/completions" not in request:
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                elif not broken:
                    broken = True
                    chunk = b"%x\r\n%s\r\n" % (len(body), body)
                    connection.sendall(head + b"\r\n" + chunk)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def test_markdown_and_wide_characters_fit_the_width(place: Place) -> None:
    with place.chat("--no-save") as chat:
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
        # What is finished is written once: nothing flickers, and nothing is left in the scrollback.
        assert chat.said.count("\n闻啼鸟。夜来风雨声，花落知多少。\n") <= 2
        chat.ask("code", "works.")
        chat.see("Here:", "", "```python", "def f():", "    return 1", "```", "", "It works.")
        assert "\x1b[" in chat.raw.rpartition("return")[0][-12:], "code has no colours"
        chat.ask("long", "Line 60 of many.")
        assert all(chat.said.count(f"Line {n} of many.") >= 1 for n in range(1, 61))
        chat.ask("evil", "html")
        assert "red ␛[31malert␛[2J and <b>html</b>" in "\n".join(chat.rows)
    with place.chat("--no-save", columns=40) as chat:
        chat.wait("Ctrl-D leaves", prompt=True)
        chat.ask("poem", "Done.")
        chat.see(
            "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落",
            "知多少。春眠不觉晓，处处闻啼鸟。夜来风雨",
            "声，花落知多少。春眠不觉晓，处处闻啼鸟。",
        )
        chat.ask("/stats", "context")
        chat.ask("/help", "Ctrl-D leaves")
        assert max(map(len, chat.said.split("\n"))) <= 40


def test_reasoning_is_dimmed_and_can_be_folded(place: Place) -> None:
    with place.chat("--stats") as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("think", "four")
        assert "\x1b[2mTwo and two, hm." in chat.raw
        chat.see("Two and two, hm.", "", "It is four.")
        assert "context" in chat.said
        assert "2 of them cached" in chat.said
        chat.ask("/think hide", "folded")
        chat.ask("raw think", "Seven.")
        chat.see("Seven.")
        assert "▸ thought" in chat.said
        assert "Let me see." not in chat.said
        chat.ask("/think show", "Let me see.")
        # Earlier reasoning is not sent again.
        chat.ask("last", "last")
        assert place.asked[-2] == ("assistant", "Seven.")


def test_a_reply_can_be_written_anew_taken_back_and_edited(place: Place, tmp_path: Path) -> None:
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nprintf "edited question" > "$1"\n')
    editor.chmod(0o755)
    with place.chat(EDITOR=str(editor)) as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("one", "one")
        place.engine.script["one"] = ["another"]
        chat.ask("/regen", "another")
        place.engine.script["one"] = ["a third"]
        chat.send("/regen 2\r")
        chat.wait("keep which: 1, 2, none?")
        chat.send("2\r")
        chat.wait("reply 2 is kept", prompt=True)
        chat.ask("two", "two")
        assert place.asked[:2] == [("user", "one"), ("assistant", "a third")]
        chat.ask("/edit", "edited question")
        assert place.asked[2:] == [("user", "edited question")]
        chat.ask("/undo", "taken back: edited question")
        chat.ask("/undo", "taken back: one")
        chat.ask("/undo", "nothing was asked yet")
        chat.ask("/system Speak like a pirate.", "is set")
        chat.ask("/set temperature 0", "temperature is 0")
        chat.ask('/set stop ["END"]', "stop is")
        chat.ask('/json {"type": "object"}', "follow the schema")
        chat.ask("three", "three")
        assert place.asked == [("system", "Speak like a pirate."), ("user", "three")]
        sampling = place.engine.requests[-1].sampling
        assert (sampling.temperature, sampling.stop) == (0.0, ("END",))
        assert sampling.grammar is not None
        chat.ask("/params", "frequency_penalty")
        chat.ask("/clear", "the old one is kept: /resume")


def test_a_conversation_goes_to_files_and_the_clipboard(place: Place, tmp_path: Path) -> None:
    saved, exported = tmp_path / "talk.json", tmp_path / "good.jsonl"
    with place.chat("--system", "Be brief.") as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("code", "works.")
        chat.ask("/copy", "on the clipboard")
        sequence = chat.raw.rpartition("\x1b]52;c;")[2].partition("\a")[0]
        assert base64.b64decode(sequence).decode() == "".join(SCRIPT["code"])  # type: ignore[arg-type]
        chat.ask("/copy code", "on the clipboard")
        sequence = chat.raw.rpartition("\x1b]52;c;")[2].partition("\a")[0]
        assert base64.b64decode(sequence).decode() == "def f():\n    return 1"
        chat.ask(f"/export {exported}", "row 1")
        chat.send("slow\r")
        chat.see("Once upon a time")
        chat.interrupt()
        chat.wait("[stopped", prompt=True)
        chat.ask(f"/export {exported}", "row 1")
        chat.ask(f"/save {saved}", "4 turns are in")
        chat.ask("/clear", "a new conversation")
        chat.ask("another", "another")
        chat.ask(f"/export {exported}", "row 2")
        chat.ask(f"/load {saved}", "[stopped]")
        chat.ask("go on", "go on")
        assert place.asked[0] == ("system", "Be brief.")
        assert len(place.asked) == 6
    first, second = map(json.loads, exported.read_text().splitlines())
    assert [m["role"] for m in first["messages"]] == ["system", *["user", "assistant"] * 2]
    assert [m.get("weight") for m in first["messages"]] == [None, None, None, None, 0]
    assert second["messages"][-1] == {"role": "assistant", "content": "another"}
    problems: list[Problem] = []
    examples = list(read_examples([str(exported)], on_problem=problems.append))
    assert problems == []
    assert examples[0].messages[-1] == Message("assistant", "Once upon a time ")
    assert examples[0].masked == (4,)


def test_what_was_written_before_is_found_again_and_words_are_completed(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "a-long-name.txt").write_text("inside")
    with place.chat() as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("the first question", "first")
    with place.chat() as chat:
        chat.wait("/help lists", prompt=True)
        chat.send("\x12first")  # Ctrl-R
        chat.see(">>> the first question", "I-search backward: first")
        chat.send("\r")
        chat.ask("", "question")
        assert place.asked == [("user", "the first question")]
        chat.send("/para")
        chat.see("         /params  show how replies are sampled")
        chat.send("\t")
        chat.see(">>> /params")
        chat.ask("", "frequency_penalty")
        chat.send(f"/read {tmp_path}/a-l")
        chat.wait("a-long-name.txt")
        chat.send("\t")
        chat.wait("ong-name.txt")
        chat.ask("", "goes with the next question")
    assert (place.home / "chat-history").stat().st_mode & 0o077 == 0


def test_answers_alone_go_to_a_file(place: Place, tmp_path: Path) -> None:
    words = f"{sys.executable} -m llmctl chat --base-url {place.url} > {tmp_path}/out.txt"
    with Terminal(command=["sh", "-c", words], LLMCTL_HOME=str(place.home)) as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("poem", ">>> poem")
        chat.ask("think", "Two and two, hm.")
        chat.send("\x04")
        assert chat.end() == 0
    poem, thought = "".join(map(str, SCRIPT["poem"])), "It is **four**."
    assert (tmp_path / "out.txt").read_text() == f"{poem}\n{thought}\n"


@pytest.mark.parametrize("variable", ["TERM=dumb", "NO_COLOR=1"])
def test_a_terminal_that_can_do_less_is_asked_for_less(place: Place, variable: str) -> None:
    name, _, value = variable.partition("=")
    with place.chat(columns=80, rows=24, **{name: value}) as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("code", "works.")
        chat.send("/exit\r")
        assert chat.end() == 0
        if name == "TERM":
            assert "\x1b" not in chat.raw.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")
        else:
            coloured = r"\x1b\[(?:\d+;)*3\d"
            assert re.search(coloured, chat.raw) is None
