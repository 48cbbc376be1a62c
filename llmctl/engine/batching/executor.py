"""Choice of the executor of a model: batched where its logits agree, else one request at a time."""

import logging
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from llmctl.engine.batching.expected_path import FUSED_MODEL_TYPES
from llmctl.engine.batching.forward.cache_layout import (
    CacheLayout,
    UnsupportedCacheError,
    cache_layout,
)
from llmctl.engine.batching.forward.cpu_load import CpuLoadMonitor
from llmctl.engine.batching.forward.fused import FusedForward
from llmctl.engine.batching.forward.lora import LoraAdapter
from llmctl.engine.batching.forward.packed import BatchItem, Forward, PackedForward
from llmctl.engine.batching.forward.recurrent import RecurrentForward
from llmctl.engine.batching.forward.threads import ThreadedForward, measure_decode_threads
from llmctl.engine.batching.kv_cache import KVShape
from llmctl.engine.batching.kv_pool import KVPool
from llmctl.engine.batching.sampling.logprobs import TokenBytes
from llmctl.engine.batching.scheduler import Scheduler
from llmctl.engine.batching.scoring import LogprobsFn, TokenizedContinuation
from llmctl.engine.batching.sequence import ScheduledSequence
from llmctl.engine.batching.serial import SerialExecutor
from llmctl.types import EngineState, ExecutionPath, KVQuant, MemoryPlan, Quant, Score

_log = logging.getLogger(__name__)

_PROBE_TOKENS = 24
_PROBE_LIMIT = 7
_FLOAT32_TOLERANCE, _HALF_TOLERANCE, _QUANT_TOLERANCE = 1e-3, 0.05, 0.15
"""Largest relative distance from the model's own logits. A wrong mask, position or layer gives a
distance of about 1."""
_STEP_TOLERANCE = 0.02
"""Largest distance where the model's own steps differ from its single pass as much."""


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


@dataclass(frozen=True, slots=True)
class ChosenExecutor:
    """An executor, and why it was chosen."""

    executor: Executor
    path: ExecutionPath
    reason: str
    notes: tuple[str, ...] = ()
    """Notes for the user."""


def choose_executor(
    model: Any, token_bytes: TokenBytes, plan: MemoryPlan, *, quant: Quant, kv_quant: KVQuant
) -> ChosenExecutor:
    """Return the fastest executor that reproduces the model's own logits.

    Each batched forward pass is tested on a few tokens and used only if it agrees with the stock
    forward pass.

    Args:
        model: of Transformers, on its device.
        token_bytes: bytes of each token, for log-probabilities.
        plan: limits of rows and cache.
        quant: of the weights; decides how exactly logits must agree.
        kv_quant: of the KV cache.
    """
    if quant != "none":
        tolerance = _QUANT_TOLERANCE
    else:
        tolerance = _FLOAT32_TOLERANCE if model.dtype == torch.float32 else _HALF_TOLERANCE
    try:
        layout = cache_layout(model)
        spare = plan.free_bytes - plan.weights_bytes - plan.reserve_bytes
        forward, layout, reason = _batching_forward(model, layout, tolerance, spare)
    except Exception as error:  # architectures fail in many ways; the serial executor remains
        _log.info("%s cannot be batched", model.config.model_type, exc_info=error)
        reason = _reason(error)
        note = f"runs one request at a time, through Transformers' generate(): {reason}"
        return ChosenExecutor(SerialExecutor(model, token_bytes), "serial", reason, (note,))
    shape = replace(layout.shape, quant=kv_quant)
    pool = KVPool(shape, _budget_tokens(shape, plan))
    path: ExecutionPath = "fused" if isinstance(forward, FusedForward) else "batched"
    notes: list[str] = []
    if shape.device.type == "cpu" and not layout.is_recurrent:
        cpu_load, all_threads = CpuLoadMonitor(), torch.get_num_threads()
        count = measure_decode_threads(forward, pool, cpu_load)
        notes.append(
            f"decodes with {count} of {all_threads} threads (measured), fewer while other "
            "programs are busy"
        )
        forward = ThreadedForward(forward, count, cpu_load)
    scheduler = Scheduler(forward, pool, plan.max_rows, token_bytes)
    return ChosenExecutor(scheduler, path, reason, tuple(notes))


def _reason(error: Exception) -> str:
    if isinstance(error, UnsupportedCacheError):
        return str(error)
    first = (str(error).splitlines() or [""])[0]
    return f"its batched forward pass fails ({type(error).__name__}: {first[:120]})"


def _budget_tokens(shape: KVShape, plan: MemoryPlan) -> int:
    """Return the budget in tokens; at least one sequence of the whole context."""
    if not shape.state_bytes:
        return plan.kv_budget_bytes // shape.token_bytes if shape.token_bytes else 0
    tokens = plan.kv_budget_bytes // shape.unit_bytes
    return max(tokens, shape.state_tokens + plan.context_length)


