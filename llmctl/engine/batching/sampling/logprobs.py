"""Log-probabilities under the model's raw distribution, with the bytes and text of the tokens."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from torch import Tensor

from llmctl.types import TokenLogprob, TokenProb

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Bytes of each token id of one tokenizer, computed on first use."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._byte_level = tokenizer.is_fast and "ByteLevel" in repr(
            tokenizer.backend_tokenizer.decoder
        )
        self._added = {i: str(t) for i, t in tokenizer.added_tokens_decoder.items()}
        self._cache: dict[int, bytes] = {}

    def of(self, token_id: int) -> bytes:
        """Return the bytes that the token adds to the text; they may be part of a character."""
        if token_id not in self._cache:
            self._cache[token_id] = self._bytes(token_id)
        return self._cache[token_id]

    def _bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:  # padding rows of the embedding
            return b""
        if self._byte_level:
            alphabet = _byte_alphabet()
            if all(c in alphabet for c in token):
                return bytes(alphabet[c] for c in token)
        if match := _BYTE_TOKEN.fullmatch(token):
            return bytes([int(match.group(1), 16)])
        return str(token).replace("\u2581", " ").encode()

    def prob(self, token_id: int, logprob: float) -> TokenProb:
        """Return the token with its natural log-probability."""
        raw = self.of(token_id)
        return TokenProb(token_id, raw.decode(errors="replace"), raw, logprob)


def token_logprobs(
    logits: Tensor, chosen: Sequence[int], top: Sequence[int | None], token_bytes: TokenBytes
) -> list[TokenLogprob | None]:
    """Return the log-probabilities of the chosen tokens before penalties, bias and temperature.

    Args:
        logits: (rows, vocab), raw.
        chosen: the token chosen in each row.
        top: per row the number of likeliest tokens to list; `None` for no entry.
        token_bytes: bytes of each token.
    """
    entries: list[TokenLogprob | None] = [None] * len(chosen)
    rows = [i for i, k in enumerate(top) if k is not None]
    if not rows:
        return entries
    logprobs = logits[rows].float().log_softmax(-1)
    largest = max(top[i] or 0 for i in rows)
    values, ids = (t.tolist() for t in logprobs.topk(largest, dim=-1)) if largest else ([], [])
    for at, i in enumerate(rows):
        k = top[i] or 0
        likeliest = zip(ids[at][:k], values[at][:k], strict=True) if k else ()
        entries[i] = TokenLogprob(
            token_bytes.prob(chosen[i], float(logprobs[at, chosen[i]])),
            tuple(token_bytes.prob(token_id, value) for token_id, value in likeliest),
        )
    return entries


@cache
def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's printable characters for the 256 bytes (Radford et al. 2019, encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    stand_ins = {chr(b): b for b in printable}
    stand_ins.update({chr(256 + i): b for i, b in enumerate(others)})
    return stand_ins
