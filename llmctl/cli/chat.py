"""The `llmctl chat` command: an interactive chat, or a single reply."""

import sys
from contextlib import closing
from dataclasses import asdict
from typing import Annotated, Any

import typer

from llmctl.cli import options, render
from llmctl.cli.config_options import given_fields, resolve_config, with_config_options
from llmctl.config.chat import ChatConfig
from llmctl.config.settings import ResolvedConfig
from llmctl.errors import ConfigError
from llmctl.types import ApiEndpoint


@with_config_options(ChatConfig)
def chat(
    context: typer.Context,
    *,
    message: Annotated[
        str | None, typer.Argument(help="Reply to this message and exit, without a chat.")
    ] = None,
    config: options.ConfigFileOpt = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", "-f", help="Text file to attach to the message; may be repeated."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the most recent conversation.")
    ] = False,
    id: Annotated[
        str | None,
        typer.Option("--id", help="Continue this conversation; a prefix of its id is enough."),
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
    **values: Any,
) -> None:
    """Chat with a model in the terminal.

    `llmctl chat "message"` and `echo message | llmctl chat` print a single reply to stdout, and
    everything else to stderr. A chat is saved after every turn; a single reply is saved only if it
    continues a conversation.
    """
    if list_all:
        _print_list(as_json=schema is not None)
        return
    resolved = resolve_config(ChatConfig, context, values, config)
    chosen = resolved.values
    spec, endpoint = chosen.model_spec(), _endpoint(resolved)
    resumes = resume or id is not None
    if not chosen.save and resumes:
        raise ConfigError("--no-save contradicts --resume and --id", hint="remove one of them")
    is_single = message is not None or not sys.stdin.isatty()
    if is_single:
        message = _read_message(message, has_files=bool(file))

    from llmctl.cli.repl import entry
    from llmctl.cli.repl.display import Display
    from llmctl.services import chat as service  # torch and transformers begin with the engine

    display = Display(
        plain=chosen.plain, think=chosen.think, stats=chosen.stats, stream=chosen.stream
    )
    grammar = None if schema is None else service.settings.read_grammar(schema)
    attachments = [service.files.read_attachment(name) for name in file or ()]
    store = service.ConversationStore() if chosen.save and (resumes or not is_single) else None
    conversation = service.Conversation(system=chosen.system)
    if store is not None and resumes:
        conversation = service.resume_conversation(store, id, chosen.system)
    with render.show_progress() as progress:
        session = service.open_session(
            spec,
            chosen.sampling(),
            conversation,
            endpoint=endpoint,
            store=store,
            warn=lambda text: display.notice(text, "yellow"),
            progress=progress,
        )
    session.grammar = grammar
    with closing(session):
        if message is not None:
            text = service.files.with_attachments(message, attachments)
            entry.answer_once(session, display, text)
        else:
            switcher = service.ModelSwitcher(session, spec, endpoint)
            entry.run_repl(session, switcher, display, attachments)


def _endpoint(resolved: ResolvedConfig[ChatConfig]) -> ApiEndpoint | None:
    """Return the server to use, or `None` for a model in this process."""
    chosen, given = resolved.values, given_fields(resolved)
    if chosen.base_url is None:
        if "api_key" in given:
            raise ConfigError("--api-key without a server", hint="add --base-url URL")
        return None
    options.reject_load_options(resolved)
    # LLMCTL_MODEL names a model of this machine.
    model = chosen.model if "model" in given else None
    return ApiEndpoint(chosen.base_url, model, chosen.api_key)


def _read_message(argument: str | None, *, has_files: bool) -> str:
    """Return the message of the argument, with piped stdin below it."""
    piped = "" if sys.stdin.isatty() else _read_stdin().strip()
    message = "\n\n".join(part for part in (argument, piped) if part)
    if not message and not has_files:
        raise ConfigError("there is no message", hint='llmctl chat "your message"')
    return message


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"stdin is not UTF-8 text: {error.reason} at byte {error.start:,}",
            hint="convert it first: iconv -f GBK -t UTF-8",
        ) from error


def _print_list(*, as_json: bool) -> None:
    from llmctl.services.chat import ConversationStore

    entries = ConversationStore().list()
    if as_json:
        render.print_json([asdict(entry) for entry in entries])
        return
    if not entries:
        render.print_note("there is no conversation yet; `llmctl chat` starts one")
        return
    rows = [[c.id, render.format_day(c.updated), str(c.turns), c.model, c.title] for c in entries]
    render.print_table(("ID", "UPDATED", "TURNS", "MODEL", "TITLE"), rows, cut=("MODEL", "TITLE"))
