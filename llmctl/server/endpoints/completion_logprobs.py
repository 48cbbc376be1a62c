"""How likely was each token of a completion, and where in the text does it begin?"""

import codecs
from collections.abc import Iterable
from dataclasses import dataclass

from llmctl.server.convert import MIN_LOGPROB
from llmctl.server.schemas.completions import CompletionLogprobs
from llmctl.types import TokenLogprob


class TextOffsets:
    """Says where each of successive tokens begins, in characters.

    One that goes on with a character begins where that does.
    """

    def __init__(self, at: int = 0) -> None:
        self._at = at
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def next(self, token_bytes: bytes) -> int:
        """Return where the token begins; the one after it begins at its end."""
        at = max(self._at, 0)
        self._at += len(self._decoder.decode(token_bytes))
        return at


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """A prompt as it stands before its completion."""

    text: str
    first: str | None = None
    """Its first token, if tokens are wanted; there is nothing to predict it from."""
    tokens: tuple[TokenLogprob, ...] = ()
    """The others."""

    def logprobs(self, completion: Iterable[TokenLogprob], most: int) -> CompletionLogprobs:
        """Describe the tokens of prompt and completion."""
        described = _nothing(most)
        offsets = TextOffsets(len(self.text))
        if self.first is not None:
            text = self.text.encode()
            # What the others leave. A BOS has nothing of the text; and a tokenizer that writes a
            # space before the first word has more in its tokens than there is text.
            left = len(text) - sum(len(token.chosen.token_bytes) for token in self.tokens)
            offsets = TextOffsets(min(left, 0))
            described.tokens.append(self.first)
            described.text_offset.append(offsets.next(text[: max(left, 0)]))
            described.token_logprobs.append(None)
            if described.top_logprobs is not None:
                described.top_logprobs.append(None)
        return _with(described, (*self.tokens, *completion), offsets)


def completion_logprobs(
    tokens: Iterable[TokenLogprob], offsets: TextOffsets, most: int
) -> CompletionLogprobs:
    """Describe the tokens of a piece of a completion."""
    return _with(_nothing(most), tokens, offsets)


def _nothing(most: int) -> CompletionLogprobs:
    top: list[dict[str, float] | None] | None = [] if most else None
    return CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=top, text_offset=[])


def _with(
    described: CompletionLogprobs, tokens: Iterable[TokenLogprob], offsets: TextOffsets
) -> CompletionLogprobs:
    for token in tokens:
        chosen = token.chosen
        described.tokens.append(chosen.token)
        described.text_offset.append(offsets.next(chosen.token_bytes))
        described.token_logprobs.append(max(chosen.logprob, MIN_LOGPROB))
        if described.top_logprobs is not None:
            described.top_logprobs.append(
                {top.token: max(top.logprob, MIN_LOGPROB) for top in token.top}
            )
    return described
