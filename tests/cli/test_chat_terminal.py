"""`llmctl chat` on a pseudo-terminal, with a scripted server."""

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from llmctl.services.chat.store import ConversationStore
from tests.cli.chat_server import SCRIPT, ChatServer
from tests.cli.terminal import Terminal

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")


def test_pasted_and_multiline_input_is_one_message(chat_server: ChatServer) -> None:
    lines = ["/etc/hosts is the file", *(f"line {n}" for n in range(2, 200)), "ends with \\"]
    with chat_server.chat() as chat:
        chat.wait("/help lists", prompt=True)
        chat.paste("\n".join(lines))
        chat.see("... ends with \\")
        assert not chat_server.engine.requests
        chat.ask("\b.", "ends with .")
        assert chat_server.last_messages == [("user", "\n".join([*lines[:-1], "ends with ."]))]
        chat.paste("/help\nis a command")
        chat.ask("", "is a command")
        assert chat_server.last_messages[-1] == ("user", "/help\nis a command")
        chat.send("first \\\r")
        chat.see(">>> first", "...")
        chat.send("second\x1b\r")
        chat.see("... second", "...")
        chat.ask("third", "third")
        assert chat_server.last_messages[-1] == ("user", "first \nsecond\nthird")
        chat.send('"""one\r')
        chat.see('>>> """one', "...")
        chat.send("\r")
        chat.see('>>> """one', "...", "...")
        chat.ask('two"""', "two")
        assert chat_server.last_messages[-1] == ("user", "one\n\ntwo")
        chat.ask("/usr/bin/env is a path", "is a path")
        assert chat_server.last_messages[-1] == ("user", "/usr/bin/env is a path")
        chat.ask("//help", "/help")
        assert chat_server.last_messages[-1] == ("user", "/help")


def test_paste_during_a_reply_is_one_message_afterwards(chat_server: ChatServer) -> None:
    lines, go_on = ["first", "/clear", *("x" * 90 for _ in range(60)), "last"], threading.Event()
    chat_server.engine.script["wait"] = ["It ", go_on, "ends."]
    with chat_server.chat("--no-save") as chat:
        chat.wait("/help lists", prompt=True)
        chat.send("wait\r")
        chat.see("It")
        chat.paste("\n".join(lines))
        go_on.set()
        chat.see("... last")
        chat.ask("!", "last!")
        assert chat_server.last_messages[-1] == ("user", "\n".join([*lines, ""])[:-1] + "!")


@pytest.mark.slow
def test_ctrl_c_stops_the_reply_and_keeps_the_partial_text(chat_server: ChatServer) -> None:
    with chat_server.chat() as chat:
        chat.wait("/help lists", prompt=True)
        chat.send("slow\r")
        chat.see("Once upon a time")
        chat.send("\x03\x03\x03")
        chat.wait("[stopped; the partial reply is kept]", prompt=True)
        chat.ask("and then?", "and then?")
        assert chat_server.last_messages == [
            ("user", "slow"),
            ("assistant", "Once upon a time "),
            ("user", "and then?"),
        ]
        # While nothing has come yet.
        chat.send("mute\r")
        chat.wait("… ")
        chat.interrupt()
        chat.wait("[no reply; /retry sends the message again]", prompt=True)
        chat.ask("hello", "hello")
        assert ("user", "mute") not in chat_server.last_messages
        # At the prompt: a line is cleared, and can be had back; an empty one gives a hint.
        chat.send("half a thou")
        chat.wait("half a thou")
        chat.interrupt()
        chat.send("\x03")
        chat.wait("Ctrl-D or /exit exits", prompt=True)
        chat.ask("\x1b[A", "half a thou")
        assert chat_server.last_messages[-1] == ("user", "half a thou")
        chat.send("\x04")
        assert chat.end() == 0


