"""Conversations, their store, files and context window."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from llmctl.engine.chat.response_delta import ResponseDelta
from llmctl.errors import ConfigError, LlmctlError
from llmctl.services.chat import Conversation, ConversationStore, context_window, files
from llmctl.services.chat.conversation import (
    ReplyStats,
    Turn,
    conversation_from_dict,
    conversation_to_dict,
)
from llmctl.services.chat.session import ChatSession
from llmctl.services.chat.settings import list_parameters, read_grammar, set_parameter
from llmctl.types import Message, SamplingParams
from tests.fakes import FakeEngine


def make_conversation(*pairs: tuple[str, str], system: str | None = None) -> Conversation:
    conversation = Conversation(system=system)
    for question, reply in pairs:
        turn = Turn(Message("assistant", reply), model="m", figures=ReplyStats(1.0, 0.5, 9))
        conversation = conversation.with_message(question).with_reply(turn)
    return conversation


def test_store_round_trips_a_conversation(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "c.db")
    first = store.save(make_conversation(("one", "1"), ("two", "2"), system="s"), now=1.0)
    longer = store.save(first.with_message("three"), now=2.0)
    shorter = store.save(longer.without_last_exchange().without_reply(), now=3.0)
    again = ConversationStore(tmp_path / "c.db")
    assert again.read(first.id[:5]) == shorter
    assert [turn.message.content for turn in shorter.turns] == ["one", "1", "two"]
    assert again.list()[0].turns == 3
    with pytest.raises(ConfigError):
        again.read("zz")


def test_store_is_private_and_in_wal_mode(tmp_path: Path) -> None:
    file = tmp_path / "c.db"
    ConversationStore(file).save(make_conversation(("one", "1")), now=1.0)
    assert file.stat().st_mode & 0o077 == 0
    assert sqlite3.connect(file).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_unusable_store_warns_and_keeps_the_conversation_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "c.db"
    file.write_text("this is no database at all, but it is long enough to be read as one" * 20)
    warnings: list[str] = []
    session = ChatSession(FakeEngine(), store=ConversationStore(file), warn=warnings.append)
    reply = session.send("hi")
    assert "".join(chunk.text for chunk in reply) == "Hello"
    session.store_reply(reply)
    assert [turn.message.content for turn in session.conversation.turns] == ["hi", "Hello"]
    assert all(warning.startswith("not saved: ") for warning in warnings)
    assert warnings


def test_new_message_replaces_a_pending_one_and_new_reply_the_earlier_one() -> None:
    conversation = make_conversation(("one", "1")).with_message("lost").with_message("two")
    assert [m.content for m in conversation.messages()] == ["one", "1", "two"]
    first = conversation.with_reply(Turn(Message("assistant", "2")))
    again = first.with_reply(Turn(Message("assistant", "zwei")))
    assert [m.content for m in again.messages()] == ["one", "1", "two", "zwei"]
    assert [m.content for m in again.without_last_exchange().messages()] == ["one", "1"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "not a JSON object"),
        ({}, "neither turns nor messages"),
        ({"turns": [{"role": "user"}]}, "turn 1 has no text content"),
        ({"turns": [{"role": "robot", "content": "x"}]}, "turn 1 has the role 'robot'"),
        (
            {"turns": [{"role": "user", "content": "x"}] * 2},
            "turn 2 has the role user, out of order",
        ),
        ({"turns": [], "begin": 3}, "begin is 3"),
        ({"turns": [{"role": "user", "content": "x", "figures": {"odd": 1}}]}, "turn 1 cannot"),
    ],
)
def test_invalid_conversation_is_rejected_with_its_turn(value: object, message: str) -> None:
    with pytest.raises(LlmctlError, match=message):
        conversation_from_dict(value)


def test_openai_messages_are_read_as_a_conversation() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "r"},
    ]
    read = conversation_from_dict({"messages": messages})
    assert (read.system, read.turns[1].message) == ("s", Message("assistant", "a", reasoning="r"))
    assert conversation_from_dict(conversation_to_dict(read)) == read


def test_overflow_is_detected_and_resolved_by_drop_or_summary() -> None:
    # FakeEngine counts characters; its context has 128.
    pairs = [(f"question {n}", "x" * 20) for n in range(3)]
    session = ChatSession(
        FakeEngine(), SamplingParams(max_new_tokens=30), make_conversation(*pairs)
    )
    assert context_window.find_overflow(session, "short") is None
    overflow = context_window.find_overflow(session, "a longer question?")
    assert overflow is not None
    assert (overflow.begin, overflow.dropped) == (2, 2)
    context_window.drop_turns(session, overflow.begin)
    assert context_window.find_overflow(session, "a longer question?") is None
    assert len(session.conversation.turns) == 6
    context_window.drop_turns(session, 6)
    assert [m.content for m in session.conversation.without_reply().messages()] == ["question 2"]
    context_window.drop_turns(session, overflow.begin)
    with pytest.raises(LlmctlError, match="too long"):
        context_window.find_overflow(session, "x" * 200)
    context_window.summarise_turns(session, 4)
    opening, *rest = session.conversation.messages()
    assert opening.role == "system"
    assert opening.content.endswith("Hello")
    assert [m.content for m in rest] == ["question 2", "x" * 20]


def test_parameters_are_validated_and_unset() -> None:
    sampling = set_parameter(SamplingParams(), "Top-K", "0")
    assert sampling.top_k == 0
    assert list_parameters(sampling)["top_k"] == "0"
    assert set_parameter(sampling, "top_k", "default").top_k is None
    assert set_parameter(sampling, "stop", '["a", "\\n"]').stop == ("a", "\n")
    for name, value, message in (
        ("tempature", "1", "did you mean temperature"),
        ("temperature", "warm", "must be a number between 0 and 2"),
        ("max_tokens", "0", "max_tokens is 0; it must be between 1"),
        ("seed", "1.5", "an integer"),
        ("stop", "[1]", "list of strings"),
    ):
        with pytest.raises(ConfigError, match=message):
            set_parameter(sampling, name, value)
    assert read_grammar("-").kind == "json_object"


def test_reasoning_and_usage_are_stored_with_the_reply() -> None:
    engine = FakeEngine((ResponseDelta(reasoning="hm"), "yes"))
    session = ChatSession(engine)
    reply = session.send("well?")
    list(reply)
    turn = session.store_reply(reply)
    assert turn is not None
    assert turn.message == Message("assistant", "yes", reasoning="hm")
    assert turn.figures is not None
    assert turn.figures.prompt_tokens == 7


def test_attachment_fence_is_longer_than_any_fence_inside(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print('```')\n")
    block = files.read_attachment(str(tmp_path / "a.py")).to_markdown()
    assert block == "a.py:\n````python\nprint('```')\n````"
    (tmp_path / "big.txt").write_bytes(b"x" * (files.MAX_ATTACHMENT_BYTES + 1))
    with pytest.raises(ConfigError, match="at most 8 MB"):
        files.read_attachment(str(tmp_path / "big.txt"))


def test_all_line_separators_survive_save_and_export(
    tmp_path: Path,
) -> None:
    text = "first\u2028second\u0085third\x0cfourth"
    conversation = (
        Conversation().with_message(text).with_reply(Turn(Message("assistant", text), at=1.0))
    )
    for name in ("good.jsonl", "talk.json"):
        target = tmp_path / name
        for _ in range(2):
            write = files.export_conversation if name.endswith("l") else files.save_conversation
            write(conversation, str(target))
        assert [t.message.content for t in files.load_conversation(str(target)).turns] == [
            text,
            text,
        ]
    assert (tmp_path / "talk.json").stat().st_mode & 0o077 == 0


def test_export_keeps_other_rows(tmp_path: Path) -> None:
    target = tmp_path / "good.jsonl"
    target.write_text('{"messages": [], "id": "mine"}\n')
    conversation = make_conversation(("one", "1"))
    assert files.export_conversation(conversation, str(target)) == 2
    assert files.export_conversation(replace(conversation, system="s"), str(target)) == 2
    assert len(target.read_text().splitlines()) == 2
    target.write_text("not json\n")
    with pytest.raises(ConfigError, match=":1 is not a JSON object"):
        files.export_conversation(conversation, str(target))
    assert target.read_text() == "not json\n"
