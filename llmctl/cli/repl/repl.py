"""The chat REPL: reads an input, runs a command or sends a message, shows the reply."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from llmctl.cli import render
from llmctl.cli.repl.display import (
    Display,
    context_warning,
    format_stats,
    length_limit_message,
)
from llmctl.cli.repl.line_input import Command, LineReader, parse_input
from llmctl.cli.repl.reply_view import create_reply_view
from llmctl.cli.repl.terminal import single_interrupt, suppress_echo
from llmctl.config import wants_traceback
from llmctl.did_you_mean import did_you_mean
from llmctl.errors import ContextLengthError, LlmctlError
from llmctl.services.chat import context_window
from llmctl.services.chat.conversation import Turn
from llmctl.services.chat.files import Attachment, with_attachments
from llmctl.services.chat.reply import ChatReply
from llmctl.services.chat.session import ChatSession
from llmctl.services.chat.switching import ModelSwitcher

CommandHandler = Callable[["ChatRepl", str], None]
ArgumentKind = Literal["", "file", "folder", "parameter", "model", "conversation"]


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A slash command."""

    handler: CommandHandler
    usage: str
    """Its arguments, for the help."""
    argument: ArgumentKind
    """Kind of values that complete the argument, beside `words`."""
    words: tuple[str, ...]
    aliases: tuple[str, ...]

    @property
    def help(self) -> str:
        """The first line of the handler's docstring."""
        return (self.handler.__doc__ or "").partition("\n")[0].rstrip(".")


COMMANDS: Final[dict[str, CommandSpec]] = {}


def command(
    name: str,
    usage: str = "",
    argument: ArgumentKind = "",
    *,
    words: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
) -> Callable[[CommandHandler], CommandHandler]:
    """Return a decorator that adds a handler to `COMMANDS`; its docstring is the help."""

    def register(handler: CommandHandler) -> CommandHandler:
        COMMANDS[name] = CommandSpec(handler, usage, argument, words, aliases)
        return handler

    return register


class ReplExitError(Exception):
    """The user ends the REPL."""


