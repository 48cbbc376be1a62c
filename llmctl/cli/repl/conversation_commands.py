"""Slash commands that change or show the conversation."""

import json
import sys
from typing import Final

from llmctl.cli import render
from llmctl.cli.repl.external import copy_to_clipboard, edit_text
from llmctl.cli.repl.repl import ChatRepl, command
from llmctl.cli.repl.reply_view import create_reply_view
from llmctl.errors import ConfigError, LlmctlError
from llmctl.services.chat import context_window, files
from llmctl.services.chat.conversation import Conversation, Turn
from llmctl.types import GenerationChunk

_MAX_VARIANTS: Final = 9
_LIST_LENGTH: Final = 10
_STATE_LABELS: Final = {
    "stopped": "stopped",
    "failed": "interrupted",
    "cut": "cut off",
}


@command("retry")
def retry(repl: ChatRepl, _: str) -> None:
    """Send the last message again."""
    repl.show_reply(repl.session.regenerate)


@command("regen", "[N]")
def regen(repl: ChatRepl, argument: str) -> None:
    """Regenerate the last reply, or N replies to choose from."""
    count = 1
    if argument:
        if not argument.isdecimal() or not 1 <= int(argument) <= _MAX_VARIANTS:
            raise ConfigError(f"/regen {argument}: it must be a number from 1 to {_MAX_VARIANTS}")
        count = int(argument)
    session = repl.session
    message = session.last_user_turn()
    if count == 1:
        repl.show_reply(lambda: session.regenerate(variant=int(message.at * 1000) % 2**31 + 1))
        return
    if session.sampling.temperature == 0:
        raise ConfigError(
            "at temperature 0 every reply is the same", hint="/set temperature 0.7, then /regen"
        )
    replies = []
    for number in range(1, count + 1):
        repl.display.notice(f"── {number} of {count}")
        reply, _, failure = repl.stream_reply(
            lambda n=number: session.regenerate(variant=n),  # type: ignore[misc]
            store=False,
        )
        if failure is not None:
            repl.display.error(str(failure), failure.hint)
        if reply is None or reply.turn is None or reply.state in ("stopped", "failed"):
            repl.display.notice("[stopped]")
            break
        replies.append(reply)
    if not replies:
        raise LlmctlError("there is no new reply; the earlier one is kept")
    choices = [*map(str, range(1, len(replies) + 1)), "none"]
    choice = repl.reader.choose(f"keep which: {', '.join(choices)}? ", choices)
    if choice == "none":
        repl.display.notice("the earlier reply is kept")
        return
    repl.session.store_reply(replies[int(choice) - 1])
    repl.display.notice(f"reply {choice} is kept")


@command("undo")
def undo(repl: ChatRepl, _: str) -> None:
    """Remove the last message and its reply."""
    removed = repl.session.undo()
    repl.display.notice_line(f"removed: {removed.message.content}")


@command("edit")
def edit(repl: ChatRepl, _: str) -> None:
    """Edit the last message in $EDITOR and send it in its old place."""
    conversation = repl.session.conversation
    before = repl.session.last_user_turn().message.content if conversation.turns else ""
    text = edit_text(repl.unsent or before)
    if not text or text == before.strip():
        repl.unsent = ""
        repl.display.notice("nothing was changed")
        return
    repl.unsent = text
    if conversation.turns:
        repl.session.update_conversation(conversation.without_last_exchange())
    try:
        if repl.send(text):
            repl.unsent = ""
    finally:
        if repl.unsent:
            if conversation.turns:
                repl.session.update_conversation(conversation)
            repl.display.notice("nothing was sent; the next /edit starts with your text")


@command("clear", aliases=("new",))
def clear(repl: ChatRepl, _: str) -> None:
    """Start a new conversation."""
    old = repl.session.conversation
    repl.session.switch_conversation()
    repl.attachments.clear()
    saved = f"; the earlier one is saved: /resume {old.id}" if old.version else ""
    repl.display.notice(f"new conversation{saved}")


