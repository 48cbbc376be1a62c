"""What becomes of a conversation that is longer than the context, where dropping is wanted?"""

import asyncio
from dataclasses import replace

from llmctl.server.served_model import ServedModel
from llmctl.types import GenerationRequest, Message

DROPPED_MESSAGES_HEADER = "x-llmctl-dropped-messages"
"""How many messages a reply was written without."""

LEAST_REPLY = 256
"""Tokens left for a reply whose length nobody has bounded."""


async def truncate_context(
    request: GenerationRequest, serving: ServedModel
) -> tuple[GenerationRequest, dict[str, str]]:
    """Drop the oldest turns, as few as will do, if that is wanted and needed.

    Instructions at the head stay, and so does all from the last question on; what is too long even
    then is refused by the engine.

    Returns:
        The request, and the headers that tell how many messages it lacks.
    """
    cuts = _cuts(request.messages)
    if serving.options.overflow != "truncate-oldest" or not cuts:
        return request, {}
    engine = serving.engine
    context = engine.info().context_length
    reply = request.sampling.max_new_tokens
    room = context - min(LEAST_REPLY if reply is None else reply, context // 2)
    head = cuts[0]

    def without(start: int) -> GenerationRequest:
        return replace(request, messages=request.messages[:head] + request.messages[start:])

    def fits(start: int) -> bool:
        return engine.count_prompt(without(start)) <= room

    def longest() -> int:
        # The further the cut, the shorter the rest: halve.
        low, high = 0, len(cuts) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(cuts[middle]) else (middle + 1, high)
        return cuts[low]

    start = await asyncio.to_thread(longest)
    if start == head:
        return request, {}
    return without(start), {DROPPED_MESSAGES_HEADER: str(start - head)}


def _cuts(messages: tuple[Message, ...]) -> list[int]:
    """Return where what is kept may begin: at the first turn, or at any question after it."""
    head = next((i for i, m in enumerate(messages) if m.role not in ("system", "developer")), None)
    if head is None:
        return []
    return [head, *(i for i, m in enumerate(messages) if i > head and m.role == "user")]
