"""How does a conversation at a terminal begin and end?"""

from collections.abc import Sequence

from llmctl.cli.repl.commands import CommandCompleter, actions
from llmctl.cli.repl.conversation_commands import show_last
from llmctl.cli.repl.display import Look
from llmctl.cli.repl.line_editor import reader
from llmctl.cli.repl.repl import Talk
from llmctl.services.chat.files import Attachment
from llmctl.services.chat.session import ChatSession
from llmctl.services.chat.switching import Switch


def converse(
    session: ChatSession, switch: Switch, look: Look, attached: Sequence[Attachment] = ()
) -> None:
    """Talk with somebody at a terminal until they leave.

    Args:
        attached: files that go with the first question.
    """
    lines = reader(CommandCompleter(session, switch), history=session.store is not None)
    talk = Talk(session, switch, look, lines, actions())
    talk.attached += attached
    talk.introduce()
    look.say("/help lists the commands; Ctrl-C stops a reply, Ctrl-D leaves")
    if session.conversation.turns:
        show_last(talk)
    for file in attached:
        look.say(f"{file.name} goes with the first question")
    talk.run()
    if session.conversation.version:
        look.say(f"llmctl chat --id {session.conversation.id} goes on with this conversation")
