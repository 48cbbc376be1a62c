"""What do the commands do that change or show who answers, and how?"""

from dataclasses import replace

from llmctl.cli import render
from llmctl.cli.repl.conversation_commands import show_last_turns
from llmctl.cli.repl.repl import ChatRepl, ReplExitError
from llmctl.cli.repl.stats import format_context_usage, format_stats
from llmctl.errors import ConfigError, ContextLengthError
from llmctl.services.chat import context_window, files, settings


def system(talk: ChatRepl, argument: str) -> None:
    """Give the model another instruction, or show the one it has."""
    conversation = talk.session.conversation
    if not argument:
        talk.display.say(
            conversation.system or "there is no system prompt; /system TEXT sets one", ""
        )
        return
    text = None if argument in settings.UNSET else argument
    talk.session.change(replace(conversation, system=text))
    talk.display.say("the system prompt is set" if text else "there is no system prompt any more")


def set_command(talk: ChatRepl, argument: str) -> None:
    """Set how replies are sampled."""
    name, _, value = argument.partition(" ")
    if not name:
        params(talk, "")
        return
    if not value.strip():
        raise ConfigError(f"/set {name} needs a value", hint=f"/set {name} default unsets it")
    talk.session.sampling = settings.set_parameter(talk.session.sampling, name, value.strip())
    shown = settings.list_parameters(talk.session.sampling)[_known(name)]
    talk.display.say(f"{_known(name)} is {shown}")


def _known(name: str) -> str:
    name = name.lower().replace("-", "_")
    return "max_tokens" if name == "max_new_tokens" else name


def params(talk: ChatRepl, _: str) -> None:
    """Show how replies are sampled."""
    listed = settings.list_parameters(talk.session.sampling)
    width = max(map(len, listed))
    for name, value in listed.items():
        talk.display.say(f"{name:<{width}}  {value}", "")


def json(talk: ChatRepl, argument: str) -> None:
    """Hold replies to a JSON schema."""
    session = talk.session
    if not argument:
        held = session.grammar
        talk.display.say(
            "replies are free" if held is None else held.source or "any JSON object", ""
        )
    elif argument in ("off", *settings.UNSET):
        session.grammar = None
        talk.display.say("replies are free")
    else:
        session.grammar = settings.read_grammar(argument)
        talk.display.say("replies follow the schema; /json off frees them")


def model(talk: ChatRepl, argument: str) -> None:
    """Let another model answer."""
    if not argument:
        talk.display.say(f"{talk.session.info().model_id} answers; /model NAME changes that", "")
        names = talk.switch.models()
        if names:
            talk.display.say(f"known: {', '.join(names)}")
        return
    before = talk.session.engine
    try:
        with render.show_progress() as progress:
            talk.switch.to_model(argument, progress)
    finally:
        # Where the new one could not be had, the old one has come back, loaded anew.
        if talk.session.engine is not before:
            talk.introduce()


def adapter(talk: ChatRepl, argument: str) -> None:
    """Put an adapter on the model, or take it off."""
    session = talk.session
    if not argument:
        talk.display.say(f"adapter: {session.adapter or 'none'}", "")
        return
    with render.show_progress() as progress:
        talk.switch.to_adapter(None if argument in ("off", *settings.UNSET) else argument, progress)
    talk.display.say(f"adapter: {session.adapter or talk.switch.adapter or 'none'}")


def think(talk: ChatRepl, argument: str) -> None:
    """Show or fold what the model thinks."""
    if argument not in ("show", "hide"):
        raise ConfigError(f"/think {argument}".rstrip() + ": show or hide")
    talk.display.think = argument == "show"
    reply = talk.session.conversation.last_reply
    if talk.display.think and reply is not None and reply.message.reasoning:
        talk.display.say(reply.message.reasoning.strip())
    else:
        talk.display.say(f"reasoning is {'shown' if talk.display.think else 'folded'}")


def stats(talk: ChatRepl, argument: str) -> None:
    """Show figures after each reply, or those of the last one."""
    if argument in ("on", "off"):
        talk.display.stats = argument == "on"
        talk.display.say(f"figures after each reply: {argument}")
        return
    if argument:
        raise ConfigError(f"/stats {argument}: on or off")
    reply = talk.session.conversation.last_reply
    if reply is None or reply.figures is None:
        talk.display.say("no reply yet; /stats on shows figures after each")
    else:
        talk.display.say(format_stats(reply.figures, talk.display.err.width), "")


def tokens(talk: ChatRepl, _: str) -> None:
    """Show what takes the context."""
    session, conversation = talk.session, talk.session.conversation
    about = "" if session.counts else "about "
    used = session.count(conversation.messages()) if conversation.messages() else 0
    talk.display.say(about + format_context_usage(used, session.info().context_length), "")
    opening = conversation.messages()[:1]
    if opening and opening[0].role == "system":
        talk.display.say(f"system prompt  {about}{session.count(opening[0].content):,}", "")
    for turn in conversation.turns[conversation.begin :]:
        count = session.count(turn.message.content)
        head = f"{turn.message.role:<13}  {about}{count:,}  "
        talk.display.say_line(head + turn.message.content)


def read(talk: ChatRepl, argument: str) -> None:
    """Attach a file to the next question, or take off again what is attached."""
    if not argument:
        raise ConfigError("/read needs a file", hint="/read notes.txt; /read off takes it off")
    if argument == "off":
        names = ", ".join(file.name for file in talk.attached)
        talk.attached.clear()
        talk.display.say(f"{names} stays here" if names else "nothing was attached")
        return
    found = files.read_attachment(argument)
    count = talk.session.count(found.block())
    about = "" if talk.session.counts else "about "
    try:
        context_window.find_overflow(
            talk.session, files.with_attachments("", [*talk.attached, found])
        )
    except ContextLengthError as error:
        context = talk.session.info().context_length
        others = " beside what is attached" if talk.attached else ""
        raise ConfigError(
            f"{argument} has {about}{count:,} tokens, and does not fit{others}: the context holds "
            f"{context:,} with the reply",
            hint="cut the part out that matters" + ("; /read off" if talk.attached else ""),
        ) from error
    talk.attached.append(found)
    talk.display.say(f"{found.name} ({about}{count:,} tokens) goes with the next question")


def save(talk: ChatRepl, argument: str) -> None:
    """Write the conversation to a file."""
    if not argument:
        raise ConfigError("/save needs a file", hint="/save talk.json")
    path = files.save_conversation(talk.session.conversation, argument)
    talk.display.say(f"{len(talk.session.conversation.turns)} turns are in {path}")


def load(talk: ChatRepl, argument: str) -> None:
    """Go on with a conversation from a file."""
    if not argument:
        raise ConfigError("/load needs a file", hint="/load talk.json")
    loaded = files.load_conversation(argument)
    talk.session.begin(loaded)
    talk.session.change(loaded)
    show_last_turns(talk)


def export(talk: ChatRepl, argument: str) -> None:
    """Add the conversation to a file of training data."""
    if not argument:
        raise ConfigError("/export needs a file", hint="/export good.jsonl")
    row = files.export_conversation(talk.session.conversation, argument)
    talk.display.say(f"row {row} of {argument}; `llmctl data check {argument}` looks at it")


def exit_command(_talk: ChatRepl, _: str) -> None:
    """End."""
    raise ReplExitError
