"""The `llmctl chat` command: an interactive chat, or a single reply."""

import sys
from contextlib import closing
from dataclasses import asdict
from typing import Annotated

import typer

from llmctl.cli import options, render
from llmctl.errors import ConfigError
from llmctl.types import ApiEndpoint


def chat(
    context: typer.Context,
    question: Annotated[
        str | None, typer.Argument(help="Answered once; without it, a conversation begins.")
    ] = None,
    model: options.ModelOpt = options.DEFAULT_MODEL_NAME,
    base_url: options.BaseUrlOpt = None,
    api_key: options.ApiKeyOpt = None,
    quant: options.QuantOpt = "none",
    system: Annotated[
        str | None, typer.Option("--system", "-s", help="Instruction the model is given first.")
    ] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", "-f", help="Text file to go with the question; may be repeated."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the last conversation.")
    ] = False,
    id: Annotated[
        str | None,
        typer.Option("--id", help="Go on with this conversation; the beginning of its id will do."),
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="List the conversations.")] = False,
    schema: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="SCHEMA.json",
            help="Reply with JSON that follows this schema, and print nothing else; - is any JSON "
            "object. With --list: `--json -` prints JSON.",
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Write replies as they come, without Markdown.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Show a reply while it is written.")
    ] = True,
    think: Annotated[
        bool, typer.Option("--think/--no-think", help="Show reasoning, or fold it into a line.")
    ] = True,
    stats: Annotated[
        bool, typer.Option("--stats", help="Show speed, tokens and context after each reply.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save/--no-save", help="Keep the conversation in llmctl's folder.")
    ] = True,
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
    everything else on stderr. A conversation is kept as it goes; one answer alone is not, unless
    it goes on with a conversation.
    """
    if list_all:
        _show_list(as_json=schema is not None)
        return
    spec = options.model_spec(
        model, quant, device, dtype, adapter, chat_template, trust_remote_code, allow_pickle
    )
    params = options.sampling_params(max_tokens, temperature, top_p, top_k, seed, stop)
    given = options.given_options(context)
    endpoint = None
    if base_url is not None:
        options.reject_local_options(given)
        # What the environment names is a model of this machine.
        endpoint = ApiEndpoint(base_url, model if "model" in given else None, api_key)
    elif "api_key" in given:
        raise ConfigError("--api-key without a server", hint="add --base-url URL")
    going_on = resume or id is not None
    if not save and going_on:
        raise ConfigError("--no-save with a conversation that is kept", hint="leave one out")
    once = question is not None or not sys.stdin.isatty()
    if once:
        question = _question(question, attached=bool(file))

    from llmctl.cli.repl import entry
    from llmctl.cli.repl.display import Display
    from llmctl.services import chat as service  # torch and transformers begin with the engine

    display = Display(plain=plain, think=think, stats=stats, stream=stream)
    grammar = None if schema is None else service.settings.read_grammar(schema)
    attached = [service.files.read_attachment(name) for name in file or ()]
    store = service.ConversationStore() if save and (going_on or not once) else None
    conversation = service.Conversation(system=system)
    if store is not None and going_on:
        conversation = service.resume_conversation(store, id, system)
    with render.show_progress() as progress:
        session = service.open_session(
            spec,
            params,
            conversation,
            endpoint=endpoint,
            store=store,
            warn=lambda text: display.notice(text, "yellow"),
            progress=progress,
        )
    session.grammar = grammar
    with closing(session):
        if question is not None:
            entry.answer_once(session, display, service.files.with_attachments(question, attached))
        else:
            entry.run_repl(
                session, service.ModelSwitcher(session, spec, endpoint), display, attached
            )


def _question(given: str | None, *, attached: bool) -> str:
    """Take the question from the argument, or from what was piped in, or both below each other."""
    piped = "" if sys.stdin.isatty() else _piped().strip()
    question = "\n\n".join(part for part in (given, piped) if part)
    if not question and not attached:
        raise ConfigError("there is no message", hint='llmctl chat "your message"')
    return question


def _piped() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"stdin is not UTF-8 text: {error.reason} at byte {error.start:,}",
            hint="convert it first: iconv -f GBK -t UTF-8",
        ) from error


def _show_list(*, as_json: bool) -> None:
    from llmctl.services.chat import ConversationStore

    listed = ConversationStore().list()
    if as_json:
        render.print_json([asdict(each) for each in listed])
        return
    if not listed:
        render.print_note("there is no conversation yet; `llmctl chat` begins one")
        return
    rows = [[c.id, render.format_day(c.updated), str(c.turns), c.model, c.title] for c in listed]
    render.print_table(
        ["id", "last", "turns", "model", "began with"], rows, cut=["model", "began with"]
    )
