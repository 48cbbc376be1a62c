"""One conversation going on: who answers, how, and what is kept of it."""

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

_TOKENS_PER_LETTER, _TOKENS_PER_SIGN = 0.25, 0.8
"""Where nobody counts: English has four letters to a token, Chinese about a token a sign."""


class ChatSession:
    """The conversation, the engine that answers, which the session owns, and how it is asked.

    Args:
        store: `None` keeps the conversation in memory alone.
        warn: told in a line what goes wrong beside the talking.
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
        """The engine. Raises `EngineStoppedError` after a change of model that lost both."""
        if self.engine is None:
            raise EngineStoppedError("no model is loaded", hint="/model NAME loads one")
        return self.engine

    def info(self) -> EngineInfo:
        """Describe the model that answers."""
        return self.active_engine.info()

    def ask(self, text: str) -> ChatReply:
        """Ask, and return the reply on its way, which `keep` takes when it has ended.

        The question is stored first: whatever becomes of the reply, it can be asked again.

        Raises:
            LlmctlError: the engine does not take it, as `BaseEngine.submit`.
        """
        self._become(self.conversation.asked(text))
        return self.regenerate()

    def regenerate(self, *, variant: int = 0) -> ChatReply:
        """Ask the last question once more; a reply that it has stays until `keep`.

        Args:
            variant: another number gives another reply where a seed is set.

        Raises:
            ConfigError: nothing was asked yet.
            LlmctlError: as `ask`.
        """
        if not self.conversation.turns:
            raise ConfigError("nothing was asked yet")
        sampling = replace(self.sampling, grammar=self.grammar)
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + variant)
        engine, asked_s = self.active_engine, perf_counter()
        stream = engine.submit(
            GenerationRequest(
                self.conversation.without_reply().messages(),
                sampling=sampling,
                adapter=self.adapter,
            )
        )
        return ChatReply(stream, engine.info(), asked_s)

    def keep(self, reply: ChatReply) -> Turn | None:
        """Store what came of a reply, in place of an older one; nothing came: that one stays."""
        reply.stop()
        turn = reply.turn
        if turn is not None:
            self._become(self.conversation.with_reply(turn))
        return turn

    def undo(self) -> Turn:
        """Take back the last question with its reply, and return it. Raises `ConfigError`."""
        question = self.last_question()
        self._become(self.conversation.without_question())
        return question

    def last_question(self) -> Turn:
        """Return the last question. Raises `ConfigError` if there is none."""
        without_reply = self.conversation.without_reply()
        if not without_reply.turns:
            raise ConfigError("nothing was asked yet")
        return without_reply.turns[-1]

    def change(self, conversation: Conversation) -> None:
        """Go on with a changed conversation, and store it."""
        self._become(conversation)

    def begin(self, conversation: Conversation | None = None) -> None:
        """Go on with another conversation, a new one by default; this one is stored already."""
        self.conversation = conversation or Conversation(system=self.conversation.system)

    def _become(self, conversation: Conversation) -> None:
        self.conversation = conversation
        if self.store is None or (not conversation.turns and conversation.version == 0):
            return
        try:
            self.conversation = self._stored(conversation)
        except LlmctlError as error:
            self._warn(f"not saved: {error}; /save FILE writes the conversation to a file")

    def _stored(self, conversation: Conversation) -> Conversation:
        assert self.store is not None
        try:
            return self.store.save(conversation, time.time())
        except ConversationConflictError:
            copy = replace(conversation, id=Conversation().id, version=0)
            self._warn(
                f"conversation {conversation.id} went on in another window; "
                f"this one is now {copy.id}"
            )
            return self.store.save(copy, time.time())

    def count(self, text: str | tuple[Message, ...]) -> int:
        """Count tokens, or guess them where the model is on a server, which does not tell."""
        engine = self.active_engine
        if isinstance(engine, SupportsTokenize):
            return engine.count_tokens(text)
        if isinstance(text, str):
            letters = sum(character.isascii() for character in text)
            signs = len(text) - letters
            return round(letters * _TOKENS_PER_LETTER + signs * _TOKENS_PER_SIGN)
        return sum(self.count(message.content) + 4 for message in text)

    @property
    def counts(self) -> bool:
        """Whether tokens are counted, not guessed."""
        return isinstance(self.active_engine, SupportsTokenize)

    def close(self) -> None:
        """End the engine that answers. Harmless to call again."""
        if self.engine is not None:
            self.engine.close()