class ChatRepl:
    """The state of an interactive chat."""

    def __init__(
        self,
        session: ChatSession,
        switcher: ModelSwitcher,
        display: Display,
        reader: LineReader,
    ) -> None:
        self.session = session
        self.switcher = switcher
        self.display = display
        self.reader = reader
        self.attachments: list[Attachment] = []
        """Files to send with the next message."""
        self.unsent = ""
        """Text from the editor that could not be sent."""
        self._handlers = {
            name: spec.handler
            for first, spec in COMMANDS.items()
            for name in (first, *spec.aliases)
        }

    def show_model(self) -> None:
        """Show which model is active."""
        for line in render.engine_summary_lines(self.session.info()):
            self.display.notice(line, "")

    def run(self) -> None:
        """Read and execute inputs until the user exits."""
        draft = ""
        while True:
            try:
                text = self.reader.read(draft)
            except EOFError:
                return
            except KeyboardInterrupt:
                self.display.notice("Ctrl-D or /exit exits; Ctrl-C stops a reply")
                continue
            draft = ""
            parsed = parse_input(text, pasted=self.reader.pasted, known=self._handlers)
            try:
                if isinstance(parsed, Command):
                    self._run_command(parsed)
                elif parsed:
                    draft = "" if self.send(parsed) else parsed
            except ReplExitError:
                return
            except LlmctlError as error:
                self.display.error(str(error), error.hint)
            except KeyboardInterrupt:
                self.display.notice("[stopped]")
            except Exception as error:
                if wants_traceback() or isinstance(error, BrokenPipeError):
                    raise
                # A bug in one command must not end the conversation.
                self.display.error(
                    f"unexpected {type(error).__name__}: {error}",
                    "the conversation continues; LLMCTL_TRACEBACK=1 shows the traceback",
                )

    def _run_command(self, command: Command) -> None:
        handler = self._handlers.get(command.name)
        if handler is not None:
            handler(self, command.argument)
            return
        near = did_you_mean(command.name, self._handlers)
        self.display.error(
            f"unknown command /{command.name}" + (f"; did you mean /{near}?" if near else ""),
            "/help lists the commands; start a message that begins with a slash with //",
        )

    def send(self, text: str) -> bool:
        """Send a message and show the reply. Return `False` if the user cancels it.

        Raises:
            LlmctlError: the message cannot be sent.
        """
        message = with_attachments(text, self.attachments)
        if not self._make_room(message):
            return False
        self.attachments.clear()
        self.show_reply(lambda: self.session.send(message))
        return True

    def show_reply(self, start: Callable[[], ChatReply]) -> None:
        """Show a reply with its state and statistics, and store it."""
        reply, turn, failure = self.stream_reply(start)
        if failure is not None:
            overflow = isinstance(failure, ContextLengthError)
            hint = "/drop or /summarise makes room" if overflow else failure.hint
            self.display.error(str(failure), hint)
        if reply is not None and (state := self._describe_state(reply, turn)):
            self.display.notice(f"[{state}]")
        if turn is not None and turn.figures is not None:
            if self.display.stats:
                self.display.notice(format_stats(turn.figures))
            if warning := context_warning(turn.figures):
                self.display.notice(f"{warning}: /summarise or /drop makes room", "yellow")
        if self.display.renders_markdown:
            self.display.notice("")

    def stream_reply(
        self, start: Callable[[], ChatReply], *, store: bool = True
    ) -> tuple[ChatReply | None, Turn | None, LlmctlError | None]:
        """Show a reply while it is generated; return it, its stored turn, and its error."""
        reply = turn = failure = None
        raw = self.session.grammar is not None
        with suppress_echo(), single_interrupt() as ignore_interrupts:
            try:
                with create_reply_view(self.display, raw=raw) as view:
                    try:
                        reply = start()
                        for chunk in reply:
                            view.add(chunk)
                    except KeyboardInterrupt:
                        if reply is not None:
                            reply.stop()
                    except LlmctlError as error:
                        failure = error
                    finally:
                        ignore_interrupts()
            finally:
                if reply is not None and (store or sys.exc_info()[0] is not None):
                    turn = self.session.store_reply(reply)
        return reply, turn, failure

    def _describe_state(self, reply: ChatReply, turn: Turn | None) -> str:
        """Return a notice about the end of a reply; empty if the reply is complete."""
        if reply.state == "cut":
            return length_limit_message(
                reply, self.session.sampling.max_new_tokens, "/set max_tokens"
            )
        retry = "/retry sends the message again"
        if turn is None:
            # An empty reply does not replace an earlier one.
            is_first = self.session.conversation.pending_message is not None
            return f"no reply; {retry}" if is_first else "no reply; the earlier one is kept"
        if reply.state == "stopped":
            return "stopped; the partial reply is kept"
        if reply.state == "failed":
            return f"interrupted; the partial reply is kept, {retry}"
        return "" if turn.message.content.strip() else f"the reply is only reasoning; {retry}"

    def _make_room(self, text: str) -> bool:
        """Make room for a message, as the user chooses; return `False` if they cancel it."""
        overflow = context_window.find_overflow(self.session, text)
        if overflow is None:
            return True
        self.display.notice(
            f"the context is full: with this message the prompt has {overflow.prompt_tokens:,} "
            f"tokens, and the context holds {overflow.context_length:,} with the reply. "
            f"The oldest {overflow.dropped} turns must be removed from the prompt.",
            "yellow",
        )
        choice = self.reader.choose(
            "[d]rop them, [s]ummarise them, or [c]ancel? ", ("drop", "summarise", "cancel")
        )
        if choice == "cancel":
            return False
        if choice == "summarise":
            self.summarise(overflow.begin)
            return self._make_room(text)
        context_window.drop_turns(self.session, overflow.begin)
        self.display.notice(f"the oldest {overflow.begin} turns are no longer in the prompt")
        return True

    def summarise(self, begin: int) -> None:
        """Replace the turns before `begin` in the prompt by a summary. Raises `LlmctlError`."""
        with create_reply_view(self.display), suppress_echo(), single_interrupt():
            summary = context_window.summarise_turns(self.session, begin)
        self.display.notice(f"summary in place of the oldest {begin} turns: {summary}")
