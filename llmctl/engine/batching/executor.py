"""How is this model run: many rows in a step, or, where that does not suit it, one at a time?"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from llmctl.engine.batching.forward.cpu_load import CpuLoadMonitor
from llmctl.engine.batching.forward.fused import FusedForward
from llmctl.engine.batching.forward.lora import LoraAdapter
from llmctl.engine.batching.forward.packed import BatchItem, Forward, PackedForward, kv_shape
from llmctl.engine.batching.forward.threads import ThreadedForward, measure_decode_threads
from llmctl.engine.batching.kv import KVPool, KVShape
from llmctl.engine.batching.sampling.logprobs import TokenBytes
from llmctl.engine.batching.scheduler import Scheduler
from llmctl.engine.batching.scoring import LogprobsFn, TokenizedContinuation
from llmctl.engine.batching.sequence import ScheduledSequence as RowSequence
from llmctl.engine.batching.serial import SerialExecutor
from llmctl.types import EngineState, KVQuant, MemoryPlan, Quant, Score

FUSED_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""`model_type`s whose layers have the shape that `FusedForward` writes out."""

_PROBE_TOKENS = 24
_EXACT, _ROUNDED, _QUANTISED = 1e-3, 0.05, 0.15
"""How far logits may be from the model's own, relative to their length: a wrong mask, position or
layer is off by about 1."""


class Executor(Protocol):
    """Runs sequences and scores texts; the engine thread calls `step` while it is `busy`."""

    @property
    def busy(self) -> bool: ...

    def state(self) -> EngineState: ...

    def add(self, sequence: RowSequence) -> None: ...

    def step(self) -> None: ...

    def score(
        self,
        pairs: Sequence[TokenizedContinuation],
        adapter: str | None,
        describe: LogprobsFn = ...,
    ) -> Generator[None, None, tuple[Score, ...]]: ...

    def embed(
        self, ids: Sequence[int], adapter: str | None
    ) -> Generator[None, None, tuple[float, ...]]: ...

    def put_adapter(self, key: str, adapter: LoraAdapter) -> None: ...

    def drop_adapter(self, key: str) -> bool: ...

    def fail_all(self, error: BaseException) -> None: ...


def choose_executor(
    model: Any, texts: TokenBytes, plan: MemoryPlan, *, quant: Quant, kv_quant: KVQuant
) -> tuple[Executor, str, tuple[str, ...]]:
    """Return the fastest way to run this model that gives the model's own logits.

    The batching paths are tried on a few tokens and taken only if they agree with the stock
    forward pass.

    Returns:
        The executor, its name (`fused`, `batched` or `serial`), and what a person should know.
    """
    notes: list[str] = []
    shape = kv_shape(model)
    if shape is not None:
        if quant != "none":
            tolerance = _QUANTISED
        else:
            tolerance = _EXACT if model.dtype == torch.float32 else _ROUNDED
        if (forward := _batching_forward(model, shape, tolerance)) is not None:
            pool = KVPool(replace(shape, quant=kv_quant), plan.kv_budget_tokens)
            name = "fused" if isinstance(forward, FusedForward) else "batched"
            if shape.device.type == "cpu":
                neighbours, most = CpuLoadMonitor(), torch.get_num_threads()
                count = measure_decode_threads(forward, pool, neighbours)
                notes.append(
                    f"decodes with {count} of {most} threads, measured; fewer beside other programs"
                )
                forward = ThreadedForward(forward, count, neighbours)
            return Scheduler(forward, pool, plan.max_rows, texts), name, tuple(notes)
    notes.append("this architecture runs one request at a time, through Transformers' generate()")
    return SerialExecutor(model, texts), "serial", tuple(notes)


def _batching_forward(model: Any, shape: KVShape, tolerance: float) -> Forward | None:
    if model.config.model_type in FUSED_MODEL_TYPES and _fused_agrees(model, shape, tolerance):
        return FusedForward(model, release=True)
    stock_attention = model.config._attn_implementation
    try:
        expected = _stock_logits(model)
        packed = PackedForward(model)
        if _agrees(packed, shape, expected, tolerance):
            return packed
    except Exception:  # an architecture may fail in ways of its own; the stock path remains
        pass
    model.set_attn_implementation(stock_attention)
    return None


def _fused_agrees(model: Any, shape: KVShape, tolerance: float) -> bool:
    """Try the fused pass on the first layer alone: the weights of all would be held twice."""
    layers, count = model.model.layers, model.config.num_hidden_layers
    model.model.layers, model.config.num_hidden_layers = layers[:1], 1
    try:
        expected = _stock_logits(model)
        return _agrees(FusedForward(model), shape, expected, tolerance)
    except (AttributeError, TypeError, RuntimeError):
        return False
    finally:
        model.model.layers, model.config.num_hidden_layers = layers, count


@torch.inference_mode()
def _stock_logits(model: Any) -> Tensor:
    ids = torch.tensor([_probe_ids(model)], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float()


def _probe_ids(model: Any) -> list[int]:
    vocab = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids: list[int] = torch.randint(vocab, (_PROBE_TOKENS,), generator=generator).tolist()
    return ids


def _agrees(forward: Any, shape: KVShape, expected: Tensor, tolerance: float) -> bool:
    """Compare logits (tokens, vocab) over chunks and single steps, in company of another row."""
    ids = _probe_ids(forward.model)
    pool = KVPool(shape, 8 * _PROBE_TOKENS)
    cache, other = (pool.open(part, None, _PROBE_TOKENS) for part in (ids, ids[::-1]))
    assert cache is not None
    assert other is not None
    forward.run([BatchItem(other, ids[::-1][:5])])
    parts = []
    for part in (ids[:16], ids[16:-2], ids[-2:-1], ids[-1:]):
        wanted = tuple(range(len(part)))
        both = forward.run([BatchItem(other, ids[:1]), BatchItem(cache, part, wanted)])
        parts.append(both[1:].float())
    error = (torch.cat(parts) - expected).norm(dim=-1) / expected.norm(dim=-1)
    return bool((error < tolerance).all())
