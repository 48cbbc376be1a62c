"""Incremental detokenization: token ids to whole characters."""

from collections.abc import Collection
from typing import Any, Protocol

from tokenizers.decoders import DecodeStream

REPLACEMENT = "\ufffd"


class TokenDecoder(Protocol):
    """Decodes one token after the other."""

    def push(self, token_id: int) -> str:
        """Return the text that this token completes, which may be empty."""


def incremental_decoder(tokenizer: Any, kept_tokens: Collection[int] = ()) -> TokenDecoder:
    """Return the decoder for a Transformers tokenizer.

    Special tokens have no text, except those of `kept_tokens`.

    A character whose bytes are spread over several tokens is returned with its last token, and is
    dropped if that token does not come. Bytes that are not valid UTF-8 become U+FFFD.
    """
    decoder: TokenDecoder
    if tokenizer.is_fast:
        decoder = _FastDecoder(tokenizer.backend_tokenizer, not kept_tokens)
    else:
        decoder = _WindowDecoder(tokenizer, not kept_tokens)
    if not kept_tokens:
        return decoder
    added = tokenizer.added_tokens_decoder.items()
    special = {token_id for token_id, token in added if token.special}
    return _SelectiveDecoder(decoder, special.union(tokenizer.all_special_ids) - set(kept_tokens))


class _SelectiveDecoder:
    """Decodes with another decoder, but without some tokens."""

    def __init__(self, decoder: TokenDecoder, skipped: Collection[int]) -> None:
        self._decoder = decoder
        self._skipped = frozenset(skipped)

    def push(self, token_id: int) -> str:
        return "" if token_id in self._skipped else self._decoder.push(token_id)


class _FastDecoder:
    """Decodes with the Rust `DecodeStream`, in constant time per token."""

    def __init__(self, backend: Any, skip_special_tokens: bool) -> None:
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)

    def push(self, token_id: int) -> str:
        try:
            return self._stream.step(self._backend, token_id) or ""
        except Exception:
            # "Invalid prefix": some decoders rewrite earlier text, after which the stream rejects
            # every token. A new stream loses the left context, which costs a space at most.
            self._stream = DecodeStream(skip_special_tokens=self._skip_special_tokens)
            return self._stream.step(self._backend, token_id) or ""


class _WindowDecoder:
    """Decodes a short window again for each token: for tokenizers without a Rust backend."""

    def __init__(self, tokenizer: Any, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._ids: list[int] = []
        self._returned = 0
        """Number of leading `_ids` whose text has been returned."""

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        before, now = self._decode(self._ids[: self._returned]), self._decode(self._ids)
        if now.endswith(REPLACEMENT) or len(now) <= len(before):
            return ""
        # The window keeps the tokens of this piece as left context: spaces depend on it.
        self._ids = self._ids[self._returned :]
        self._returned = len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
        return text
