"""How does a conversation at a terminal begin and end?"""

from collections.abc import Sequence

from llmctl.cli.repl.commands import CommandCompleter, command_handlers
from llmctl.cli.repl.conversation_commands import show_last_turns
from llmctl.cli.repl.display import Display
from llmctl.cli.repl.line_editor import create_line_reader
from llmctl.cli.repl.repl import ChatRepl
from llmctl.services.chat.files import Attachment
from llmctl.services.chat.session import ChatSession
from llmctl.services.chat.switching import ModelSwitcher


def run_repl(
    session: ChatSession,
    switch: ModelSwitcher,
    display: Display,
    attached: Sequence[Attachment] = (),
) -> None:
    """Talk with somebody at a terminal until they leave.

    Args:
        attached: files that go with the first question.
    """
    lines = create_line_reader(CommandCompleter(session, switch), history=session.store is not None)
    talk = ChatRepl(session, switch, display, lines, command_handlers())
    talk.attached += attached
    talk.introduce()
    display.say("/help lists the commands; Ctrl-C stops a reply, Ctrl-D leaves")
    if session.conversation.turns:
        show_last_turns(talk)
    for file in attached:
        display.say(f"{file.name} goes with the first question")
    talk.run()
    if session.conversation.version:
        display.say(f"llmctl chat --id {session.conversation.id} goes on with this conversation")
