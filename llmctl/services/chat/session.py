"""Chat session: the engine, its sampling parameters and the conversation it continues."""

import time
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

from llmctl.engine.base import BaseEngine, SupportsTokenize
from llmctl.errors import ConfigError, EngineStoppedError, LlmctlError
from llmctl.services.chat.conversation import Conversation, Turn
from llmctl.services.chat.reply import ChatReply
from llmctl.services.chat.store import ConversationConflictError, ConversationStore
from llmctl.types import EngineInfo, GenerationRequest, Grammar, Message, SamplingParams

_TOKENS_PER_ASCII, _TOKENS_PER_NON_ASCII = 0.25, 0.8
"""Estimate without a tokenizer: English has about four letters per token, Chinese about one
character."""


class ChatSession:
    """A conversation with an engine, which the session owns.

    Args:
        store: where the conversation is saved; `None` keeps it in memory only.
        warn: receives a one-line warning, for example when saving fails.
    """

    def __init__(
        self,
        engine: BaseEngine,
        sampling: SamplingParams = SamplingParams(),  # noqa: B008  frozen
        conversation: Conversation | None = None,
        *,
        store: ConversationStore | None = None,
        warn: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.engine: BaseEngine | None = engine
        self.sampling = sampling
        self.grammar: Grammar | None = None
        self.adapter: str | None = None
        self.conversation = conversation or Conversation()
        self.store = store
        self._warn = warn

    @property
    def active_engine(self) -> BaseEngine:
        """The engine. Raises `EngineStoppedError` if a failed model switch left none."""
        if self.engine is None:
            raise EngineStoppedError("no model is loaded", hint="/model NAME loads one")
        return self.engine

    def info(self) -> EngineInfo:
        """Describe the active model."""
        return self.active_engine.info()

    def send(self, text: str) -> ChatReply:
        """Send a message and return the reply, which `store_reply` takes after its end.

        The message is stored first, so that it can be sent again if the reply fails.

        Raises:
            LlmctlError: the engine rejects the request, as `BaseEngine.submit`.
        """
        self.update_conversation(self.conversation.with_message(text))
        return self.regenerate()

    def regenerate(self, *, variant: int = 0) -> ChatReply:
        """Generate a reply to the last message; an existing reply stays until `store_reply`.

        Args:
            variant: added to the seed, if one is set.

        Raises:
            ConfigError: the conversation has no message.
            LlmctlError: as `send`.
        """
        self.last_user_turn()
        sampling = replace(self.sampling, grammar=self.grammar)
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + variant)
        engine, sent_s = self.active_engine, perf_counter()
        stream = engine.submit(
            GenerationRequest(
                self.conversation.without_reply().messages(),
                sampling=sampling,
                adapter=self.adapter,
            )
        )
        return ChatReply(stream, engine.info(), sent_s)

    def store_reply(self, reply: ChatReply) -> Turn | None:
        """Store a reply in place of an earlier one, and return it.

        An empty reply is not stored: the earlier one stays, and `None` is returned.
        """
        reply.stop()
        turn = reply.turn
        if turn is not None:
            self.update_conversation(self.conversation.with_reply(turn))
        return turn

    def undo(self) -> Turn:
        """Remove the last message and its reply; return the message. Raises `ConfigError`."""
        message = self.last_user_turn()
        self.update_conversation(self.conversation.without_last_exchange())
        return message

    def last_user_turn(self) -> Turn:
        """Return the last user message. Raises `ConfigError` if there is none."""
        if not self.conversation.turns:
            raise ConfigError("the conversation has no message yet")
        return self.conversation.without_reply().turns[-1]

    def switch_conversation(self, conversation: Conversation | None = None) -> None:
        """Continue with another, already stored conversation; by default with a new one."""
        self.conversation = conversation or Conversation(system=self.conversation.system)

    def update_conversation(self, conversation: Conversation) -> None:
        """Continue with a changed conversation and save it. Failures are passed to `warn`."""
        self.conversation = conversation
        if self.store is None or (not conversation.turns and conversation.version == 0):
            return
        try:
            self.conversation = self._save(self.store, conversation)
        except LlmctlError as error:
            self._warn(f"not saved: {error}; /save FILE writes the conversation to a file")

    def _save(self, store: ConversationStore, conversation: Conversation) -> Conversation:
        try:
            return store.save(conversation, time.time())
        except ConversationConflictError:
            copy = replace(conversation, id=Conversation().id, version=0)
            self._warn(
                f"conversation {conversation.id} was changed in another window; "
                f"this one is saved as {copy.id}"
            )
            return store.save(copy, time.time())

    def count_tokens(self, text: str | tuple[Message, ...]) -> int:
        """Count tokens, or estimate them if the engine has no tokenizer."""
        engine = self.active_engine
        if isinstance(engine, SupportsTokenize):
            return engine.count_tokens(text)
        if isinstance(text, str):
            ascii_count = sum(character.isascii() for character in text)
            others = len(text) - ascii_count
            return round(ascii_count * _TOKENS_PER_ASCII + others * _TOKENS_PER_NON_ASCII)
        return sum(self.count_tokens(message.content) + 4 for message in text)

    @property
    def has_exact_counts(self) -> bool:
        """Whether `count_tokens` counts rather than estimates."""
        return isinstance(self.active_engine, SupportsTokenize)

    def close(self) -> None:
        """Close the engine. May be called again."""
        if self.engine is not None:
            self.engine.close()
