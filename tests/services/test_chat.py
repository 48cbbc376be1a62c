"""What a conversation is, keeps and survives, without a terminal."""

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


def talked(*pairs: tuple[str, str], system: str | None = None) -> Conversation:
    conversation = Conversation(system=system)
    for question, reply in pairs:
        turn = Turn(Message("assistant", reply), model="m", figures=ReplyStats(1.0, 0.5, 9))
        conversation = conversation.asked(question).with_reply(turn)
    return conversation


def test_a_conversation_survives_being_stored_and_read(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "c.db")
    first = store.save(talked(("one", "1"), ("two", "2"), system="s"), now=1.0)
    longer = store.save(first.asked("three"), now=2.0)
    shorter = store.save(longer.without_question().without_reply(), now=3.0)
    again = ConversationStore(tmp_path / "c.db")
    assert again.read(first.id[:5]) == shorter
    assert [turn.message.content for turn in shorter.turns] == ["one", "1", "two"]
    assert again.list()[0].turns == 3
    with pytest.raises(ConfigError):
        again.read("zz")


def test_the_store_is_readable_by_its_owner_alone_and_writes_ahead(tmp_path: Path) -> None:
    file = tmp_path / "c.db"
    ConversationStore(file).save(talked(("one", "1")), now=1.0)
    assert file.stat().st_mode & 0o077 == 0
    assert sqlite3.connect(file).execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_store_that_cannot_be_used_costs_no_conversation(tmp_path: Path) -> None:
    file = tmp_path / "c.db"
    file.write_text("this is no database at all, but it is long enough to be read as one" * 20)
    warnings: list[str] = []
    session = ChatSession(FakeEngine(), store=ConversationStore(file), warn=warnings.append)
    reply = session.ask("hi")
    assert "".join(chunk.text for chunk in reply) == "Hello"
    session.keep(reply)
    assert [turn.message.content for turn in session.conversation.turns] == ["hi", "Hello"]
    assert all(warning.startswith("not saved: ") for warning in warnings)
    assert warnings


def test_a_question_without_reply_gives_way_and_a_new_reply_takes_the_old_place() -> None:
    conversation = talked(("one", "1")).asked("lost").asked("two")
    assert [m.content for m in conversation.messages()] == ["one", "1", "two"]
    answered = conversation.with_reply(Turn(Message("assistant", "2")))
    again = answered.with_reply(Turn(Message("assistant", "zwei")))
    assert [m.content for m in again.messages()] == ["one", "1", "two", "zwei"]
    assert [m.content for m in again.without_question().messages()] == ["one", "1"]


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ([], "no JSON object"),
        ({}, "neither turns nor messages"),
        ({"turns": [{"role": "user"}]}, "turn 1 has no text"),
        ({"turns": [{"role": "robot", "content": "x"}]}, "turn 1 has the role 'robot'"),
        ({"turns": [{"role": "user", "content": "x"}] * 2}, "turn 2 is the user's, out of turn"),
        ({"turns": [], "begin": 3}, "begins at 3"),
        ({"turns": [{"role": "user", "content": "x", "figures": {"odd": 1}}]}, "turn 1 cannot"),
    ],
)
def test_a_broken_file_is_refused_with_the_place(plain: object, said: str) -> None:
    with pytest.raises(LlmctlError, match=said):
        conversation_from_dict(plain)


def test_openai_messages_can_be_gone_on_with() -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a", "reasoning_content": "r"},
    ]
    read = conversation_from_dict({"messages": messages})
    assert (read.system, read.turns[1].message) == ("s", Message("assistant", "a", reasoning="r"))
    assert conversation_from_dict(conversation_to_dict(read)) == read


