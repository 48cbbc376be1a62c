"""How does a conversation go: a line is read, a command done or a question answered, and again?"""

import difflib
import sys
from collections.abc import Callable, Mapping

from llmctl.cli import render
from llmctl.cli.repl.display import Look
from llmctl.cli.repl.input_parser import Command, understood
from llmctl.cli.repl.interrupt import one_interrupt, silent_keys
from llmctl.cli.repl.line_editor import Reader
from llmctl.cli.repl.reply_view import view_of
from llmctl.cli.repl.stats import cut_off, fullness, told
from llmctl.config import wants_traceback
from llmctl.errors import ContextLengthError, LlmctlError
from llmctl.services.chat import context_window
from llmctl.services.chat.conversation import Turn
from llmctl.services.chat.files import Attachment, with_attachments
from llmctl.services.chat.reply import Reply
from llmctl.services.chat.session import ChatSession
from llmctl.services.chat.switching import Switch

Action = Callable[["Talk", str], None]


class LeaveError(Exception):
    """The person wants to go."""


class Talk:
    """A conversation with somebody at a terminal.

    Args:
        actions: what commands do, by their names.
    """

    def __init__(
        self,
        session: ChatSession,
        switch: Switch,
        look: Look,
        reader: Reader,
        actions: Mapping[str, Action],
    ) -> None:
        self.session = session
        self.switch = switch
        self.look = look
        self.reader = reader
        self.attached: list[Attachment] = []
        """Files that go with the next question."""
        self.unsent = ""
        """What was written in an editor and could not be asked."""
        self._actions = actions

    def introduce(self) -> None:
        """Say who answers."""
        for line in render.engine_lines(self.session.info()):
            self.look.say(line, "")

    def run(self) -> None:
        """Talk until the person leaves."""
        draft = ""
        while True:
            try:
                text = self.reader.read(draft)
            except EOFError:
                return
            except KeyboardInterrupt:
                self.look.say("Ctrl-D or /exit leaves; Ctrl-C stops a reply")
                continue
            draft = ""
            meant = understood(text, pasted=self.reader.pasted, known=self._actions)
            try:
                if isinstance(meant, Command):
                    self._do(meant)
                elif meant:
                    draft = "" if self.ask(meant) else meant
            except LeaveError:
                return
            except LlmctlError as error:
                self.look.error(str(error), error.hint)
            except KeyboardInterrupt:
                self.look.say("[stopped]")
            except Exception as error:
                if wants_traceback() or isinstance(error, BrokenPipeError):
                    raise
                # A mistake of ours in one command must not end the conversation.
                self.look.error(
                    f"unexpected {type(error).__name__}: {error}",
                    "the conversation goes on; LLMCTL_TRACEBACK=1 shows where it came from",
                )

    def _do(self, command: Command) -> None:
        action = self._actions.get(command.name)
        if action is not None:
            action(self, command.argument)
            return
        near = difflib.get_close_matches(command.name, self._actions, n=1)
        self.look.error(
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

    def answer(self, begin: Callable[[], Reply]) -> None:
        """Show a reply from its beginning to its end and keep it, however it ends."""
        reply, turn, failure = self.watch(begin)
        if failure is not None:
            overflow = isinstance(failure, ContextLengthError)
            hint = "/drop or /summarise makes room" if overflow else failure.hint
            self.look.error(str(failure), hint)
        if reply is not None and (mark := self._mark(reply, turn)):
            self.look.say(f"[{mark}]")
        if turn is not None and turn.figures is not None:
            if self.look.stats:
                self.look.say(told(turn.figures, self.look.err.width))
            if full := fullness(turn.figures):
                self.look.say(f"{full}: /summarise or /drop makes room", "yellow")
        if self.look.drawn:
            self.look.say("")

    def watch(
        self, begin: Callable[[], Reply], *, keep: bool = True
    ) -> tuple[Reply | None, Turn | None, LlmctlError | None]:
        """Show a reply while it is written; return it, what was kept of it, what broke it off."""
        reply = turn = failure = None
        with silent_keys(), one_interrupt() as no_more:
            view = view_of(self.look, as_it_is=self.session.grammar is not None)
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

    def _mark(self, reply: Reply, turn: Turn | None) -> str:
        """Return what is to be said of how a reply ended; nothing if it ended well."""
        if reply.state == "cut":
            return cut_off(reply, self.session.sampling.max_new_tokens, "/set max_tokens")
        again = "/retry asks again"
        if turn is None:
            # A reply that was to take the place of an older one leaves that as it is.
            waits = self.session.conversation.unanswered is not None
            return f"no reply; {again}" if waits else "no reply; the old one stays"
        if reply.state == "stopped":
            return "stopped; the part above is kept"
        if reply.state == "failed":
            return f"broken off; the part above is kept, {again}"
        return "" if turn.message.content.strip() else f"it thought, and said nothing; {again}"

    def _made_room(self, text: str) -> bool:
        """Make room for a question, as the person chooses; False if they choose not to ask it."""
        lack = context_window.shortage(self.session, text)
        if lack is None:
            return True
        self.look.say(
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
        context_window.drop(self.session, lack.begin)
        self.look.say(f"the model no longer sees the oldest {lack.begin} turns; /history does")
        return True

    def summarise(self, begin: int) -> None:
        """Let the model sum up the turns before `begin`. Raises `LlmctlError`."""
        view = view_of(self.look)
        try:
            with silent_keys(), one_interrupt():
                summary = context_window.summarise(self.session, begin)
        finally:
            view.end()
        self.look.say(f"the model sees this in place of the oldest {begin} turns: {summary}")
