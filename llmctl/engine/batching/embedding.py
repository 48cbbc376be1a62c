"""A text as one vector: the mean of what the model's head would see of its tokens."""

from collections.abc import Callable, Generator, Sequence

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere

from llmctl.engine.batching.forward.packed import BatchItem, Forward
from llmctl.engine.batching.kv import KVPool
from llmctl.engine.batching.scoring import open_cache, prefill_chunk_tokens


def embed_steps(
    forward: Forward,
    pool: KVPool,
    ids: Sequence[int],
    adapter: str | None,
    chunk: Callable[[], int] = prefill_chunk_tokens,
) -> Generator[None, None, tuple[float, ...]]:
    """Embed one text; yields between forward passes.

    Args:
        chunk: says how many tokens may be read at once now.

    Returns:
        The mean over its tokens, of unit length.

    Raises:
        MemoryError: the cache has no room even when nothing else runs.
    """
    cache = yield from open_cache(pool, list(ids), adapter, len(ids))
    try:
        # States of tokens are not kept, only their keys and values: what is held is no help.
        cache.truncate(0)
        total = torch.zeros(())
        while cache.length < len(ids):
            new = ids[cache.length : cache.length + chunk()]
            total = total + forward.states([BatchItem(cache, new, ())]).float().sum(0).cpu()
            yield
        return normalize(total)
    finally:
        pool.release(cache)


def normalize(total: torch.Tensor) -> tuple[float, ...]:
    """Return the direction of a vector (hidden,)."""
    return tuple(F.normalize(total, dim=0).tolist())
