"""Files of token sequences: written as a stream, read through memory maps."""

from array import array
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmctl.types import SourceLocation

_NO_ORIGIN = SourceLocation("", 0)


@dataclass(frozen=True, slots=True, eq=False)
class TokenSequence:
    """One sequence: `ids` and `learn` have shape (length,)."""

    ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    """True where the token is a target of the loss, which the first token never is."""
    origin: SourceLocation = _NO_ORIGIN
    """The row it was made from."""


class TokenWriter:
    """Writes sequences to a folder. A context manager, which completes the files on exit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ends = array("q")
        self._lines = array("q")
        self._files = array("i")
        self._held_out = array("b")
        self._names: dict[str, int] = {}
        self._written = 0

    def __enter__(self) -> Self:
        self._open = ExitStack()
        self._ids = self._open.enter_context((self._folder / "ids.bin").open("wb"))
        self._masks = self._open.enter_context((self._folder / "loss_mask.bin").open("wb"))
        return self

    def add(self, sequence: TokenSequence, *, held_out: bool) -> None:
        """Append one sequence."""
        self._ids.write(sequence.ids.astype(np.int32).tobytes())
        self._masks.write(sequence.loss_mask.astype(np.bool_).tobytes())
        self._written += len(sequence.ids)
        self._ends.append(self._written)
        self._lines.append(sequence.origin.line)
        self._files.append(self._names.setdefault(sequence.origin.file, len(self._names)))
        self._held_out.append(held_out)

    @property
    def held_out(self) -> int:
        """Number of held-out sequences so far."""
        return sum(self._held_out)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per sequence so far, shape (sequences,)."""
        ends = np.array([0, *self._ends], dtype=np.int64)
        return ends[1:] - ends[:-1]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._open.close()
        if kind is not None:
            return
        np.save(self._folder / "ends.npy", np.array(self._ends, dtype=np.int64))
        np.save(self._folder / "lines.npy", np.array(self._lines, dtype=np.int64))
        np.save(self._folder / "files.npy", np.array(self._files, dtype=np.int32))
        np.save(self._folder / "held_out.npy", np.array(self._held_out, dtype=np.bool_))
        np.save(self._folder / "names.npy", np.array(list(self._names), dtype=np.str_))


class TokenDataset:
    """A map-style dataset of the sequences of a `TokenWriter`: `len()`, `[i]`, `lengths`.

    The arrays are memory maps, so that a large dataset needs no memory of its own and a copy in
    another process opens the same files.
    """

    def __init__(self, folder: Path, *, held_out: bool) -> None:
        self._args = (folder, held_out)
        ends = np.load(folder / "ends.npy")
        self._ids = np.memmap(folder / "ids.bin", dtype=np.int32, mode="r")
        self._masks = np.memmap(folder / "loss_mask.bin", dtype=np.bool_, mode="r")
        chosen = np.flatnonzero(np.load(folder / "held_out.npy") == held_out)
        self._ends: NDArray[np.int64] = ends[chosen]
        self.lengths: NDArray[np.int32] = np.diff(ends, prepend=0)[chosen].astype(np.int32)
        """Tokens per sequence, shape (len,)."""
        self._lines = np.load(folder / "lines.npy")[chosen]
        self._files = np.load(folder / "files.npy")[chosen]
        self._names: list[str] = np.load(folder / "names.npy").tolist()

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, self._args

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenSequence:
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        last = int(self._ends[index])
        span = slice(last - int(self.lengths[index]), last)
        origin = SourceLocation(self._names[self._files[index]], int(self._lines[index]))
        return TokenSequence(np.array(self._ids[span]), np.array(self._masks[span]), origin)


class PairDataset:
    """Preference pairs of a `TokenDataset` built with `TokenizeOptions.pairs`."""

    def __init__(self, sides: TokenDataset) -> None:
        self._sides = sides
        self.lengths: NDArray[np.int32] = sides.lengths.reshape(-1, 2).max(axis=1)
        """Tokens of the longer side of each pair, shape (len,)."""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> tuple[TokenSequence, TokenSequence]:
        """Return the chosen and the rejected sequence, both with the prompt."""
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return self._sides[2 * index], self._sides[2 * index + 1]


def _reopen(folder: Path, held_out: bool) -> TokenDataset:
    return TokenDataset(folder, held_out=held_out)
