"""How does a conversation go: a line is read, a command done or a question answered, and again?"""

import difflib
import sys
from collections.abc import Callable, Mapping

from llmctl.cli import render
from llmctl.cli.repl.display import Display
from llmctl.cli.repl.input_parser import Command, parse_input
from llmctl.cli.repl.interrupt import single_interrupt, suppress_echo
from llmctl.cli.repl.line_editor import LineReader
from llmctl.cli.repl.reply_view import create_reply_view
from llmctl.cli.repl.stats import context_warning, format_stats, length_limit_message
from llmctl.config import wants_traceback
from llmctl.errors import ContextLengthError, LlmctlError
from llmctl.services.chat import context_window
from llmctl.services.chat.conversation import Turn
from llmctl.services.chat.files import Attachment, with_attachments
from llmctl.services.chat.reply import ChatReply
from llmctl.services.chat.session import ChatSession
from llmctl.services.chat.switching import ModelSwitcher

CommandHandler = Callable[["ChatRepl", str], None]


class ReplExitError(Exception):
    """The person wants to go."""


class ChatRepl:
    """A conversation with somebody at a terminal.

    Args:
        actions: what commands do, by their names.
    """

    def __init__(
        self,
        session: ChatSession,
        switch: ModelSwitcher,
        display: Display,
        reader: LineReader,
        actions: Mapping[str, CommandHandler],
    ) -> None:
        self.session = session
        self.switch = switch
        self.display = display
        self.reader = reader
        self.attached: list[Attachment] = []
        """Files that go with the next question."""
        self.unsent = ""
        """What was written in an editor and could not be asked."""
        self._actions = actions

    def introduce(self) -> None:
        """Say who answers."""
        for line in render.engine_summary_lines(self.session.info()):
            self.display.say(line, "")

    def run(self) -> None:
        """Talk until the person leaves."""
        draft = ""
        while True:
            try:
                text = self.reader.read(draft)
            except EOFError:
                return
            except KeyboardInterrupt:
                self.display.say("Ctrl-D or /exit leaves; Ctrl-C stops a reply")
                continue
            draft = ""
            meant = parse_input(text, pasted=self.reader.pasted, known=self._actions)
            try:
                if isinstance(meant, Command):
                    self._do(meant)
                elif meant:
                    draft = "" if self.ask(meant) else meant
            except ReplExitError:
                return
            except LlmctlError as error:
                self.display.error(str(error), error.hint)
            except KeyboardInterrupt:
                self.display.say("[stopped]")
            except Exception as error:
                if wants_traceback() or isinstance(error, BrokenPipeError):
                    raise
                # A mistake of ours in one command must not end the conversation.
                self.display.error(
                    f"unexpected {type(error).__name__}: {error}",
                    "the conversation goes on; LLMCTL_TRACEBACK=1 shows where it came from",
                )

    def _do(self, command: Command) -> None:
        action = self._actions.get(command.name)
        if action is not None:
            action(self, command.argument)
            return
        near = difflib.get_close_matches(command.name, self._actions, n=1)
        self.display.error(
            f"unknown command /{command.name}" + (f"; did you mean /{near[0]}?" if near else ""),
            "/help lists the commands; a question that begins with a slash is written //",
        )

    def ask(self, text: str) -> bool:
        """Ask, and show the reply. False: the person would rather write something else.

        Raises:
            LlmctlError: the question cannot be asked at all.
        """
        whole = with_attachments(text, self.attached)
        if not self._made_room(whole):
            return False
        self.attached.clear()
        self.answer(lambda: self.session.ask(whole))
        return True

    def answer(self, begin: Callable[[], ChatReply]) -> None:
        """Show a reply from its beginning to its end and keep it, however it ends."""
        reply, turn, failure = self.watch(begin)
        if failure is not None:
            overflow = isinstance(failure, ContextLengthError)
            hint = "/drop or /summarise makes room" if overflow else failure.hint
            self.display.error(str(failure), hint)
        if reply is not None and (mark := self._mark(reply, turn)):
            self.display.say(f"[{mark}]")
        if turn is not None and turn.figures is not None:
            if self.display.stats:
                self.display.say(format_stats(turn.figures, self.display.err.width))
            if full := context_warning(turn.figures):
                self.display.say(f"{full}: /summarise or /drop makes room", "yellow")
        if self.display.drawn:
            self.display.say("")

    def watch(
        self, begin: Callable[[], ChatReply], *, keep: bool = True
    ) -> tuple[ChatReply | None, Turn | None, LlmctlError | None]:
        """Show a reply while it is written; return it, what was kept of it, what broke it off."""
        reply = turn = failure = None
        with suppress_echo(), single_interrupt() as no_more:
            view = create_reply_view(self.display, as_it_is=self.session.grammar is not None)
            try:
                reply = begin()
                for chunk in reply:
                    view.feed(chunk)
            except KeyboardInterrupt:
                if reply is not None:
                    reply.stop()
            except LlmctlError as error:
                failure = error
            finally:
                no_more()
                view.end()
                if reply is not None and (keep or sys.exc_info()[0] is not None):
                    turn = self.session.keep(reply)
        return reply, turn, failure

    def _mark(self, reply: ChatReply, turn: Turn | None) -> str:
        """Return what is to be said of how a reply ended; nothing if it ended well."""
        if reply.state == "cut":
            return length_limit_message(
                reply, self.session.sampling.max_new_tokens, "/set max_tokens"
            )
        again = "/retry asks again"
        if turn is None:
            # A reply that was to take the place of an older one leaves that as it is.
            waits = self.session.conversation.pending_question is not None
            return f"no reply; {again}" if waits else "no reply; the old one stays"
        if reply.state == "stopped":
            return "stopped; the part above is kept"
        if reply.state == "failed":
            return f"broken off; the part above is kept, {again}"
        return "" if turn.message.content.strip() else f"it thought, and said nothing; {again}"

    def _made_room(self, text: str) -> bool:
        """Make room for a question, as the person chooses; False if they choose not to ask it."""
        lack = context_window.find_overflow(self.session, text)
        if lack is None:
            return True
        self.display.say(
            f"the context is full: with this question {lack.prompt_tokens:,} tokens, and it holds "
            f"{lack.context_length:,} with the reply. The oldest {lack.dropped} turns must go.",
            "yellow",
        )
        choice = self.reader.choose(
            "[d]rop them, [s]ummarise them, or [c]ancel? ", ("drop", "summarise", "cancel")
        )
        if choice == "cancel":
            return False
        if choice == "summarise":
            self.summarise(lack.begin)
            return self._made_room(text)
        context_window.drop_turns(self.session, lack.begin)
        self.display.say(f"the model no longer sees the oldest {lack.begin} turns; /history does")
        return True

    def summarise(self, begin: int) -> None:
        """Let the model sum up the turns before `begin`. Raises `LlmctlError`."""
        view = create_reply_view(self.display)
        try:
            with suppress_echo(), single_interrupt():
                summary = context_window.summarise_turns(self.session, begin)
        finally:
            view.end()
        self.display.say(f"the model sees this in place of the oldest {begin} turns: {summary}")
