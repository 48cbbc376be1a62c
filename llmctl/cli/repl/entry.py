"""Entry points of the chat: the interactive REPL, and a single reply for a script."""

import json
from collections.abc import Sequence

from llmctl.cli import render
from llmctl.cli.repl.display import (
    Display,
    context_warning,
    format_stats,
    length_limit_message,
)
from llmctl.cli.repl.reply_view import create_reply_view
from llmctl.errors import LlmctlError
from llmctl.services.chat.files import Attachment
from llmctl.services.chat.session import ChatSession
from llmctl.services.chat.switching import ModelSwitcher


def run_repl(
    session: ChatSession,
    switcher: ModelSwitcher,
    display: Display,
    attachments: Sequence[Attachment] = (),
) -> None:
    """Chat with the user at a terminal until they exit.

    Args:
        attachments: files to send with the first message.
    """
    # prompt_toolkit begins here; a single reply does not need it
    from llmctl.cli.repl.commands import CommandCompleter
    from llmctl.cli.repl.conversation_commands import show_last_turns
    from llmctl.cli.repl.line_input import create_line_reader
    from llmctl.cli.repl.repl import ChatRepl

    reader = create_line_reader(
        CommandCompleter(session, switcher), history=session.store is not None
    )
    repl = ChatRepl(session, switcher, display, reader)
    repl.attachments += attachments
    repl.show_model()
    display.notice("/help lists the commands; Ctrl-C stops a reply, Ctrl-D exits")
    if session.conversation.turns:
        show_last_turns(repl)
    for file in attachments:
        display.notice(f"{file.name} is sent with the first message")
    repl.run()
    if session.conversation.version:
        display.notice(f"`llmctl chat --id {session.conversation.id}` continues this conversation")


def answer_once(session: ChatSession, display: Display, message: str) -> None:
    """Write the reply to one message to stdout; with a grammar, only complete JSON.

    Raises:
        LlmctlError: the engine failed, or the reply is not JSON. A partial reply is stored.
        KeyboardInterrupt: the user stopped the reply.
    """
    for note in session.info().notes:
        display.notice(f"note: {note}")
    reply = session.send(message)
    try:
        if session.grammar is None:
            with create_reply_view(display) as view:
                for chunk in reply:
                    view.add(chunk)
        else:
            for _ in reply:
                pass
    finally:
        turn = session.store_reply(reply)
    is_cut = turn is not None and turn.state == "cut"
    if session.grammar is not None:
        _write_json(turn.message.content if turn else "", is_cut=is_cut)
    elif turn is None:
        render.print_line("")
        display.notice("the model returned an empty reply")
    elif is_cut:
        limit = session.sampling.max_new_tokens
        display.notice(f"[{length_limit_message(reply, limit, '--max-tokens')}]")
    if turn is not None and turn.figures is not None:
        if display.stats:
            display.notice(format_stats(turn.figures))
        if warning := context_warning(turn.figures):
            display.notice(f"{warning}: `llmctl chat --resume`, then /summarise or /drop")


def _write_json(text: str, *, is_cut: bool) -> None:
    try:
        json.loads(text)
    except ValueError as error:
        if is_cut:
            raise LlmctlError(
                "the reply was cut off before its JSON was complete",
                hint="raise --max-tokens, or ask for less",
            ) from error
        raise LlmctlError(
            f"the reply is not valid JSON: {error}",
            hint="does the server support response_format?",
        ) from error
    render.print_line(text)