def _batching_forward(
    model: Any, layout: CacheLayout, tolerance: float, spare_bytes: int
) -> tuple[Forward, CacheLayout, str]:
    """Return the fastest forward pass that agrees with the model's own, its layout, and why.

    Args:
        model: of Transformers.
        layout: of its cache.
        tolerance: largest relative distance of the logits in the model's type.
        spare_bytes: memory for a copy of the weights in float32, for an exact comparison.

    Raises:
        UnsupportedCacheError: none does.
        Exception: whatever the model's code raises.
    """
    not_fused = ""
    if model.config.model_type in FUSED_MODEL_TYPES:
        distance, not_fused = _fused_distance(model, layout)
        if distance < tolerance:
            return FusedForward(model, release=True), layout, _agreement(distance)
        not_fused = f"; the fused layers are not used: {not_fused or _agreement(distance)}"
    stock_attention = model.config._attn_implementation
    distances = []
    try:
        with crossed_limits(model), _in_float32(model, spare_bytes) as is_wide:
            limit = _FLOAT32_TOLERANCE if is_wide else tolerance
            expected = _stock_logits(model)
            for candidate in layout.candidates:
                kind = RecurrentForward if layout.is_recurrent else PackedForward
                forward: Any = kind(model, candidate)
                shape = candidate.shape
                if is_wide:
                    shape = replace(shape, dtype=torch.float32)
                distances.append(_distance(forward, shape, expected))
                if distances[-1] < limit:
                    reason = _agreement(distances[-1]) + not_fused
                    return kind(model, candidate), candidate, reason
            model.set_attn_implementation(stock_attention)
            # Some models' own steps differ from their own single pass (Zamba 2).
            if min(distances) < min(2 * _step_distance(model, expected), _STEP_TOLERANCE):
                best = layout.candidates[distances.index(min(distances))]
                reason = f"{_agreement(min(distances))}, as far as those of its own steps"
                return kind(model, best), best, reason
    except BaseException:
        model.set_attn_implementation(stock_attention)
        raise
    model.set_attn_implementation(stock_attention)
    raise UnsupportedCacheError(
        f"batched logits differ from the model's own by {min(distances):.2g}, more than {limit}"
    )


def _agreement(distance: float) -> str:
    return f"its logits differ by at most {distance:.1g} of their length from the model's own"


@contextmanager
def _in_float32(model: Any, spare_bytes: int) -> Iterator[bool]:
    """Convert the weights to float32 for a while, where memory allows it; yield whether they are.

    Rounding to 16 bits changes which experts a token takes, so that logits tell little.
    """
    tensors = [*model.parameters(), *model.buffers()]
    halves = [t for t in tensors if t.is_floating_point() and t.dtype.itemsize == 2]
    needed = sum(4 * t.numel() for t in halves)
    is_quantised = getattr(model, "hf_quantizer", None) is not None
    if is_quantised or needed > spare_bytes:
        yield model.dtype == torch.float32
        return
    originals = [t.data for t in halves]
    try:
        for tensor in halves:
            tensor.data = tensor.data.float()
        yield True
    finally:
        for tensor, original in zip(halves, originals, strict=True):
            tensor.data = original


def _fused_distance(model: Any, layout: CacheLayout) -> tuple[float, str]:
    """Test the fused pass on the first layer; with all layers the weights would be held twice.

    Returns:
        The distance of its logits, infinite if it fails, and then the reason.
    """
    layers, count = model.model.layers, model.config.num_hidden_layers
    model.model.layers, model.config.num_hidden_layers = layers[:1], 1
    try:
        expected = _stock_logits(model)
        return _distance(FusedForward(model), layout.shape, expected), ""
    except (AttributeError, TypeError, RuntimeError) as error:
        _log.info("the fused forward pass does not run on this model", exc_info=error)
        return math.inf, _reason(error)
    finally:
        model.model.layers, model.config.num_hidden_layers = layers, count


_LIMITS = ("sliding_window", "attention_chunk_size", "floor_scale")
"""Attributes of configurations and modules from which on distant tokens are treated differently."""


@contextmanager
def crossed_limits(model: Any) -> Iterator[None]:
    """Set windows, chunks and position scales below the length of the probe, which crosses them."""
    config = model.config.get_text_config(decoder=True)
    changed = []
    for owner in (config, *model.modules()):
        for name in _LIMITS:
            value = vars(owner).get(name)
            if isinstance(value, int) and not isinstance(value, bool) and value > _PROBE_LIMIT:
                changed.append((owner, name, value))
                setattr(owner, name, _PROBE_LIMIT)
    try:
        yield
    finally:
        for owner, name, value in changed:
            setattr(owner, name, value)


@torch.inference_mode()
def _step_distance(model: Any, expected: Tensor) -> float:
    """Return how far the logits of the model's own steps with a cache are from `expected`."""
    ids, parts = _probe_ids(model), []
    cache: dict[str, Any] = {}
    for part in (ids[:16], ids[16:-2], ids[-2:-1], ids[-1:]):
        output = model(input_ids=torch.tensor([part], device=model.device), use_cache=True, **cache)
        cache = {k: v for k, v in output.items() if k in ("cache", "past_key_values")}
        parts.append(output.logits[0].float())
    return _largest_error(torch.cat(parts), expected)


def _largest_error(logits: Tensor, expected: Tensor) -> float:
    return float(((logits - expected).norm(dim=-1) / expected.norm(dim=-1)).max())


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


def _distance(forward: Any, shape: KVShape, expected: Tensor) -> float:
    """Return the largest relative distance of logits, over chunks, single steps and branches.

    Args:
        forward: the pass to test.
        shape: of its KV cache.
        expected: the model's own logits (tokens, vocab).
    """
    ids = _probe_ids(forward.model)
    pool = KVPool(shape, 8 * _PROBE_TOKENS + 3 * shape.state_tokens)
    cache, other = (pool.acquire(part, None, _PROBE_TOKENS) for part in (ids, ids[::-1]))
    assert cache is not None
    assert other is not None
    forward.run([BatchItem(other, ids[::-1][:5])])
    parts = []
    for part in (ids[:16], ids[16:-2], ids[-2:-1], ids[-1:]):
        indices = tuple(range(len(part)))
        logits = forward.run([BatchItem(other, ids[:1]), BatchItem(cache, part, indices)])
        parts.append(logits[1:].float())
    return _largest_error(torch.cat(parts), expected)
