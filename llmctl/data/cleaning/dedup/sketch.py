"""Which rows might be nearly the same? Short sketches of rows, such that alike rows share pieces.

MinHash with banding (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
section 3.4). A sketch only proposes; what it proposes is compared exactly.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data.cleaning.dedup.shingles import shingle_hashes, splitmix64
from llmctl.data.cleaning.dedup.similarity import RowParts

PERMUTATIONS = 128
_RECALL = 0.995
"""Share of the pairs exactly at the threshold that must be proposed."""

_SLICE = 4096
"""Shingles that are permuted at a time, so that a book takes no more memory than a page."""

_BASE = np.uint64(0x9E3779B97F4A7C15)
# From SplitMix64, not from NumPy's generator, whose streams may change with its version.
_CONSTANTS = (splitmix64(np.arange(2 * PERMUTATIONS, dtype=np.uint64)) >> np.uint64(32)).astype(
    np.uint32
)
_FLIP = _CONSTANTS[:PERMUTATIONS, None]
_FACTOR = _CONSTANTS[PERMUTATIONS:, None] | np.uint32(1)


@dataclass(frozen=True, slots=True)
class Banding:
    """How a signature is cut: rows that agree in all values of a band are proposed."""

    bands: int
    values: int

    @classmethod
    def at(cls, threshold: float) -> "Banding":
        """Take the narrowest net that still lets no more than 0.5 % through at the threshold."""
        for values in range(PERMUTATIONS, 1, -1):
            bands = PERMUTATIONS // values
            if 1 - (1 - threshold**values) ** bands >= _RECALL:
                return cls(bands, values)
        return cls(PERMUTATIONS, 1)

    def keys(self, signature: NDArray[np.uint32], seed: bytes) -> NDArray[np.uint32]:
        """Return a key per band, shape (bands,), different for a different `seed`."""
        banded = signature[: self.bands * self.values].reshape(self.bands, self.values)
        total = np.full(self.bands, int.from_bytes(seed, "little"), np.uint64)
        for column in range(self.values):
            total = total * _BASE + banded[:, column]
        return (splitmix64(total) >> np.uint64(32)).astype(np.uint32)


def minhash_signature(of: RowParts) -> NDArray[np.uint32]:
    """Return the MinHash signature of all parts of a row together, shape (PERMUTATIONS,).

    Where every part has a Jaccard similarity of at least t, so have all of them together: the
    same words count apart in prompt and answer.
    """
    texts = (of.prompt, of.answer, of.rejected)
    hashes = np.concatenate([shingle_hashes(text, seed) for seed, text in enumerate(texts)])
    short = (hashes >> np.uint64(32)).astype(np.uint32)
    if not len(short):
        return np.zeros(PERMUTATIONS, np.uint32)
    found = np.full(PERMUTATIONS, 2**32 - 1, np.uint32)
    for start in range(0, len(short), _SLICE):
        permuted = (short[start : start + _SLICE] ^ _FLIP) * _FACTOR
        np.minimum(found, permuted.min(axis=1), out=found)
    return found


def estimate_similarity(one: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Estimate the Jaccard similarity of a row and n others by the low bytes of their signatures.

    Args:
        one: shape (PERMUTATIONS,).
        others: shape (n, PERMUTATIONS).
    """
    equal: NDArray[np.float64] = (others == one).mean(axis=1)
    # One pair of bytes in 256 is equal by chance.
    return (equal - 1 / 256) / (1 - 1 / 256)
