"""What do the commands do that change or show what was said?"""

import json
import sys
from typing import Final

from llmctl.cli import render
from llmctl.cli.repl.external_tools import copy_to_clipboard, edit_text
from llmctl.cli.repl.repl import ChatRepl
from llmctl.cli.repl.reply_view import create_reply_view
from llmctl.errors import ConfigError, LlmctlError
from llmctl.services.chat import context_window, files
from llmctl.services.chat.conversation import Conversation, Turn
from llmctl.types import GenerationChunk

_MOST_VARIANTS: Final = 9
_LISTED: Final = 10
_MARKS: Final = {
    "stopped": "stopped",
    "failed": "broken off",
    "cut": "cut off",
}


def retry(talk: ChatRepl, _: str) -> None:
    """Ask the last question again."""
    talk.answer(talk.session.regenerate)


def regen(talk: ChatRepl, argument: str) -> None:
    """Write the last reply anew, once or several times to choose from."""
    count = 1
    if argument:
        if not argument.isdecimal() or not 1 <= int(argument) <= _MOST_VARIANTS:
            raise ConfigError(f"/regen {argument}: it must be a number from 1 to {_MOST_VARIANTS}")
        count = int(argument)
    session = talk.session
    question = session.last_question()
    if count == 1:
        talk.answer(lambda: session.regenerate(variant=int(question.at * 1000) % 2**31 + 1))
        return
    if session.sampling.temperature == 0:
        raise ConfigError(
            "at temperature 0 every reply is the same", hint="/set temperature 0.7, then /regen"
        )
    replies = []
    for number in range(1, count + 1):
        talk.display.say(f"── {number} of {count}")
        reply, _, failure = talk.watch(lambda n=number: session.regenerate(variant=n), keep=False)  # type: ignore[misc]
        if failure is not None:
            talk.display.error(str(failure), failure.hint)
        if reply is None or reply.turn is None or reply.state in ("stopped", "failed"):
            talk.display.say("[stopped]")
            break
        replies.append(reply)
    if not replies:
        raise LlmctlError("no new reply is there to choose; the old one stays")
    words = [*map(str, range(1, len(replies) + 1)), "none"]
    choice = talk.reader.choose(f"keep which: {', '.join(words)}? ", words)
    if choice == "none":
        talk.display.say("the old reply stays")
        return
    talk.session.keep(replies[int(choice) - 1])
    talk.display.say(f"reply {choice} is kept")


def undo(talk: ChatRepl, _: str) -> None:
    """Take back the last question and its reply."""
    gone = talk.session.undo()
    talk.display.say_line(f"taken back: {gone.message.content}")


def edit(talk: ChatRepl, _: str) -> None:
    """Change the last question in an editor and ask it in its old place."""
    conversation = talk.session.conversation
    before = talk.session.last_question().message.content if conversation.turns else ""
    text = edit_text(talk.unsent or before)
    if not text or text == before.strip():
        talk.unsent = ""
        talk.display.say("nothing was changed")
        return
    talk.unsent = text
    if conversation.turns:
        talk.session.change(conversation.without_question())
    try:
        if talk.ask(text):
            talk.unsent = ""
    finally:
        if talk.unsent:
            if conversation.turns:
                talk.session.change(conversation)
            talk.display.say("all is as it was; the next /edit begins with what you wrote")


def clear(talk: ChatRepl, _: str) -> None:
    """Begin a new conversation."""
    old = talk.session.conversation
    talk.session.begin()
    talk.attached.clear()
    kept = f"; the old one is kept: /resume {old.id}" if old.version else ""
    talk.display.say(f"a new conversation{kept}")


def drop(talk: ChatRepl, argument: str) -> None:
    """Keep the model from seeing the oldest turns."""
    conversation = talk.session.conversation
    begin = _begin(conversation, argument)
    context_window.drop_turns(talk.session, begin)
    talk.display.say(f"the model no longer sees the oldest {begin} turns; /history does")


def summarise(talk: ChatRepl, argument: str) -> None:
    """Let the model sum up the oldest turns and see the summary in their place."""
    talk.summarise(_begin(talk.session.conversation, argument))


def _begin(conversation: Conversation, argument: str) -> int:
    """Return where what stays begins: after so many exchanges, or the older half."""
    seen = len(conversation.turns) - conversation.begin
    if argument:
        most = (seen + 1) // 2
        if not argument.isdecimal() or not 1 <= int(argument) <= most:
            raise ConfigError(f"{argument!r} is no number of exchanges from 1 to {most}")
        return min(conversation.begin + 2 * int(argument), len(conversation.turns))
    if seen < 2:
        raise ConfigError("there is nothing yet that could be left out")
    return context_window.middle_turn(conversation)


def history(talk: ChatRepl, _: str) -> None:
    """Show all that was said."""
    conversation = talk.session.conversation
    if conversation.system:
        talk.display.say(f"system: {conversation.system}")
    for index, turn in enumerate(conversation.turns):
        if index == conversation.begin and index:
            seen = f": {conversation.summary}" if conversation.summary else ""
            talk.display.say(f"── the model no longer sees what is above{seen}")
        show_turn(talk, turn)
    if not conversation.turns:
        talk.display.say("nothing was said yet")


def show_turn(talk: ChatRepl, turn: Turn) -> None:
    """Show a question or a reply as it was shown when it came."""
    text = turn.message.content
    if turn.is_question:
        talk.display.say("\n".join(f">>> {line}" for line in text.split("\n")), "bold")
        return
    view = create_reply_view(talk.display, as_it_is=_is_json(text))
    view.feed(GenerationChunk("", reasoning=turn.message.reasoning or ""))
    view.feed(GenerationChunk(text))
    view.end()
    if turn.state != "whole":
        talk.display.say(f"[{_MARKS[turn.state]}]")


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


def resume(talk: ChatRepl, argument: str) -> None:
    """Go on with another conversation, or list the last ones."""
    store = talk.session.store
    if store is None:
        raise ConfigError("conversations are not kept here", hint="start without --no-save")
    if not argument:
        for listed in store.list(_LISTED):
            talk.display.say_line(
                f"{listed.id}  {render.format_day(listed.updated):>11}  {listed.title}"
            )
        talk.display.say("/resume ID goes on with one")
        return
    talk.session.begin(store.read(argument))
    show_last_turns(talk)


def show_last_turns(talk: ChatRepl) -> None:
    """Say which conversation goes on, and show its last turns."""
    conversation = talk.session.conversation
    talk.display.say(f"conversation {conversation.id}, {len(conversation.turns)} turns")
    for turn in (
        conversation.turns[-1:] if conversation.pending_question else conversation.turns[-2:]
    ):
        show_turn(talk, turn)
    if conversation.pending_question:
        talk.display.say("[no reply yet; /retry asks again]")


def copy(talk: ChatRepl, argument: str) -> None:
    """Put the last reply, or the last code in it, on the clipboard."""
    reply = talk.session.conversation.last_reply
    if reply is None:
        raise ConfigError("there is no reply yet")
    text = reply.message.content.strip()
    if argument == "code":
        blocks = files.code_blocks(text)
        if not blocks:
            raise ConfigError("the last reply has no code block")
        text = blocks[-1]
    elif argument:
        raise ConfigError(f"/copy {argument}: only /copy or /copy code")
    terminal = sys.stdout if sys.stdout.isatty() else sys.stderr
    way = copy_to_clipboard(text, terminal)
    talk.display.say(f"{len(text):,} characters are on the clipboard, by {way}")