@pytest.mark.slow
def test_killed_chat_is_resumed_and_concurrent_changes_do_not_overwrite(
    chat_server: ChatServer,
) -> None:
    with chat_server.chat("--system", "Be brief.") as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("one", "one")
        chat.ask("two", "two")
        chat.send("slow\r")
        chat.see("Once upon a time")
        os.kill(chat.pid, signal.SIGKILL)
        chat.end()
    with chat_server.chat("--resume") as chat:
        chat.wait("[no reply yet; /retry sends the message again]", prompt=True)
        assert "5 turns" in chat.raw
        chat_server.engine.script["slow"] = ["The end."]
        chat.ask("/retry", "The end.")
        assert chat_server.last_messages == [
            ("system", "Be brief."),
            *[(role, word) for word in ("one", "two") for role in ("user", "assistant")],
            ("user", "slow"),
        ]
        # The same conversation in a second window does not overwrite the first one's turns.
        with chat_server.chat("--resume", "--plain") as other:
            other.wait("The end.", prompt=True)
            other.ask("from the other", "from the other")
        chat.ask("from here", "was changed in another window")
        chat.send("/exit\r")
        assert chat.end() == 0
    store = ConversationStore(chat_server.home / "conversations.db")
    first, second = store.list()
    assert {first.turns, second.turns} == {8}
    last = {store.read(each.id).turns[-1].message.content for each in (first, second)}
    assert last == {"from here", "from the other"}


@pytest.mark.slow
def test_failed_or_lost_server_keeps_the_partial_reply(chat_server: ChatServer) -> None:
    with chat_server.chat() as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("fail", "[interrupted; the partial reply is kept, /retry sends the message again]")
        assert "the GPU fell off the bus" in chat.output
        chat_server.engine.script["fail"] = ["It ended well."]
        chat.ask("/retry", "It ended well.")
        chat.ask("/history", "It ended well.")
        assert "It began" not in chat.output
    with breaking_server() as url, Terminal(
        "chat", "--base-url", url, "-m", "any", LLMCTL_HOME=str(chat_server.home)
    ) as chat:  # fmt: skip
        chat.wait("/help lists", prompt=True)
        chat.ask("hello", "/retry sends the message again]")
        assert "disconnected before the reply was complete" in chat.output.replace("\n", " ")
        chat.ask("/history", "half a rep")
        chat.ask("/retry", "[no reply; the earlier one is kept]")
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


@pytest.mark.slow
def test_history_search_and_completion(chat_server: ChatServer, tmp_path: Path) -> None:
    (tmp_path / "a-long-name.txt").write_text("inside")
    with chat_server.chat() as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("the first question", "first")
    with chat_server.chat() as chat:
        chat.wait("/help lists", prompt=True)
        chat.send("\x12first")  # Ctrl-R
        chat.see(">>> the first question", "I-search backward: first")
        chat.send("\r")
        chat.ask("", "question")
        assert chat_server.last_messages == [("user", "the first question")]
        chat.send("/para")
        chat.see("         /params  Show the sampling parameters")
        chat.send("\t")
        chat.see(">>> /params")
        chat.ask("", "frequency_penalty")
        chat.send(f"/read {tmp_path}/a-l")
        chat.wait("a-long-name.txt")
        chat.send("\t")
        chat.wait("ong-name.txt")
        chat.ask("", "is sent with the next message")
    assert (chat_server.home / "chat-history").stat().st_mode & 0o077 == 0


def test_only_replies_go_to_redirected_stdout(chat_server: ChatServer, tmp_path: Path) -> None:
    words, home = ("chat", "--base-url", chat_server.url), str(chat_server.home)
    with Terminal(*words, stdout=tmp_path / "out.txt", LLMCTL_HOME=home) as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("poem", ">>> poem")
        chat.ask("think", "Two and two, hm.")
        chat.send("\x04")
        assert chat.end() == 0
    poem, thought = "".join(map(str, SCRIPT["poem"])), "It is **four**."
    assert (tmp_path / "out.txt").read_text() == f"{poem}\n{thought}\n"


def test_ctrl_c_during_a_single_reply_exits_130(chat_server: ChatServer) -> None:
    with chat_server.chat("slow") as chat:
        chat.see("Once upon a time")
        chat.interrupt()
        assert chat.end() == 130
        assert "Traceback" not in chat.raw
    assert not (chat_server.home / "conversations.db").exists()


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["TERM=dumb", "NO_COLOR=1"])
def test_dumb_terminal_and_no_color_are_respected(chat_server: ChatServer, variable: str) -> None:
    name, _, value = variable.partition("=")
    with chat_server.chat(stdout=None, columns=80, rows=24, **{name: value}) as chat:
        chat.wait("/help lists", prompt=True)
        chat.ask("code", "works.")
        chat.send("/exit\r")
        assert chat.end() == 0
        if name == "TERM":
            assert "\x1b" not in chat.raw.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")
        else:
            coloured = r"\x1b\[(?:\d+;)*3\d"
            assert re.search(coloured, chat.raw) is None
