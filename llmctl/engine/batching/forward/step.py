"""One step over a batch: the new tokens of each sequence, and how its attention sees them."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812  the usual name
from torch import Tensor

from llmctl.engine.batching.bucket_size import bucket_size, query_bucket_size
from llmctl.engine.batching.kv_cache import KVCache, KVReader, KVWriter


@dataclass(frozen=True, slots=True)
class Segment:
    """The new tokens of one sequence within a packed step."""

    cache: KVCache
    start: int
    """Index of the first of them in the packed sequence."""
    count: int
    past: int
    """Tokens of the sequence that are in its cache already."""
    branches: tuple[int, ...] = ()
    """Lengths of alternative continuations at the end of the new tokens. Each attends to itself and
    to the tokens before the first branch, not to the other branches."""

    @property
    def positions(self) -> list[int]:
        """Position of each new token within its sequence; all branches begin at the same one."""
        positions = list(range(self.past, self.branch_start))
        for length in self.branches:
            positions.extend(range(self.branch_start, self.branch_start + length))
        return positions

    @property
    def branch_start(self) -> int:
        """Tokens of the sequence before the branches; without branches its whole length."""
        return self.past + self.count - sum(self.branches)


class Scores(NamedTuple):
    """How a layer computes its attention scores."""

    scaling: float
    window: int | None = None
    """Tokens that a token attends to, itself included; `None` for all."""
    chunk: int | None = None
    """Size of the chunks of the sequence; a token attends to its own chunk. `None`: one chunk."""
    softcap: float | None = None
    """Limit of the scores before the softmax, by tanh (Gemma 2)."""
    sinks: Tensor | None = None
    """A score (heads,) per head that takes part in the softmax and has no value (gpt-oss)."""

    @property
    def is_plain(self) -> bool:
        return self.softcap is None and self.sinks is None

    def first_visible(self, position: int) -> int:
        """Return the first position that the token at `position` attends to."""
        first = 0 if self.window is None else max(position + 1 - self.window, 0)
        return first if self.chunk is None else max(first, position // self.chunk * self.chunk)


@dataclass(slots=True)
class PackedStep:
    """The segments of a packed batch, in order and without gaps; makes masks once per step."""

    segments: Sequence[Segment]
    rows: Tensor | None = None
    """Where the batch is rectangular, (rows, tokens) with padding at the end: the indices of the
    segments' tokens in the flattened batch."""
    _masks: dict[tuple[object, ...], Tensor] = field(default_factory=dict)
    _writers: list[KVWriter] = field(default_factory=list)
    _readers: dict[tuple[int | None, int | None], list[KVReader]] = field(default_factory=dict)
    _sources: dict[int, int] = field(default_factory=dict)
    layer: int = -1
    """The layer whose cache was updated last."""
    latent: frozenset[int] = frozenset()
    """Layers that cache other tensors than keys and values (latent attention). The model makes keys
    and values of them, so its attention gets those of whole sequences."""

    def split(self, new: Tensor) -> tuple[Tensor, ...]:
        """Split (heads, tokens, head_dim) by segment; padding at the end is left out."""
        counts = [segment.count for segment in self.segments]
        padding = new.shape[1] - sum(counts)
        parts: tuple[Tensor, ...] = torch.split(new, [*counts, padding], dim=1)
        return parts[: len(counts)]

    def writers(self) -> list[KVWriter]:
        """Return a cache writer for each segment, made once for all layers."""
        if not self._writers:
            self._writers = [s.cache.writer(s.past, s.count) for s in self.segments]
        return self._writers

    def readers(self, scores: Scores) -> list[KVReader]:
        """Return a cache reader for each segment, made once for all layers."""
        key = scores.window, scores.chunk
        if key not in self._readers:
            self._readers[key] = [_reader(segment, scores) for segment in self.segments]
        return self._readers[key]

    def update_latent(self, layer: int, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Write what a latent layer caches, and return that of all tokens of all segments.

        Args:
            layer: index of the layer.
            first: (rows, heads, tokens, dim), of the new tokens.
            second: like `first`.

        Returns:
            Both, (1, heads, all tokens of the first segment, then of the second ..., dim).
        """
        parts = (self.split(flatten(part, self.rows)) for part in (first, second))
        whole = []
        for segment, new, write in zip(
            self.segments, zip(*parts, strict=True), self.writers(), strict=True
        ):
            write(layer, *new)
            whole.append(segment.cache.reader(0, segment.past + segment.count)(layer))
        firsts, seconds = zip(*whole, strict=True)
        return torch.cat(firsts, 2), torch.cat(seconds, 2)

    def latent_readers(self, keys: Tensor, values: Tensor) -> list[KVReader]:
        """Return readers of (heads, all tokens of the first segment, then the second ..., dim)."""
        readers: list[KVReader] = []
        start = 0
        for segment in self.segments:
            total = segment.past + segment.count
            pair = keys[None, :, start : start + total], values[None, :, start : start + total]
            readers.append(partial(_constant, pair))
            start += total
        return readers

    def source(self, layer: int, key: Tensor) -> int:
        """Return the layer whose cache has the keys: of an earlier one where layers share them."""
        if self.segments[0].cache.has_layer(layer):
            self._sources[key.data_ptr()] = layer
            return layer
        return self._sources[key.data_ptr()]

    def temperature(self, query: Tensor, floor_scale: float, attn_scale: float) -> Tensor:
        """Return factors (1, 1, tokens, 1) that scale queries by their positions (Llama 4).

        The layer has scaled them by their places in the packed batch, which the factors undo.

        Args:
            query: (1, heads, tokens, head_dim).
            floor_scale: positions with the same scale.
            attn_scale: weight of the logarithm.
        """
        key = "temperature", floor_scale, attn_scale
        if key not in self._masks:
            places = torch.arange(query.shape[2], dtype=torch.float32)
            own = places.clone()
            for segment in self.segments:
                positions = torch.tensor(segment.positions, dtype=torch.float32)
                own[segment.start : segment.start + segment.count] = positions
            wanted, given = (
                torch.log1p(torch.floor((at + 1.0) / floor_scale)) * attn_scale + 1.0
                for at in (own, places)
            )
            factors = (wanted / given)[None, None, :, None]
            self._masks[key] = factors.to(query.device, query.dtype)
        return self._masks[key]

    def mask(self, query: Tensor, segment: Segment, begin: int, size: int, how: Scores) -> Tensor:
        """Return an additive mask, made once for all layers.

        Args:
            query: gives type and device.
            segment: the queries are tokens of this segment.
            begin: index of the first query within the segment.
            size: number of queries.
            how: the window and the chunks of the layer.

        Returns:
            (size, past + begin + size), or with branches (size, past + count). On a CPU both are
            rounded up to a bucket, as far as the cache has capacity.
        """
        branches = segment.start if segment.branches else None
        key = (segment.past + begin, size, how.window, how.chunk, branches)
        if key not in self._masks:
            mask = _additive_mask(query, segment, begin, size, how)
            if query.device.type == "cpu":
                rows, columns = mask.shape
                wider = min(bucket_size(columns), segment.cache.capacity) - columns
                mask = F.pad(mask, (0, wider), value=float("-inf"))
                # Padding queries attend to all keys: the softmax of a fully masked row is NaN.
                mask = F.pad(mask, (0, 0, 0, query_bucket_size(rows) - rows))
            self._masks[key] = mask
        return self._masks[key]


def _constant(pair: tuple[Tensor, Tensor], _layer: int) -> tuple[Tensor, Tensor]:
    return pair


def _additive_mask(query: Tensor, segment: Segment, begin: int, size: int, how: Scores) -> Tensor:
    total = segment.past + (segment.count if segment.branches else begin + size)
    visible = torch.ones(size, total, dtype=torch.bool).tril(segment.past + begin)
    start = segment.branch_start
    at = start
    for length in segment.branches:
        # A branch does not attend to the branches before it.
        first = at - segment.past - begin
        visible[max(first, 0) : max(first + length, 0), start:at] = False
        at += length
    if how.window is not None or how.chunk is not None:
        positions = torch.tensor([*range(segment.past), *segment.positions])
        own = positions[segment.past + begin : segment.past + begin + size].tolist()
        oldest = torch.tensor([how.first_visible(position) for position in own])
        visible &= positions[None, :total] >= oldest[:, None]
    mask = torch.zeros(size, total, dtype=query.dtype).masked_fill_(~visible, float("-inf"))
    return mask.to(query.device)


def _reader(segment: Segment, how: Scores) -> KVReader:
    total = segment.past + segment.count
    if segment.count == 1:
        return segment.cache.reader(how.first_visible(total - 1), total)
    return segment.cache.reader(0, min(bucket_size(total), segment.cache.capacity))


_CURRENT = threading.local()


@contextmanager
def current_step(step: PackedStep) -> Iterator[None]:
    """Make `step` the one that the attention of models on this thread computes."""
    _CURRENT.step = step
    try:
        yield
    finally:
        del _CURRENT.step


def step_of_thread() -> PackedStep:
    """Return the step that `current_step` has set."""
    step: PackedStep = _CURRENT.step
    return step


def flatten(states: Tensor, rows: Tensor | None) -> Tensor:
    """Return (rows, heads, tokens, dim) as (heads, tokens of the segments, dim)."""
    if len(states) == 1:
        return states[0] if rows is None else states[0].index_select(1, rows)
    flat = states.transpose(0, 1).flatten(1, 2)
    return flat if rows is None or len(rows) == flat.shape[1] else flat.index_select(1, rows)
