"""`llmctl chat`: talk to a model, turn by turn or once."""

import sys
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated

import typer

from llmctl.cli import options, render
from llmctl.errors import ConfigError, LlmctlError

if TYPE_CHECKING:
    from llmctl.services.chat import ChatSession

HELP = """/clear forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops a reply."""


def chat(
    question: Annotated[
        str | None, typer.Argument(help="Answered once; without it, a conversation begins.")
    ] = None,
    model: options.ModelOpt = options.MODEL,
    quant: options.QuantOpt = "none",
    system: Annotated[
        str | None, typer.Option("--system", "-s", help="Instruction the model is given first.")
    ] = None,
    max_tokens: options.MaxTokensOpt = None,
    temperature: options.TemperatureOpt = None,
    top_p: options.TopPOpt = None,
    top_k: options.TopKOpt = None,
    seed: options.SeedOpt = None,
    stop: options.StopOpt = None,
    device: options.DeviceOpt = "auto",
    dtype: options.DTypeOpt = "auto",
    adapter: options.AdapterOpt = None,
    chat_template: options.TemplateOpt = None,
    trust_remote_code: options.TrustOpt = False,
    allow_pickle: options.PickleOpt = False,
) -> None:
    """Talk to a model in the terminal.

    `llmctl chat "question"` and `echo question | llmctl chat` answer once: the reply on stdout,
    everything else on stderr.
    """
    spec = options.model_spec(
        model, quant, device, dtype, adapter, chat_template, trust_remote_code, allow_pickle
    )
    params = options.sampling(max_tokens, temperature, top_p, top_k, seed, stop)
    if question is not None or not sys.stdin.isatty():
        question = _question(question)

    from llmctl.services import chat as service  # torch and transformers begin here

    with render.progress() as progress:
        session = service.open_session(spec, params, system, progress)
    with session:
        if question is None:
            _converse(session)
        else:
            _reply(session, question)


def _converse(session: "ChatSession") -> None:
    with suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  line editing and history for input()
    render.engine_summary(session.info())
    render.note(HELP)
    while True:
        try:
            text = input(">>> ").strip()
        except EOFError:
            render.note("")
            return
        except KeyboardInterrupt:
            render.note("\nCtrl-D or /exit leaves")
            continue
        if text == "/exit":
            return
        if text == "/clear":
            session.clear()
            render.note("the conversation is forgotten")
        elif text == "/help":
            render.note(HELP)
        elif text.startswith("/"):
            render.show_error(f"unknown command {text.split()[0]}", HELP)
        elif text:
            try:
                _reply(session, text)
            except KeyboardInterrupt:
                render.note("[stopped]")
            except LlmctlError as error:
                render.show_error(str(error), error.hint)


def _reply(session: "ChatSession", text: str) -> None:
    with closing(session.say(text)) as pieces:
        try:
            for piece in pieces:
                render.reply_text(piece)
        finally:
            render.reply_text("\n")


def _question(given: str | None) -> str:
    """Take the question from the argument, or from what was piped in, or both below each other."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    question = "\n\n".join(part for part in (given, piped) if part)
    if not question:
        raise ConfigError("there is no question", hint='llmctl chat "your question"')
    return question
