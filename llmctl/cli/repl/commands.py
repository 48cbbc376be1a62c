"""The help command and the completion of slash commands."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    WordCompleter,
    merge_completers,
)
from prompt_toolkit.document import Document

# These imports register the commands.
from llmctl.cli.repl import conversation_commands, settings_commands  # noqa: F401  registers them
from llmctl.cli.repl.repl import COMMANDS, ArgumentKind, ChatRepl, command
from llmctl.services.chat.session import ChatSession
from llmctl.services.chat.settings import PARAMETERS
from llmctl.services.chat.switching import ModelSwitcher

KEYS: Final = (
    "Enter sends",
    "Alt-Enter, or \\ at the end of a line, starts a new line",
    '""" starts and ends a block of lines',
    "Ctrl-R searches the history",
    "Ctrl-X Ctrl-E opens $EDITOR",
    "Ctrl-C stops a reply",
    "Ctrl-D exits",
)


@command("help", aliases=("?",))
def show_help(repl: ChatRepl, _: str) -> None:
    """List the commands and the keys."""
    width = max(len(f"/{name} {spec.usage}") for name, spec in COMMANDS.items())
    is_narrow = repl.display.err.width < width + 30
    for name, spec in COMMANDS.items():
        usage = f"/{name} {spec.usage}".rstrip()
        line = f"{usage}\n    {spec.help}" if is_narrow else f"{usage:<{width}}  {spec.help}"
        repl.display.notice(line, "")
    repl.display.notice(" · ".join(KEYS))


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
