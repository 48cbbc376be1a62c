"""Slash commands that change or show the model, its parameters, the display and files."""

from dataclasses import replace

from llmctl.cli import render
from llmctl.cli.repl.conversation_commands import show_last_turns
from llmctl.cli.repl.display import format_context_usage, format_stats
from llmctl.cli.repl.repl import ChatRepl, ReplExitError, command
from llmctl.errors import ConfigError, ContextLengthError
from llmctl.services.chat import context_window, files, settings


@command("system", "[TEXT]", words=("none",))
def system(repl: ChatRepl, argument: str) -> None:
    """Set or show the system prompt."""
    conversation = repl.session.conversation
    if not argument:
        repl.display.notice(
            conversation.system or "there is no system prompt; /system TEXT sets one", ""
        )
        return
    text = None if argument in settings.UNSET else argument
    repl.session.update_conversation(replace(conversation, system=text))
    repl.display.notice("the system prompt is set" if text else "the system prompt is removed")


@command("set", "NAME VALUE", "parameter")
def set_command(repl: ChatRepl, argument: str) -> None:
    """Set a sampling parameter."""
    name, _, value = argument.partition(" ")
    if not name:
        params(repl, "")
        return
    if not value.strip():
        raise ConfigError(f"/set {name} needs a value", hint=f"/set {name} default unsets it")
    repl.session.sampling = settings.set_parameter(repl.session.sampling, name, value.strip())
    name = settings.parameter_name(name)
    repl.display.notice(f"{name} is {settings.list_parameters(repl.session.sampling)[name]}")


@command("params")
def params(repl: ChatRepl, _: str) -> None:
    """Show the sampling parameters."""
    parameters = settings.list_parameters(repl.session.sampling)
    width = max(map(len, parameters))
    for name, value in parameters.items():
        repl.display.notice(f"{name:<{width}}  {value}", "")


@command("json", "SCHEMA|off", "file", words=("off",))
def json(repl: ChatRepl, argument: str) -> None:
    """Constrain replies to a JSON schema."""
    session = repl.session
    if not argument:
        grammar = session.grammar
        text = "replies are not constrained"
        repl.display.notice(text if grammar is None else grammar.source or "any JSON object", "")
    elif argument in ("off", *settings.UNSET):
        session.grammar = None
        repl.display.notice("replies are not constrained")
    else:
        session.grammar = settings.read_grammar(argument)
        repl.display.notice("replies follow the schema; /json off removes it")


@command("model", "[NAME]", "model")
def model(repl: ChatRepl, argument: str) -> None:
    """Switch to another model."""
    if not argument:
        repl.display.notice(f"active: {repl.session.info().model_id}; /model NAME switches", "")
        if names := repl.switcher.models():
            repl.display.notice(f"available: {', '.join(names)}")
        return
    before = repl.session.engine
    try:
        with render.show_progress() as progress:
            repl.switcher.switch_model(argument, progress)
    finally:
        # A failed switch may have loaded the former model again.
        if repl.session.engine is not before:
            repl.show_model()


@command("adapter", "FOLDER|off", "folder", words=("off",))
def adapter(repl: ChatRepl, argument: str) -> None:
    """Switch to an adapter, or to none."""
    session = repl.session
    if not argument:
        repl.display.notice(f"adapter: {session.adapter or 'none'}", "")
        return
    name = None if argument in ("off", *settings.UNSET) else argument
    with render.show_progress() as progress:
        repl.switcher.switch_adapter(name, progress)
    repl.display.notice(f"adapter: {session.adapter or repl.switcher.adapter or 'none'}")


@command("think", "show|hide", words=("show", "hide"))
def think(repl: ChatRepl, argument: str) -> None:
    """Show or fold reasoning."""
    if argument not in ("show", "hide"):
        raise ConfigError(f"/think {argument}".rstrip() + ": show or hide")
    repl.display.think = argument == "show"
    reply = repl.session.conversation.last_reply
    if repl.display.think and reply is not None and reply.message.reasoning:
        repl.display.notice(reply.message.reasoning.strip())
    else:
        repl.display.notice(f"reasoning is {'shown' if repl.display.think else 'folded'}")


