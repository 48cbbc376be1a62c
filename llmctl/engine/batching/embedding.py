"""Text embeddings: the mean of the last hidden states."""

from collections.abc import Callable, Generator, Sequence

import torch
import torch.nn.functional as F  # noqa: N812  the usual name

from llmctl.engine.batching.forward.packed import BatchItem, Forward
from llmctl.engine.batching.kv_pool import KVPool
from llmctl.engine.batching.scoring import acquire_cache, prefill_chunk_tokens


def embed_steps(
    forward: Forward,
    pool: KVPool,
    ids: Sequence[int],
    adapter: str | None,
    chunk: Callable[[], int] = prefill_chunk_tokens,
) -> Generator[None, None, tuple[float, ...]]:
    """Embed one text; yields between forward passes.

    Args:
        forward: runs the model.
        pool: provides the cache.
        ids: the text, at least one token.
        adapter: key of the adapter, `None` for the base model.
        chunk: returns the tokens that may be computed at once now.

    Returns:
        The mean over the tokens, of unit length.

    Raises:
        MemoryError: the cache is too small even when nothing else runs.
    """
    cache = yield from acquire_cache(pool, list(ids), adapter, len(ids))
    try:
        # Caches hold keys and values but no hidden states, so a cached prefix does not help.
        cache.truncate(0)
        total = torch.zeros(())
        while cache.length < len(ids):
            count = cache.step_limit(chunk(), len(ids) - cache.length)
            new = ids[cache.length : cache.length + count]
            total = total + forward.states([BatchItem(cache, new, ())]).float().sum(0).cpu()
            yield
        return normalize(total)
    finally:
        pool.release(cache)


def normalize(total: torch.Tensor) -> tuple[float, ...]:
    """Scale a vector (hidden,) to unit length."""
    return tuple(F.normalize(total, dim=0).tolist())
