"""Text to token ids, with the characters that each token stands for."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from llmctl.engine.chat.control_tokens import ControlTokenEscaper


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A text and its tokens."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]
    """Of each token, the half-open span of characters in `text`. A tokenizer written in Python
    cannot tell it: there it is the piece of text that was tokenised as one."""

    def __add__(self, other: "TokenizedText") -> "TokenizedText":
        start = len(self.text)
        moved = [(start + first, start + last) for first, last in other.offsets]
        return TokenizedText(self.text + other.text, self.ids + other.ids, self.offsets + moved)


class TextTokenizer:
    """One tokenizer, as the server and training both use it."""

    def __init__(self, tokenizer: Any, escaper: ControlTokenEscaper) -> None:
        self._tokenizer = tokenizer
        self._shield = escaper

    @property
    def exact(self) -> bool:
        """Whether the tokenizer can tell the characters of each token."""
        return bool(self._tokenizer.is_fast)

    @cached_property
    def fingerprint(self) -> str:
        """First 16 hex digits of the tokenizer's SHA-256: equal prints give equal tokens."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        tables = backend.to_str() if backend else json.dumps(self._tokenizer.get_vocab())
        named = json.dumps(self._tokenizer.special_tokens_map, default=str, sort_keys=True)
        return hashlib.sha256(f"{tables}\0{named}".encode()).hexdigest()[:16]

    def of(self, written: Iterable[tuple[str, Sequence[int]]]) -> list[TokenizedText]:
        """Tokenise what a template wrote, marks of the shield inside; many at once is faster.

        Args:
            written: each text with the positions that no token may reach across.
        """
        listed = list(written)
        whole = self._tokenise([text for text, _ in listed])
        for number, (text, cuts) in enumerate(listed):
            forced = [cut for cut in cuts if _crosses(whole[number], cut)]
            marks = list(self._shield.marks(text))
            if forced or marks:
                whole[number] = self._in_pieces(text, forced, marks)
        return whole

    def encode_documents(self, texts: Iterable[str]) -> list[TokenizedText]:
        """Tokenise raw texts as the server does a raw prompt, and end each with the EOS token.

        Control tokens in them count as such. A text that spells its own BOS or EOS gets no second.
        """
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        end: str = self._tokenizer.eos_token or ""
        made = []
        for document in self._tokenise([text.removesuffix(end) for text in texts], bare=False):
            first = 1 if bos is not None and document.ids[:2] == [bos, bos] else 0
            last = len(document.ids) - (document.ids[-1:] == [eos])
            open_end = TokenizedText(
                document.text, document.ids[first:last], document.offsets[first:last]
            )
            closing = [] if eos is None else [eos]
            made.append(open_end + TokenizedText(end, closing, [(0, len(end))] * len(closing)))
        return made

    def _in_pieces(
        self, written: str, cuts: Sequence[int], marks: Sequence[tuple[int, int]]
    ) -> TokenizedText:
        edges = sorted({0, len(written), *cuts, *(edge for span in marks for edge in span)})
        plain = {first for first, _ in marks}
        whole = TokenizedText("", [], [])
        for first, last in pairwise(edges):
            piece = self._shield.unescape(written[first:last])
            whole += self._tokenise([piece], plain=first in plain)[0]
        return whole

    def _tokenise(
        self, texts: Sequence[str], *, plain: bool = False, bare: bool = True
    ) -> list[TokenizedText]:
        """Tokenise texts; `plain` reads no control tokens in them, `bare` adds none to them."""
        if not texts:
            return []
        # A template writes its own BOS: adding special tokens would double it.
        made = self._tokenizer(
            texts,
            add_special_tokens=not bare,
            split_special_tokens=plain,
            return_attention_mask=False,
            return_offsets_mapping=self.exact,
            verbose=False,
        )
        all_ids: list[list[int]] = made.input_ids
        if self.exact:
            all_offsets = made.offset_mapping
        else:
            pairs = zip(texts, all_ids, strict=True)
            all_offsets = [[(0, len(text))] * len(ids) for text, ids in pairs]
        return [TokenizedText(*row) for row in zip(texts, all_ids, all_offsets, strict=True)]


def _crosses(rendered: TokenizedText, cut: int) -> bool:
    """Whether one token has characters on both sides; a gap before a token belongs to it."""
    after = bisect_right(rendered.offsets, cut, key=lambda span: span[1])
    if after == len(rendered.offsets):
        return False
    before = rendered.offsets[after - 1][1] if after else 0
    return min(rendered.offsets[after][0], before) < cut
