"""How is one question answered, for a person or a script?"""

import json

from llmctl.cli import render
from llmctl.cli.repl.display import Display
from llmctl.cli.repl.reply_view import create_reply_view
from llmctl.cli.repl.stats import context_warning, format_stats, length_limit_message
from llmctl.errors import LlmctlError
from llmctl.services.chat.reply import ChatReply
from llmctl.services.chat.session import ChatSession


def answer_once(session: ChatSession, display: Display, question: str) -> None:
    """Answer on stdout. With a grammar nothing but whole JSON is written there.

    Raises:
        LlmctlError: the engine failed, or what came is no JSON. What came is kept.
        KeyboardInterrupt: the person stopped it.
    """
    for note in session.info().notes:
        display.say(f"note: {note}")
    reply = session.ask(question)
    try:
        if session.grammar is None:
            _show(reply, display)
        else:
            for _ in reply:
                pass
    finally:
        turn = session.keep(reply)
    if session.grammar is not None:
        _write_json(
            turn.message.content if turn else "", cut=turn is not None and turn.state == "cut"
        )
    elif turn is None:
        render.print_line("")
        display.say("the model said nothing")
    elif turn.state == "cut":
        display.say(
            f"[{length_limit_message(reply, session.sampling.max_new_tokens, '--max-tokens')}]"
        )
    if turn is not None and turn.figures is not None:
        if display.stats:
            display.say(format_stats(turn.figures, display.err.width))
        if full := context_warning(turn.figures):
            display.say(f"{full}: `llmctl chat --resume`, then /summarise or /drop, makes room")


def _show(reply: ChatReply, display: Display) -> None:
    view = create_reply_view(display)
    try:
        for chunk in reply:
            view.feed(chunk)
    finally:
        view.end()


def _write_json(text: str, *, cut: bool) -> None:
    try:
        json.loads(text)
    except ValueError as error:
        if cut:
            raise LlmctlError(
                "the reply was cut off before its JSON was whole",
                hint="allow more with --max-tokens, or ask for less",
            ) from error
        raise LlmctlError(
            f"the reply is no JSON: {error}", hint="does this server know response_format?"
        ) from error
    render.print_line(text)
