"""Slash commands of the chat REPL: their table, help and completion."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    WordCompleter,
    merge_completers,
)
from prompt_toolkit.document import Document

from llmctl.cli.repl import conversation_commands, settings_commands
from llmctl.cli.repl.display import join_parts
from llmctl.cli.repl.repl import ChatRepl, CommandHandler
from llmctl.services.chat.session import ChatSession
from llmctl.services.chat.settings import PARAMETERS
from llmctl.services.chat.switching import ModelSwitcher

ArgumentKind = Literal["", "file", "folder", "parameter", "model", "conversation"]


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A slash command."""

    handler: CommandHandler
    usage: str
    """Its arguments, as in the help."""
    help: str
    argument: ArgumentKind = ""
    """Kind of values that complete the argument, beside `words`."""
    words: tuple[str, ...] = ()


def help_command(repl: ChatRepl, _: str) -> None:
    """List the commands and the keys."""
    width = max(len(f"/{name} {spec.usage}") for name, spec in COMMANDS.items())
    is_narrow = repl.display.err.width < width + 30
    for name, spec in COMMANDS.items():
        usage = f"/{name} {spec.usage}".rstrip()
        line = f"{usage}\n    {spec.help}" if is_narrow else f"{usage:<{width}}  {spec.help}"
        repl.display.notice(line, "")
    repl.display.notice("\n".join(join_parts(list(KEYS), repl.display.err.width)))


KEYS: Final = (
    "Enter sends",
    "Alt-Enter, or \\ at the end of a line, starts a new line",
    '""" starts and ends a block of lines',
    "Ctrl-R searches the history",
    "Ctrl-X Ctrl-E opens $EDITOR",
    "Ctrl-C stops a reply",
    "Ctrl-D exits",
)
_conversation, _settings = conversation_commands, settings_commands
COMMANDS: Final[dict[str, CommandSpec]] = {
    "help": CommandSpec(help_command, "", "list the commands and keys"),
    "system": CommandSpec(
        _settings.system, "[TEXT]", "set or show the system prompt", words=("none",)
    ),
    "set": CommandSpec(
        _settings.set_command, "NAME VALUE", "set a sampling parameter", "parameter"
    ),
    "params": CommandSpec(_settings.params, "", "show the sampling parameters"),
    "json": CommandSpec(
        _settings.json, "SCHEMA|off", "constrain replies to a JSON schema", "file", ("off",)
    ),
    "regen": CommandSpec(_conversation.regen, "[N]", "regenerate the last reply, or N to choose"),
    "retry": CommandSpec(_conversation.retry, "", "send the last message again"),
    "undo": CommandSpec(_conversation.undo, "", "remove the last message and its reply"),
    "edit": CommandSpec(_conversation.edit, "", "edit the last message in $EDITOR and send it"),
    "clear": CommandSpec(_conversation.clear, "", "start a new conversation"),
    "history": CommandSpec(_conversation.history, "", "show the whole conversation"),
    "resume": CommandSpec(
        _conversation.resume, "[ID]", "continue an earlier conversation, or list them",
        "conversation",
    ),
    "drop": CommandSpec(
        _conversation.drop, "[N]", "remove the oldest N exchanges, or half, from the prompt"
    ),
    "summarise": CommandSpec(
        _conversation.summarise, "[N]", "replace them in the prompt with a summary"
    ),
    "read": CommandSpec(_settings.read, "FILE", "attach a file to the next message", "file"),
    "copy": CommandSpec(
        _conversation.copy, "[code]", "copy the last reply, or its last code block",
        words=("code",),
    ),
    "save": CommandSpec(_settings.save, "FILE", "save the conversation to a file", "file"),
    "load": CommandSpec(_settings.load, "FILE", "continue a conversation from a file", "file"),
    "export": CommandSpec(
        _settings.export, "FILE.jsonl", "add the conversation to training data", "file"
    ),
    "model": CommandSpec(_settings.model, "[NAME]", "switch to another model", "model"),
    "adapter": CommandSpec(
        _settings.adapter, "FOLDER|off", "switch the LoRA adapter", "folder", ("off",)
    ),
    "think": CommandSpec(
        _settings.think, "show|hide", "show or fold reasoning", words=("show", "hide")
    ),
    "stats": CommandSpec(
        _settings.stats, "[on|off]", "statistics of the last reply, or of every reply",
        words=("on", "off"),
    ),
    "tokens": CommandSpec(_settings.tokens, "", "show the tokens of each turn in the context"),
    "exit": CommandSpec(_settings.exit_command, "", "exit, like Ctrl-D"),
}  # fmt: skip
ALIASES: Final = {
    "?": "help",
    "quit": "exit",
    "bye": "exit",
    "new": "clear",
    "summarize": "summarise",
}


def command_handlers() -> dict[str, CommandHandler]:
    """Return the handler of every command, under all its names."""
    handlers = {name: spec.handler for name, spec in COMMANDS.items()}
    return handlers | {alias: handlers[name] for alias, name in ALIASES.items()}


class CommandCompleter(Completer):
    """Completes slash commands and their arguments."""

    def __init__(self, session: ChatSession, switcher: ModelSwitcher) -> None:
        def conversation_ids() -> list[str]:
            return [] if session.store is None else [c.id for c in session.store.list(50)]

        values: dict[ArgumentKind, Callable[[], Sequence[str]]] = {
            "parameter": lambda: list(PARAMETERS),
            "model": switcher.models,
            "conversation": conversation_ids,
        }
        paths: dict[ArgumentKind, Completer] = {
            "file": PathCompleter(expanduser=True),
            "folder": PathCompleter(expanduser=True, only_directories=True),
        }
        self._names = WordCompleter(
            [f"/{name}" for name in COMMANDS],
            meta_dict={f"/{name}": spec.help for name, spec in COMMANDS.items()},
            sentence=True,
        )
        self._arguments: dict[str, Completer] = {}
        for name, spec in COMMANDS.items():
            completers: list[Completer] = [WordCompleter(list(spec.words), sentence=True)]
            if spec.argument in values:
                completers.append(WordCompleter(values[spec.argument], sentence=True))
            if spec.argument in paths:
                completers.append(paths[spec.argument])
            self._arguments[name] = merge_completers(completers)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return ()
        name, blank, argument = text[1:].partition(" ")
        if not blank:
            return self._names.get_completions(document, complete_event)
        if name not in self._arguments:
            return ()
        argument_document = Document(argument.lstrip())
        return self._arguments[name].get_completions(argument_document, complete_event)