def test_what_does_not_fit_is_told_and_dropping_or_summing_up_makes_it_fit() -> None:
    # The fake counts characters, and has room for 128.
    pairs = [(f"question {n}", "x" * 20) for n in range(3)]
    session = ChatSession(FakeEngine(), SamplingParams(max_new_tokens=30), talked(*pairs))
    assert context_window.find_overflow(session, "short") is None
    lack = context_window.find_overflow(session, "a longer question?")
    assert lack is not None
    assert (lack.begin, lack.dropped) == (2, 2)
    context_window.drop_turns(session, lack.begin)
    assert context_window.find_overflow(session, "a longer question?") is None
    assert len(session.conversation.turns) == 6
    context_window.drop_turns(session, 6)
    assert [m.content for m in session.conversation.without_reply().messages()] == ["question 2"]
    context_window.drop_turns(session, lack.begin)
    with pytest.raises(LlmctlError, match="too long"):
        context_window.find_overflow(session, "x" * 200)
    context_window.summarise_turns(session, 4)
    opening, *rest = session.conversation.messages()
    assert opening.role == "system"
    assert opening.content.endswith("Hello")
    assert [m.content for m in rest] == ["question 2", "x" * 20]


def test_a_setting_is_checked_and_given_back() -> None:
    sampling = set_parameter(SamplingParams(), "Top-K", "0")
    assert sampling.top_k == 0
    assert list_parameters(sampling)["top_k"] == "0"
    assert set_parameter(sampling, "top_k", "default").top_k is None
    assert set_parameter(sampling, "stop", '["a", "\\n"]').stop == ("a", "\n")
    for name, value, said in (
        ("tempature", "1", "did you mean temperature"),
        ("temperature", "warm", "must be a number between 0 and 2"),
        ("max_tokens", "0", "max_tokens is 0; it must be between 1"),
        ("seed", "1.5", "whole number"),
        ("stop", "[1]", "list of texts"),
    ):
        with pytest.raises(ConfigError, match=said):
            set_parameter(sampling, name, value)
    assert read_grammar("-").kind == "json_object"


def test_earlier_thoughts_are_kept_with_the_reply() -> None:
    engine = FakeEngine((ResponseDelta(reasoning="hm"), "yes"))
    session = ChatSession(engine)
    reply = session.ask("well?")
    list(reply)
    turn = session.keep(reply)
    assert turn is not None
    assert turn.message == Message("assistant", "yes", reasoning="hm")
    assert turn.figures is not None
    assert turn.figures.prompt_tokens == 7


def test_a_file_keeps_its_fence_whatever_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("print('```')\n")
    block = files.read_attachment(str(tmp_path / "a.py")).block()
    assert block == "a.py:\n````python\nprint('```')\n````"
    (tmp_path / "big.txt").write_bytes(b"x" * (files.MAX_ATTACHMENT_BYTES + 1))
    with pytest.raises(ConfigError, match="at most 8 MB"):
        files.read_attachment(str(tmp_path / "big.txt"))


def test_a_conversation_with_every_kind_of_line_end_comes_back_from_its_files(
    tmp_path: Path,
) -> None:
    said = "first\u2028second\u0085third\x0cfourth"
    conversation = Conversation().asked(said).with_reply(Turn(Message("assistant", said), at=1.0))
    for name in ("good.jsonl", "talk.json"):
        target = tmp_path / name
        for _ in range(2):
            write = files.export_conversation if name.endswith("l") else files.save_conversation
            write(conversation, str(target))
        assert [t.message.content for t in files.load_conversation(str(target)).turns] == [
            said,
            said,
        ]
    assert (tmp_path / "talk.json").stat().st_mode & 0o077 == 0


def test_an_export_leaves_other_rows_alone(tmp_path: Path) -> None:
    target = tmp_path / "good.jsonl"
    target.write_text('{"messages": [], "id": "mine"}\n')
    conversation = talked(("one", "1"))
    assert files.export_conversation(conversation, str(target)) == 2
    assert files.export_conversation(replace(conversation, system="s"), str(target)) == 2
    assert len(target.read_text().splitlines()) == 2
    target.write_text("no row\n")
    with pytest.raises(ConfigError, match=":1 is no row"):
        files.export_conversation(conversation, str(target))
    assert target.read_text() == "no row\n"
