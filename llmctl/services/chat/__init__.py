"""The story of `llmctl chat`: find who answers, and begin a conversation or go on with one."""

from collections.abc import Callable
from dataclasses import replace

from llmctl.engine.registry import create_engine
from llmctl.services.chat import files, settings
from llmctl.services.chat.conversation import Conversation
from llmctl.services.chat.session import ChatSession
from llmctl.services.chat.store import ConversationStore
from llmctl.services.chat.switching import ModelSwitcher
from llmctl.types import ApiEndpoint, ModelSpec, ProgressCallback, SamplingParams, ignore_progress

__all__ = [
    "ChatSession",
    "Conversation",
    "ConversationStore",
    "ModelSwitcher",
    "files",
    "open_session",
    "resume_conversation",
    "settings",
]


def resume_conversation(
    store: ConversationStore, id: str | None, system: str | None
) -> Conversation:
    """Return a stored conversation, the last where none is named, to go on with.

    Args:
        system: takes the place of the system prompt that it had.

    Raises:
        ConfigError: there is no such conversation.
    """
    conversation = store.read(id)
    return conversation if system is None else replace(conversation, system=system)


def open_session(
    spec: ModelSpec,
    sampling: SamplingParams,
    conversation: Conversation | None = None,
    *,
    endpoint: ApiEndpoint | None = None,
    store: ConversationStore | None = None,
    warn: Callable[[str], None] = lambda _: None,
    progress: ProgressCallback = ignore_progress,
) -> ChatSession:
    """Load the model, or find the server, and return the session.

    Args:
        endpoint: the server whose model answers, in place of one in this process.
        store: where the conversation is kept; `None` keeps it nowhere.

    Raises:
        LlmctlError: as `BaseEngine.load`.
    """
    engine = create_engine(endpoint or spec)
    engine.load(progress)
    return ChatSession(engine, sampling, conversation, store=store, warn=warn)
