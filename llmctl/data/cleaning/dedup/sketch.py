"""MinHash sketches of rows with banding, to propose pairs of similar rows.

Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4. Proposed pairs
are compared exactly elsewhere.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmctl.data.cleaning.dedup.shingles import shingle_hashes, splitmix64
from llmctl.data.cleaning.dedup.similarity import RowParts

PERMUTATIONS = 128
_RECALL = 0.995
"""Minimum share of the pairs exactly at the threshold that are proposed."""

_SLICE = 4096
"""Number of shingles permuted at a time; it bounds the memory for long texts."""

_BASE = np.uint64(0x9E3779B97F4A7C15)
# From SplitMix64, not from NumPy's generator, whose streams may change with its version.
_CONSTANTS = (splitmix64(np.arange(2 * PERMUTATIONS, dtype=np.uint64)) >> np.uint64(32)).astype(
    np.uint32
)
_FLIP = _CONSTANTS[:PERMUTATIONS, None]
_FACTOR = _CONSTANTS[PERMUTATIONS:, None] | np.uint32(1)


@dataclass(frozen=True, slots=True)
class Banding:
    """Division of a signature into bands; rows with all values of a band equal are proposed."""

    bands: int
    values: int
    """Per band."""

    @classmethod
    def for_threshold(cls, threshold: float) -> "Banding":
        """Return the banding with the most values that misses at most 0.5 % at the threshold."""
        for values in range(PERMUTATIONS, 1, -1):
            bands = PERMUTATIONS // values
            if 1 - (1 - threshold**values) ** bands >= _RECALL:
                return cls(bands, values)
        return cls(PERMUTATIONS, 1)

    def keys(self, signature: NDArray[np.uint32], seed: bytes) -> NDArray[np.uint32]:
        """Return a key per band, shape (bands,); other keys for another `seed`.

        Args:
            signature: shape (PERMUTATIONS,).
        """
        banded = signature[: self.bands * self.values].reshape(self.bands, self.values)
        total = np.full(self.bands, int.from_bytes(seed, "little"), np.uint64)
        for column in range(self.values):
            total = total * _BASE + banded[:, column]
        return (splitmix64(total) >> np.uint64(32)).astype(np.uint32)


def minhash_signature(parts: RowParts) -> NDArray[np.uint32]:
    """Return the MinHash signature of all parts of a row together, shape (PERMUTATIONS,).

    Shingles of different parts are different elements. So if every part has a Jaccard similarity
    of at least t, the union has it too.
    """
    texts = (parts.prompt, parts.answer, parts.rejected)
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

    Returns:
        Shape (n,).
    """
    equal: NDArray[np.float64] = (others == one).mean(axis=1)
    # One pair of bytes in 256 is equal by chance.
    return (equal - 1 / 256) / (1 - 1 / 256)
