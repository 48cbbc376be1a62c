"""Turns token ids into text that is safe to show: whole characters, no part of a stop string."""

from collections.abc import Sequence
from typing import Any, Protocol

from tokenizers.decoders import DecodeStream

REPLACEMENT = "\ufffd"


class TokenDecoder(Protocol):
    """Turns one token after the other into text."""

    def push(self, token_id: int) -> str:
        """Return the text that this token completes, which may be empty."""


def incremental_decoder(tokenizer: Any, *, skip_special_tokens: bool = True) -> TokenDecoder:
    """Return the decoder that fits a Transformers tokenizer.

    A character whose bytes are spread over several tokens is returned with its last token, and
    never if that does not come. Bytes that are no UTF-8 at all become U+FFFD.
    """
    if tokenizer.is_fast:
        return _FastDecoder(tokenizer.backend_tokenizer, skip_special_tokens)
    return _PrefixDecoder(tokenizer, skip_special_tokens)


class _FastDecoder:
    """Rust decoding, constant time per token."""

    def __init__(self, backend: Any, skip_special_tokens: bool) -> None:
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)

    def push(self, token_id: int) -> str:
        try:
            return self._stream.step(self._backend, token_id) or ""
        except Exception:
            # "Invalid prefix": some decoders rewrite earlier text, and the stream then refuses to
            # go on for good. A new one loses left context, at worst a space.
            self._stream = DecodeStream(skip_special_tokens=self._skip_special_tokens)
            return self._stream.step(self._backend, token_id) or ""


class _PrefixDecoder:
    """For tokenizers without a Rust backend: decode a short window again and return what is new."""

    def __init__(self, tokenizer: Any, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids: list[int] = []
        self._shown = 0  # ids[:shown] gave all the text returned so far

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        before, now = self._decode(self._ids[: self._shown]), self._decode(self._ids)
        if now.endswith(REPLACEMENT) or len(now) <= len(before):
            return ""
        # The window keeps the tokens of this piece as left context: spaces depend on it.
        self._ids = self._ids[self._shown :]
        self._shown = len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
        return text


class StopStringScanner:
    """Cuts text at the first stop string to complete, and holds back what may become one.

    Text comes in pieces cut anywhere. What `feed` and `flush` return, joined, never contains any
    part of the stop string that ended it.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """Return the text that is now safe to show."""
        if self.stopped or not piece:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        found = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            # What completes first wins, as if characters had come one by one; of two that
            # complete together, the longer one.
            return text[: min(found)[1]]
        keep = self._held_length(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back, once no more text can come."""
        held, self._held = self._held, ""
        return held

    def _held_length(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(s.startswith(end) for s in self._stops):
                return length
        return 0
