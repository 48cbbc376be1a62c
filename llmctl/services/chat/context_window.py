"""Context window of a conversation: overflow check, dropped turns and summaries."""

from dataclasses import dataclass, replace

from llmctl.engine.chat.context_window import first_fitting, prompt_budget
from llmctl.errors import ContextLengthError, LlmctlError
from llmctl.services.chat.conversation import Conversation
from llmctl.services.chat.session import ChatSession
from llmctl.types import GenerationRequest, Message, SamplingParams

SUMMARY_TOKENS = 200
WARNING_SHARE = 0.85
"""Share of the context above which the user is warned."""
_INSTRUCTION = (
    "Summarise the conversation above in at most 120 words, for somebody who will continue it: "
    "who wants what, facts, names, numbers, decisions. Write nothing but the summary."
)


@dataclass(frozen=True, slots=True)
class ConversationOverflow:
    """A message that does not fit into the context together with the earlier turns."""

    prompt_tokens: int
    context_length: int
    begin: int
    """Index of the first turn that would still fit."""
    dropped: int
    """Number of turns that have to be dropped."""


def find_overflow(session: ChatSession, text: str) -> ConversationOverflow | None:
    """Return what does not fit if `text` is sent now.

    `None` means that it fits, or that the context length is not known.

    Raises:
        ContextLengthError: the message does not fit even without earlier turns.
    """
    context = session.info().context_length
    if not context:
        return None
    extended = session.conversation.with_message(text)
    budget = prompt_budget(context, session.sampling.max_new_tokens)
    needed = session.count_tokens(extended.messages())
    if needed <= budget:
        return None
    begins = [i for i in range(extended.begin, len(extended.turns)) if extended.turns[i].is_user]

    def count_from(begin: int) -> int:
        return session.count_tokens(replace(extended, begin=begin).messages())

    begin = first_fitting(begins, count_from, budget)
    if begin is None:
        raise ContextLengthError(
            f"the message is too long: {count_from(begins[-1]):,} tokens with the system prompt, "
            f"and the context holds {context:,}, {context - budget:,} of them for the reply",
            hint="shorten it, or attach less",
        )
    return ConversationOverflow(needed, context, begin, begin - extended.begin)


def drop_turns(session: ChatSession, begin: int) -> None:
    """Exclude the turns before `begin` from the prompt; they stay in the conversation."""
    session.update_conversation(replace(session.conversation, begin=begin))


def middle_turn(conversation: Conversation) -> int:
    """Return the index of the user turn that starts the newer half of the prompt."""
    middle = conversation.begin + (len(conversation.turns) - conversation.begin + 1) // 2
    return min(middle + middle % 2, len(conversation.turns))


def summarise_turns(session: ChatSession, begin: int) -> str:
    """Replace the turns before `begin` in the prompt with a summary written by the model.

    Raises:
        LlmctlError: the engine failed or returned an empty text; the conversation is unchanged.
    """
    conversation = session.conversation
    if not conversation.begin < begin:
        raise LlmctlError("there are no turns to summarise yet")
    summary = conversation.summary
    at = conversation.begin
    while at < begin:
        end = _chunk_end(session, replace(conversation, begin=at, summary=summary), begin)
        chunk = replace(conversation, begin=at, summary=summary, turns=conversation.turns[:end])
        summary = _write_summary(session, chunk)
        at = end
    session.update_conversation(replace(session.conversation, begin=begin, summary=summary))
    return summary


def _chunk_end(session: ChatSession, conversation: Conversation, begin: int) -> int:
    """Return the end of the longest chunk that fits into the context with its summary."""
    context = session.info().context_length
    end = begin
    while context and end - conversation.begin > 2:
        chunk = replace(conversation, turns=conversation.turns[:end])
        if session.count_tokens(_summary_prompt(chunk)) + SUMMARY_TOKENS <= context:
            break
        end -= 2
    return end


def _summary_prompt(chunk: Conversation) -> tuple[Message, ...]:
    return (*chunk.messages(), Message("user", _INSTRUCTION))


def _write_summary(session: ChatSession, chunk: Conversation) -> str:
    request = GenerationRequest(
        _summary_prompt(chunk),
        sampling=SamplingParams(max_new_tokens=SUMMARY_TOKENS, temperature=0.0),
        adapter=session.adapter,
    )
    text = session.active_engine.generate(request).choices[0].text.strip()
    if not text:
        raise LlmctlError("the model returned an empty summary", hint="/drop drops the turns")
    return text
