"""How are the figures of a reply told: speed, tokens, and how full the context is?"""

from llmctl.services.chat.context_window import WARNING_SHARE
from llmctl.services.chat.conversation import ReplyStats
from llmctl.services.chat.reply import ChatReply

CONTEXT_BAR_CELLS = 10


def format_context_usage(used: int, context: int) -> str:
    """Draw how much of the context is taken."""
    if not context:
        return f"{used:,} tokens used"
    share = min(used / context, 1.0)
    full = round(share * CONTEXT_BAR_CELLS)
    bar = "█" * full + "░" * (CONTEXT_BAR_CELLS - full)
    return f"context {bar} {used:,} / {context:,} ({share:.0%})"


def format_stats(figures: ReplyStats, width: int) -> str:
    """Return the figures in as few lines as they fit."""
    parts = []
    if figures.ttft_s is not None:
        parts.append(f"{figures.ttft_s:.2f} s to the first token")
    parts.append(f"{figures.completion_tokens:,} tokens in {figures.duration_s:.1f} s")
    if (speed := figures.tokens_per_s) is not None:
        parts.append(f"{speed:.1f} tokens/s")
    if figures.prompt_tokens is not None:
        cached = f", {figures.cached_tokens:,} of them cached" if figures.cached_tokens else ""
        parts.append(f"{figures.prompt_tokens:,} prompt tokens{cached}")
    if figures.used_tokens is not None:
        parts.append(format_context_usage(figures.used_tokens, figures.context_length))
    return "\n".join(join_parts(parts, width))


def length_limit_message(reply: ChatReply, limit: int | None, more: str) -> str:
    """Return why a reply that was cut off is.

    Args:
        limit: most tokens that a reply may have.
        more: how a higher limit is set.
    """
    if limit is not None and reply.tokens >= limit:
        return f"cut off: after {limit:,} tokens; {more} {2 * limit} allows more"
    return "cut off: the context is full"


def context_warning(figures: ReplyStats) -> str:
    """Return how full the context is, if it is nearly; else nothing."""
    used, context = figures.used_tokens, figures.context_length
    if used is None or not context or used < WARNING_SHARE * context:
        return ""
    return f"the context is {used / context:.0%} full ({used:,} of {context:,} tokens)"


def join_parts(parts: list[str], width: int, between: str = " · ") -> list[str]:
    """Join parts into lines; a part is never broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(between) + len(part) <= width:
            lines[-1] += between + part
        else:
            lines.append(part)
    return lines
