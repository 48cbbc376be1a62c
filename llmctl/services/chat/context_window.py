"""Does the conversation still fit the model's context, and what makes room if it does not?"""

from dataclasses import dataclass, replace

from llmctl.errors import ContextLengthError, LlmctlError
from llmctl.services.chat.conversation import Conversation
from llmctl.services.chat.session import ChatSession
from llmctl.types import GenerationRequest, Message, SamplingParams

MIN_REPLY_TOKENS = 256
"""Tokens wanted for a reply whose length nobody has bounded."""
SUMMARY_TOKENS = 200
WARNING_SHARE = 0.85
"""Share of the context from which on a person is told."""
_INSTRUCTION = (
    "Summarise the conversation above in at most 120 words, for somebody who will continue it: "
    "who wants what, facts, names, numbers, decisions. Write nothing but the summary."
)


@dataclass(frozen=True, slots=True)
class ConversationOverflow:
    """A question that does not fit with all that was said before."""

    prompt_tokens: int
    context_length: int
    begin: int
    """Index of the first turn that the model could still be given."""
    dropped: int
    """Turns that it would not see any more."""


def find_overflow(session: ChatSession, text: str) -> ConversationOverflow | None:
    """Say what does not fit if `text` is asked now; `None` if it fits, or nobody knows.

    Raises:
        ContextLengthError: the question does not fit even alone.
    """
    context = session.info().context_length
    if not context:
        return None
    asked = session.conversation.asked(text)
    reply = session.sampling.max_new_tokens
    room = context - min(MIN_REPLY_TOKENS if reply is None else reply, context // 2)
    needed = session.count(asked.messages())
    if needed <= room:
        return None
    begins = [i for i in range(asked.begin, len(asked.turns)) if asked.turns[i].is_question]
    fitting = (b for b in begins if session.count(replace(asked, begin=b).messages()) <= room)
    begin = next(fitting, None)
    if begin is None:
        alone = session.count(replace(asked, begin=begins[-1]).messages())
        raise ContextLengthError(
            f"the question is too long: {alone:,} tokens with the system prompt, and the context "
            f"holds {context:,}, {context - room:,} of them for the reply",
            hint="shorten it, or attach less",
        )
    return ConversationOverflow(needed, context, begin, begin - asked.begin)


def drop_turns(session: ChatSession, begin: int) -> None:
    """Let the model see only the turns from `begin` on; all stay in the conversation."""
    session.change(replace(session.conversation, begin=begin))


def middle_turn(conversation: Conversation) -> int:
    """Return where the newer half of what the model is given begins, at a question."""
    middle = conversation.begin + (len(conversation.turns) - conversation.begin + 1) // 2
    return min(middle + middle % 2, len(conversation.turns))


def summarise_turns(session: ChatSession, begin: int) -> str:
    """Put a summary, written by the model itself, in place of the turns before `begin`.

    Raises:
        LlmctlError: the engine failed, or wrote nothing; the conversation is as it was.
    """
    conversation = session.conversation
    if not conversation.begin < begin:
        raise LlmctlError("there is nothing yet to summarise")
    summary = conversation.summary
    at = conversation.begin
    while at < begin:
        end = _reach(session, replace(conversation, begin=at, summary=summary), begin)
        part = replace(conversation, begin=at, summary=summary, turns=conversation.turns[:end])
        summary = _written(session, part)
        at = end
    session.change(replace(session.conversation, begin=begin, summary=summary))
    return summary


def _reach(session: ChatSession, conversation: Conversation, begin: int) -> int:
    """Return how far a summary can go in one piece: what is summarised must fit too."""
    context = session.info().context_length
    end = begin
    while context and end - conversation.begin > 2:
        part = replace(conversation, turns=conversation.turns[:end])
        if session.count(_order(part)) + SUMMARY_TOKENS <= context:
            break
        end -= 2
    return end


def _order(part: Conversation) -> tuple[Message, ...]:
    return (*part.messages(), Message("user", _INSTRUCTION))


def _written(session: ChatSession, part: Conversation) -> str:
    request = GenerationRequest(
        _order(part),
        sampling=SamplingParams(max_new_tokens=SUMMARY_TOKENS, temperature=0.0),
        adapter=session.adapter,
    )
    text = session.active_engine.generate(request).choices[0].text.strip()
    if not text:
        raise LlmctlError("the model wrote no summary", hint="/drop leaves the oldest turns out")
    return text
