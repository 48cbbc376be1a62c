"""Tokenisation of rendered text, with the characters that each token covers."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from llmctl.engine.chat.control_tokens import CharSpan, ControlTokenEscaper


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text and its tokens."""

    text: str
    ids: list[int]
    offsets: list[CharSpan]
    """The characters of `text` that each token covers. A tokenizer without a Rust backend does not
    report them: there each token has the span of the piece of text that was tokenised as one."""

    def __add__(self, other: "TokenizedText") -> "TokenizedText":
        start = len(self.text)
        moved = [(start + first, start + last) for first, last in other.offsets]
        return TokenizedText(self.text + other.text, self.ids + other.ids, self.offsets + moved)


class TextTokenizer:
    """Tokenises text the same way for serving and for training."""

    def __init__(self, tokenizer: Any, escaper: ControlTokenEscaper) -> None:
        self._tokenizer = tokenizer
        self._escaper = escaper

    @property
    def has_offsets(self) -> bool:
        """Whether the tokenizer reports the characters of each token."""
        return bool(self._tokenizer.is_fast)

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of a SHA-256 of the tokenizer: equal fingerprints, equal tokens."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        tables = backend.to_str() if backend else json.dumps(self._tokenizer.get_vocab())
        named = json.dumps(self._tokenizer.special_tokens_map, default=str, sort_keys=True)
        return hashlib.sha256(f"{tables}\0{named}".encode()).hexdigest()[:16]

    def encode(self, rendered: Iterable[tuple[str, Sequence[int]]]) -> list[TokenizedText]:
        """Tokenise rendered texts with placeholders in them. One call for many is faster.

        Args:
            rendered: each text with the positions that no token may reach across.
        """
        listed = list(rendered)
        tokenized = self._tokenize([text for text, _ in listed])
        for number, (text, cuts) in enumerate(listed):
            crossed = [cut for cut in cuts if _crosses(tokenized[number], cut)]
            placeholders = list(self._escaper.placeholder_spans(text))
            if crossed or placeholders:
                tokenized[number] = self._encode_in_pieces(text, crossed, placeholders)
        return tokenized

    def encode_documents(self, texts: Iterable[str]) -> list[TokenizedText]:
        """Tokenise raw texts as the server does a raw prompt, and end each with the EOS token.

        Control tokens in them are control tokens. A BOS or EOS token in the text is not doubled.
        """
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        end: str = self._tokenizer.eos_token or ""
        documents = []
        for document in self._tokenize([t.removesuffix(end) for t in texts], add_special=True):
            first = 1 if bos is not None and document.ids[:2] == [bos, bos] else 0
            last = len(document.ids) - (document.ids[-1:] == [eos])
            body = TokenizedText(
                document.text, document.ids[first:last], document.offsets[first:last]
            )
            closing = [] if eos is None else [eos]
            documents.append(body + TokenizedText(end, closing, [(0, len(end))] * len(closing)))
        return documents

    def _encode_in_pieces(
        self, rendered: str, cuts: Sequence[int], placeholders: Sequence[CharSpan]
    ) -> TokenizedText:
        edges = sorted({0, len(rendered), *cuts, *(edge for span in placeholders for edge in span)})
        escaped = {first for first, _ in placeholders}
        joined = TokenizedText("", [], [])
        for first, last in pairwise(edges):
            piece = self._escaper.unescape(rendered[first:last])
            joined += self._tokenize([piece], split_special=first in escaped)[0]
        return joined

    def _tokenize(
        self, texts: Sequence[str], *, split_special: bool = False, add_special: bool = False
    ) -> list[TokenizedText]:
        """Tokenise texts.

        Args:
            split_special: tokenise control tokens in the text as plain text.
            add_special: add the BOS or EOS that the tokenizer adds. A template writes its own.
        """
        if not texts:
            return []
        encoding = self._tokenizer(
            texts,
            add_special_tokens=add_special,
            split_special_tokens=split_special,
            return_attention_mask=False,
            return_offsets_mapping=self.has_offsets,
            verbose=False,
        )
        all_ids: list[list[int]] = encoding.input_ids
        if self.has_offsets:
            all_offsets = encoding.offset_mapping
        else:
            pairs = zip(texts, all_ids, strict=True)
            all_offsets = [[(0, len(text))] * len(ids) for text, ids in pairs]
        return [TokenizedText(*row) for row in zip(texts, all_ids, all_offsets, strict=True)]


def _crosses(tokenized: TokenizedText, cut: int) -> bool:
    """Whether one token has characters on both sides; a gap before a token belongs to it."""
    after = bisect_right(tokenized.offsets, cut, key=lambda span: span[1])
    if after == len(tokenized.offsets):
        return False
    before = tokenized.offsets[after - 1][1] if after else 0
    return min(tokenized.offsets[after][0], before) < cut
