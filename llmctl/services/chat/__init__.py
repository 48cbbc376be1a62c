"""Service of `llmctl chat`: opens the engine and starts or resumes a conversation."""

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
    """Return a stored conversation to continue.

    Args:
        id: id or prefix of an id; `None` is the most recent conversation.
        system: replaces the stored system prompt; `None` keeps it.

    Raises:
        ConfigError: no such conversation exists.
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
    """Load the model, or connect to the server, and return the session.

    Args:
        endpoint: server to use instead of a model in this process.
        store: where the conversation is saved; `None` does not save it.
        warn: receives a one-line warning, for example when saving fails.

    Raises:
        LlmctlError: as `BaseEngine.load`.
    """
    engine = create_engine(endpoint or spec)
    engine.load(progress)
    return ChatSession(engine, sampling, conversation, store=store, warn=warn)
