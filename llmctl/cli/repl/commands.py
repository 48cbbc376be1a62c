"""Which slash commands are there, what do they take, and how are they completed?"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
)
from prompt_toolkit.document import Document

from llmctl.cli.repl import conversation_commands as said
from llmctl.cli.repl import settings_commands as how
from llmctl.cli.repl.repl import ChatRepl, CommandHandler
from llmctl.cli.repl.stats import join_parts
from llmctl.services.chat.session import ChatSession
from llmctl.services.chat.settings import PARAMETERS
from llmctl.services.chat.switching import ModelSwitcher

Argument = Literal["", "file", "setting", "model", "id", "folder"]


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A command."""

    action: CommandHandler
    usage: str
    what: str
    argument: Argument = ""
    """What its argument is completed with, beside `words`."""
    words: tuple[str, ...] = ()


def help_command(talk: ChatRepl, _: str) -> None:
    """List the commands and the keys."""
    width = max(len(f"/{name} {known.usage}") for name, known in COMMANDS.items())
    narrow = talk.display.err.width < width + 30
    for name, known in COMMANDS.items():
        head = f"/{name} {known.usage}".rstrip()
        talk.display.say(
            f"{head}\n    {known.what}" if narrow else f"{head:<{width}}  {known.what}", ""
        )
    talk.display.say("\n".join(join_parts(list(KEYS), talk.display.err.width)))


KEYS: Final = (
    "Enter sends",
    "Alt-Enter, or \\ at the end of a line, begins a new line",
    '""" begins and ends a block of lines',
    "Ctrl-R searches what you wrote before",
    "Ctrl-X Ctrl-E opens $EDITOR",
    "Ctrl-C stops a reply",
    "Ctrl-D leaves",
)
COMMANDS: Final[dict[str, CommandSpec]] = {
    "help": CommandSpec(help_command, "", "this list"),
    "system": CommandSpec(how.system, "[TEXT]", "set, or show, the system prompt", words=("none",)),
    "set": CommandSpec(how.set_command, "NAME VALUE", "set how replies are sampled", "setting"),
    "params": CommandSpec(how.params, "", "show how replies are sampled"),
    "json": CommandSpec(how.json, "SCHEMA|off", "hold replies to a JSON schema", "file", ("off",)),
    "regen": CommandSpec(said.regen, "[N]", "write the last reply anew, or N to choose from"),
    "retry": CommandSpec(said.retry, "", "ask the last question again"),
    "undo": CommandSpec(said.undo, "", "take back the last question and its reply"),
    "edit": CommandSpec(said.edit, "", "edit the last question in $EDITOR and ask it again"),
    "clear": CommandSpec(said.clear, "", "begin a new conversation"),
    "history": CommandSpec(said.history, "", "show all that was said"),
    "resume": CommandSpec(
        said.resume, "[ID]", "go on with an earlier conversation, or list them", "id"
    ),
    "drop": CommandSpec(said.drop, "[N]", "leave the oldest N exchanges, or the older half, out"),
    "summarise": CommandSpec(said.summarise, "[N]", "put a summary in their place"),
    "read": CommandSpec(how.read, "FILE", "attach a file to the next question", "file"),
    "copy": CommandSpec(
        said.copy, "[code]", "copy the last reply, or its last code", words=("code",)
    ),
    "save": CommandSpec(how.save, "FILE", "write the conversation to a file", "file"),
    "load": CommandSpec(how.load, "FILE", "go on with a conversation from a file", "file"),
    "export": CommandSpec(how.export, "FILE.jsonl", "add it to a file of training data", "file"),
    "model": CommandSpec(how.model, "[NAME]", "let another model answer", "model"),
    "adapter": CommandSpec(
        how.adapter, "FOLDER|off", "put an adapter on the model", "folder", ("off",)
    ),
    "think": CommandSpec(how.think, "show|hide", "show or fold reasoning", words=("show", "hide")),
    "stats": CommandSpec(
        how.stats, "[on|off]", "figures of the last reply, or of each", words=("on", "off")
    ),
    "tokens": CommandSpec(how.tokens, "", "what takes the context"),
    "exit": CommandSpec(how.exit_command, "", "leave; Ctrl-D does too"),
}
ALIASES: Final = {
    "?": "help",
    "quit": "exit",
    "bye": "exit",
    "new": "clear",
    "summarize": "summarise",
}


def command_handlers() -> dict[str, CommandHandler]:
    """Return what every command does, under all its names."""
    known = {name: command.action for name, command in COMMANDS.items()}
    return known | {name: known[meant] for name, meant in ALIASES.items()}


class CommandCompleter(Completer):
    """Completes slash commands and what they take."""

    def __init__(self, session: ChatSession, switch: ModelSwitcher) -> None:
        self._session = session
        self._switch = switch
        self._files = PathCompleter(expanduser=True)
        self._folders = PathCompleter(expanduser=True, only_directories=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, blank, argument = text[1:].partition(" ")
        if not blank:
            for known, command in COMMANDS.items():
                if known.startswith(name):
                    yield Completion(
                        known,
                        start_position=-len(name),
                        display=f"/{known}",
                        display_meta=command.what,
                    )
            return
        found = COMMANDS.get(name)
        if found is None:
            return
        argument = argument.lstrip()
        for word in (*found.words, *self._words(found.argument)):
            if word.startswith(argument):
                yield Completion(word, start_position=-len(argument))
        if found.argument in ("file", "folder"):
            paths = self._files if found.argument == "file" else self._folders
            yield from paths.get_completions(Document(argument), complete_event)

    def _words(self, argument: Argument) -> Iterable[str]:
        match argument:
            case "setting":
                return PARAMETERS
            case "model":
                return self._switch.models()
            case "id" if self._session.store is not None:
                return [listed.id for listed in self._session.store.list(50)]
            case _:
                return ()