@command("drop", "[N]")
def drop(repl: ChatRepl, argument: str) -> None:
    """Remove the oldest N exchanges, or half, from the prompt."""
    begin = _parse_begin(repl.session.conversation, argument)
    context_window.drop_turns(repl.session, begin)
    repl.display.notice(f"the oldest {begin} turns are no longer in the prompt")


@command("summarise", "[N]", aliases=("summarize",))
def summarise(repl: ChatRepl, argument: str) -> None:
    """Replace the oldest N exchanges, or half, in the prompt with a summary."""
    repl.summarise(_parse_begin(repl.session.conversation, argument))


def _parse_begin(conversation: Conversation, argument: str) -> int:
    """Return the first turn to keep in the prompt, after N exchanges or the older half."""
    active = len(conversation.turns) - conversation.begin
    if argument:
        most = (active + 1) // 2
        if not argument.isdecimal() or not 1 <= int(argument) <= most:
            raise ConfigError(f"{argument!r} is not a number of exchanges from 1 to {most}")
        return min(conversation.begin + 2 * int(argument), len(conversation.turns))
    if active < 2:
        raise ConfigError("there are no turns to remove yet")
    return context_window.middle_turn(conversation)


@command("history")
def history(repl: ChatRepl, _: str) -> None:
    """Show the whole conversation."""
    conversation = repl.session.conversation
    if conversation.system:
        repl.display.notice(f"system: {conversation.system}")
    for index, turn in enumerate(conversation.turns):
        if index == conversation.begin and index:
            summary = f"; summary: {conversation.summary}" if conversation.summary else ""
            repl.display.notice(f"── the turns above are no longer in the prompt{summary}")
        show_turn(repl, turn)
    if not conversation.turns:
        repl.display.notice("the conversation is empty")


def show_turn(repl: ChatRepl, turn: Turn) -> None:
    """Show a stored message or reply."""
    text = turn.message.content
    if turn.is_user:
        repl.display.notice("\n".join(f">>> {line}" for line in text.split("\n")), "bold")
        return
    with create_reply_view(repl.display, raw=_is_json(text)) as view:
        view.add(GenerationChunk("", reasoning=turn.message.reasoning or ""))
        view.add(GenerationChunk(text))
    if turn.state != "whole":
        repl.display.notice(f"[{_STATE_LABELS[turn.state]}]")


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict | list)
    except ValueError:
        return False


@command("resume", "[ID]", "conversation")
def resume(repl: ChatRepl, argument: str) -> None:
    """Continue an earlier conversation, or list them."""
    store = repl.session.store
    if store is None:
        raise ConfigError("conversations are not saved", hint="start without --no-save")
    if not argument:
        for entry in store.list(_LIST_LENGTH):
            updated = render.format_day(entry.updated)
            repl.display.notice_line(f"{entry.id}  {updated:>11}  {entry.title}")
        repl.display.notice("/resume ID continues a conversation")
        return
    repl.session.switch_conversation(store.read(argument))
    show_last_turns(repl)


def show_last_turns(repl: ChatRepl) -> None:
    """Show the id of the conversation and its last exchange."""
    conversation = repl.session.conversation
    repl.display.notice(f"conversation {conversation.id}, {len(conversation.turns)} turns")
    for turn in (
        conversation.turns[-1:] if conversation.pending_message else conversation.turns[-2:]
    ):
        show_turn(repl, turn)
    if conversation.pending_message:
        repl.display.notice("[no reply yet; /retry sends the message again]")


@command("copy", "[code]", words=("code",))
def copy(repl: ChatRepl, argument: str) -> None:
    """Copy the last reply, or its last code block."""
    reply = repl.session.conversation.last_reply
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
    methods = copy_to_clipboard(text, terminal)
    repl.display.notice(f"{len(text):,} characters copied to the clipboard, by {methods}")
