"""The Telegram bot against a fake Bot API and a real server."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llmctl.server.app import create_app
from llmctl.server.run import Server, bind
from tests.examples.bot_api import BotAPI, bot_api
from tests.fakes import FakeEngine
from tests.server.servers import running_server, wait_until

pytest.importorskip("telegram")

BOT = Path(__file__).parent.parent.parent / "examples" / "telegram_bot.py"


@contextmanager
def bot(api: BotAPI, url: str) -> Iterator[None]:
    variables = {
        "TELEGRAM_TOKEN": "1:token",
        "TELEGRAM_API": api.url,
        "LLMCTL_URL": f"{url}/v1",
        "SYSTEM_PROMPT": "Be kind.",
    }
    process = subprocess.Popen([sys.executable, str(BOT)], env=os.environ | variables)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


def wait_for_texts(api: BotAPI, chat: int, *texts: str) -> None:
    """Wait until the bot's messages in a chat are these."""
    assert wait_until(lambda: api.texts(chat) == list(texts), within_s=20), api.texts(chat)


@pytest.mark.slow
def test_each_chat_is_its_own_conversation() -> None:
    engine = FakeEngine(("Hel", "lo"))
    with running_server(engine) as url, bot_api() as api, bot(api, url):
        api.send(7, "Hi")
        api.send(8, "Good day")
        wait_for_texts(api, 7, "Hello")
        wait_for_texts(api, 8, "Hello")
        api.send(7, "And now?")
        wait_for_texts(api, 7, "Hello", "Hello")
        api.send(7, "/reset")
        wait_for_texts(api, 7, "Hello", "Hello", "Conversation cleared.")
        api.send(7, "Who am I?")
        wait_for_texts(api, 7, "Hello", "Hello", "Conversation cleared.", "Hello")
    conversations = [[(m.role, m.content) for m in request.messages] for request in engine.requests]
    system = ("system", "Be kind.")
    assert sorted(conversations[:2]) == [[system, ("user", "Good day")], [system, ("user", "Hi")]]
    assert conversations[2] == [
        system,
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "And now?"),
    ]
    assert conversations[3] == [system, ("user", "Who am I?")]


@pytest.mark.slow
def test_an_answer_is_shown_while_generated_and_can_be_stopped() -> None:
    engine = FakeEngine(("Begun", " and ended"), hold=threading.Event())
    with running_server(engine) as url, bot_api() as api, bot(api, url):
        api.send(7, "Hi")
        wait_for_texts(api, 7, "Begun")
        api.send(7, "/stop")
        wait_for_texts(api, 7, "Begun ⏹")
        assert wait_until(lambda: engine.in_flight == 0)
        assert engine.hold is not None
        engine.hold.set()
        api.send(7, "Go on")
        wait_for_texts(api, 7, "Begun ⏹", "Begun and ended")
    assert [m.content for m in engine.requests[1].messages][1:] == ["Hi", "Begun", "Go on"]


@pytest.mark.slow
def test_edits_respect_telegrams_limits() -> None:
    engine = FakeEngine(tuple(f"word{i} " * 40 for i in range(60)))
    with running_server(engine) as url, bot_api() as api, bot(api, url):
        api.limit_next_edits = 1
        api.send(7, "Much, please")
        whole = "".join(engine.pieces)  # type: ignore[arg-type]
        assert wait_until(lambda: "".join(api.texts(7)).strip() == whole.strip(), within_s=30)
    assert all(len(text) <= 4096 for text in api.texts(7))
    assert len(api.texts(7)) > 1


@pytest.mark.slow
def test_a_restarting_server_is_retried() -> None:
    first = FakeEngine(("One",))
    sock = bind("127.0.0.1", 0)
    port = sock.getsockname()[1]
    with bot_api() as api, bot(api, f"http://127.0.0.1:{port}"):
        server = Server(create_app(first), on_deadline=first.close, drain_s=1)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        api.send(7, "Hi")
        wait_for_texts(api, 7, "One")
        server.should_exit = True
        thread.join()
        api.send(7, "Still there?")
        assert wait_until(lambda: api.texts(7) == ["One", "…"], within_s=10)
        second = FakeEngine(("Two",))
        sock = bind("127.0.0.1", port)
        server = Server(create_app(second), on_deadline=second.close, drain_s=1)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        wait_for_texts(api, 7, "One", "Two")
        server.should_exit = True
        thread.join()