@command("stats", "[on|off]", words=("on", "off"))
def stats(repl: ChatRepl, argument: str) -> None:
    """Show statistics of the last reply, or after every reply."""
    if argument in ("on", "off"):
        repl.display.stats = argument == "on"
        repl.display.notice(f"statistics after each reply: {argument}")
        return
    if argument:
        raise ConfigError(f"/stats {argument}: on or off")
    reply = repl.session.conversation.last_reply
    if reply is None or reply.figures is None:
        repl.display.notice("no reply yet; /stats on shows statistics after each")
    else:
        repl.display.notice(format_stats(reply.figures), "")


@command("tokens")
def tokens(repl: ChatRepl, _: str) -> None:
    """Show the tokens of each turn in the context."""
    session, conversation = repl.session, repl.session.conversation
    about = "" if session.has_exact_counts else "about "
    messages = conversation.messages()
    used = session.count_tokens(messages) if messages else 0
    repl.display.notice(about + format_context_usage(used, session.info().context_length), "")
    if messages and messages[0].role == "system":
        count = session.count_tokens(messages[0].content)
        repl.display.notice(f"system prompt  {about}{count:,}", "")
    for turn in conversation.turns[conversation.begin :]:
        count = session.count_tokens(turn.message.content)
        repl.display.notice_line(
            f"{turn.message.role:<13}  {about}{count:,}  {turn.message.content}"
        )


@command("read", "FILE|off", "file", words=("off",))
def read(repl: ChatRepl, argument: str) -> None:
    """Attach a file to the next message, or detach all files."""
    if not argument:
        raise ConfigError("/read needs a file", hint="/read notes.txt; /read off detaches it")
    if argument == "off":
        names = ", ".join(file.name for file in repl.attachments)
        repl.attachments.clear()
        repl.display.notice(f"{names} detached" if names else "no file was attached")
        return
    file = files.read_attachment(argument)
    count = repl.session.count_tokens(file.to_markdown())
    about = "" if repl.session.has_exact_counts else "about "
    message = files.with_attachments("", [*repl.attachments, file])
    try:
        context_window.find_overflow(repl.session, message)
    except ContextLengthError as error:
        context = repl.session.info().context_length
        others = " with the other attachments" if repl.attachments else ""
        raise ConfigError(
            f"{argument} has {about}{count:,} tokens and does not fit{others}: the context holds "
            f"{context:,} with the reply",
            hint="attach the relevant part" + ("; /read off" if repl.attachments else ""),
        ) from error
    repl.attachments.append(file)
    repl.display.notice(f"{file.name} ({about}{count:,} tokens) is sent with the next message")


@command("save", "FILE", "file")
def save(repl: ChatRepl, argument: str) -> None:
    """Save the conversation to a file."""
    if not argument:
        raise ConfigError("/save needs a file", hint="/save chat.json")
    path = files.save_conversation(repl.session.conversation, argument)
    repl.display.notice(f"{len(repl.session.conversation.turns)} turns saved to {path}")


@command("load", "FILE", "file")
def load(repl: ChatRepl, argument: str) -> None:
    """Continue a conversation from a file."""
    if not argument:
        raise ConfigError("/load needs a file", hint="/load chat.json")
    repl.session.update_conversation(files.load_conversation(argument))
    show_last_turns(repl)


@command("export", "FILE.jsonl", "file")
def export(repl: ChatRepl, argument: str) -> None:
    """Add the conversation to a file of training data."""
    if not argument:
        raise ConfigError("/export needs a file", hint="/export good.jsonl")
    row = files.export_conversation(repl.session.conversation, argument)
    repl.display.notice(f"row {row} of {argument}; `llmctl data check {argument}` checks it")


@command("exit", aliases=("quit", "bye"))
def exit_command(_repl: ChatRepl, _: str) -> None:
    """Exit, like Ctrl-D."""
    raise ReplExitError
