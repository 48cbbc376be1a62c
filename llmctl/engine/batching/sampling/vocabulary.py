"""A tokenizer in the form that llguidance takes."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

from llmctl.engine.batching.sampling.logprobs import TokenBytes


class TokenVocabulary:
    """A tokenizer in llguidance's interface: the bytes of each token, and a tokenize function."""

    bos_token_id = None

    def __init__(self, tokenizer: Any, size: int, eos_ids: Sequence[int]) -> None:
        texts = TokenBytes(tokenizer)
        self.tokens = [texts.of(i) for i in range(size)]
        self.eos_token_id = eos_ids[0] if eos_ids else None
        added = tokenizer.added_tokens_decoder.items()
        special = {i for i, token in added if token.special}
        self.special_token_ids = sorted(special.union(eos_ids, tokenizer.all_special_ids))
        self._backend: Tokenizer | None = None
        if tokenizer.is_fast:
            # A copy, since other users change the padding and truncation of the original.
            self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            self._backend.no_padding()
            self._backend.no_truncation()
            self._backend.encode_special_tokens = True

    def __call__(self, text: str) -> list[int]:
        """Tokenize text from the middle of a reply."""
        if self._backend is not None:
            ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
            if b"".join(self.tokens[i] for i in ids if i < len(self.tokens)) == text.encode():
                return ids
        # SentencePiece adds a space before the text, and some vocabularies lack bytes.
        return self._greedy_tokenize(text.encode())

    def _greedy_tokenize(self, text: bytes) -> list[int]:
        """Take the longest matching token repeatedly, until none matches."""
        ids: list[int] = []
        while text:
            sizes = range(min(len(text), self._max_token_bytes), 0, -1)
            size = next((n for n in sizes if text[:n] in self._ids), None)
            if size is None:
                break
            ids.append(self._ids[text[:size]])
            text = text[size:]
        return ids

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        special = set(self.special_token_ids)
        return {word: i for i, word in enumerate(self.tokens) if word and i not in special}

    @cached_property
    def _max_token_bytes(self) -> int:
        return max(map(len, self._ids))
