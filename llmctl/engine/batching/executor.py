"""Choice of the executor of a model: batched where its logits agree, else one request at a time."""

import logging
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
from llmctl.engine.batching.sequence import ScheduledSequence
from llmctl.engine.batching.serial import SerialExecutor
from llmctl.types import EngineState, KVQuant, MemoryPlan, Quant, Score

_log = logging.getLogger(__name__)

FUSED_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Values of `model_type` whose layers have the structure that `FusedForward` implements."""

_PROBE_TOKENS = 24
_FLOAT32_TOLERANCE, _HALF_TOLERANCE, _QUANT_TOLERANCE = 1e-3, 0.05, 0.15
"""Largest relative distance from the model's own logits. A wrong mask, position or layer gives a
distance of about 1."""


class Executor(Protocol):
    """Runs sequences, scores and embeds texts; the engine thread repeats `step` while `busy`."""

    @property
    def busy(self) -> bool: ...

    def state(self) -> EngineState: ...

    def add(self, sequence: ScheduledSequence) -> None: ...

    def step(self) -> None: ...

    def score(
        self,
        continuations: Sequence[TokenizedContinuation],
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
    model: Any, token_bytes: TokenBytes, plan: MemoryPlan, *, quant: Quant, kv_quant: KVQuant
) -> tuple[Executor, str, tuple[str, ...]]:
    """Return the fastest executor that reproduces the model's own logits.

    Each batched forward pass is tested on a few tokens and used only if it agrees with the stock
    forward pass.

    Args:
        model: of Transformers, on its device.
        token_bytes: bytes of each token, for log-probabilities.
        plan: limits of rows and cache.
        quant: of the weights; decides how exactly logits must agree.
        kv_quant: of the KV cache.

    Returns:
        The executor, its name (`fused`, `batched` or `serial`), and notes for the user.
    """
    notes: list[str] = []
    shape = kv_shape(model)
    if shape is not None:
        if quant != "none":
            tolerance = _QUANT_TOLERANCE
        else:
            tolerance = _FLOAT32_TOLERANCE if model.dtype == torch.float32 else _HALF_TOLERANCE
        if (forward := _batching_forward(model, shape, tolerance)) is not None:
            pool = KVPool(replace(shape, quant=kv_quant), plan.kv_budget_tokens)
            name = "fused" if isinstance(forward, FusedForward) else "batched"
            if shape.device.type == "cpu":
                cpu_load, all_threads = CpuLoadMonitor(), torch.get_num_threads()
                count = measure_decode_threads(forward, pool, cpu_load)
                notes.append(
                    f"decodes with {count} of {all_threads} threads (measured), fewer while other "
                    "programs are busy"
                )
                forward = ThreadedForward(forward, count, cpu_load)
            return Scheduler(forward, pool, plan.max_rows, token_bytes), name, tuple(notes)
    notes.append("this architecture runs one request at a time, through Transformers' generate()")
    return SerialExecutor(model, token_bytes), "serial", tuple(notes)


def _batching_forward(model: Any, shape: KVShape, tolerance: float) -> Forward | None:
    if model.config.model_type in FUSED_MODEL_TYPES and _fused_agrees(model, shape, tolerance):
        return FusedForward(model, release=True)
    stock_attention = model.config._attn_implementation
    try:
        expected = _stock_logits(model)
        packed = PackedForward(model)
        if _agrees(packed, shape, expected, tolerance):
            return packed
    except Exception as error:  # architectures fail in many ways; the serial executor remains
        _log.info("the batched forward pass does not run on this model", exc_info=error)
    model.set_attn_implementation(stock_attention)
    return None


def _fused_agrees(model: Any, shape: KVShape, tolerance: float) -> bool:
    """Test the fused pass on the first layer; with all layers the weights would be held twice."""
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
    """Compare logits (tokens, vocab) over chunks and single steps, beside another sequence.

    Args:
        forward: the pass to test.
        shape: of its KV cache.
        expected: the model's own logits.
        tolerance: largest relative distance.
    """
    ids = _probe_ids(forward.model)
    pool = KVPool(shape, 8 * _PROBE_TOKENS)
    cache, other = (pool.acquire(part, None, _PROBE_TOKENS) for part in (ids, ids[::-1]))
    assert cache is not None
    assert other is not None
    forward.run([BatchItem(other, ids[::-1][:5])])
    parts = []
    for part in (ids[:16], ids[16:-2], ids[-2:-1], ids[-1:]):
        indices = tuple(range(len(part)))
        logits = forward.run([BatchItem(other, ids[:1]), BatchItem(cache, part, indices)])
        parts.append(logits[1:].float())
    error = (torch.cat(parts) - expected).norm(dim=-1) / expected.norm(dim=-1)
    return bool((error < tolerance).all())
