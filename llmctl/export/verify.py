"""Comparison of a merged model with its base and adapter, by logits and loss."""

import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor, nn

from llmctl.engine.chat.template import ChatTemplate, RenderOptions
from llmctl.engine.loading.adapters import adapter_vocab_size
from llmctl.engine.loading.weights import read_original_weights
from llmctl.engine.memory.estimate import format_gib
from llmctl.engine.models.model_folder import disk_bytes
from llmctl.errors import OutOfMemoryError
from llmctl.export.merge import MergeDType
from llmctl.types import Message, Progress, ProgressCallback, ignore_progress

_HALF_PRECISION = (torch.bfloat16, torch.float16)
_MAX_DISTANCE = 0.05
"""Relative distance of the logits; above what rounding to 16 bits causes in practice."""
_MAX_LOST_EFFECT = 0.5
"""Share of the adapter's effect on the logits that rounding may remove."""
_SUMMATION_TOLERANCE = 1e-4
"""Relative distance that a different order of summation causes."""
_MAX_LOSS_DIFFERENCE = 0.05
_CONVERSATIONS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    (
        "Write a function that adds two numbers.",
        "```python\ndef add(a: float, b: float) -> float:\n    return a + b\n```",
    ),
    ("中国最长的河流是哪一条？", "中国最长的河流是长江，全长约6300公里。"),
    (
        "Why is the sky blue?",
        "Air scatters short waves of light more than long ones, so the blue of the sunlight comes "
        "from everywhere.",
    ),
)


@dataclass(frozen=True, slots=True)
class MergeComparison:
    """Difference of a merged model from base and adapter over a few texts, computed in float32."""

    tokens: int
    largest: float
    """Largest difference of a single logit."""
    relative: float
    """Norm of the difference by norm of the logits, in the worst text."""
    effect: float
    """The same between the base with and without the adapter."""
    rounding: float
    """The same between the base and the base in the type of the result."""
    adapter_loss: float
    """Mean cross entropy of base and adapter, in nats per token."""
    merged_loss: float

    @property
    def limit(self) -> float:
        """Upper bound of `relative`: small, and small compared with the adapter's effect."""
        bound = min(_MAX_DISTANCE, _MAX_LOST_EFFECT * self.effect)
        return bound + 2 * self.rounding + _SUMMATION_TOLERANCE

    @property
    def good(self) -> bool:
        difference = abs(self.merged_loss - self.adapter_loss)
        return self.relative <= self.limit and difference <= _MAX_LOSS_DIFFERENCE


def compare_merged_logits(
    base: Path,
    adapter: Path,
    merged: Path,
    dtype: MergeDType,
    progress: ProgressCallback = ignore_progress,
) -> MergeComparison:
    """Compute the logits of base and adapter, then of the merged model, over a few texts.

    One model at a time is in memory, in its stored type. Each matrix is converted to float32 while
    it is used, so that rounding inside the computation does not count.

    Args:
        merged: folder of the merged model, with its tokenizer.
        dtype: of its weights.
    """
    texts = sample_texts(merged)
    kind: torch.dtype = getattr(torch, dtype)
    progress(Progress("comparing the merged model with base and adapter"))
    plain, adapted, rounded = _base_logits(base, adapter, texts, kind)
    gc.collect()
    result = compute_logits(read_original_weights(merged), texts)
    return MergeComparison(
        tokens=sum(map(len, texts)),
        largest=max(
            _difference(one, other).abs().max().item()
            for one, other in zip(result, adapted, strict=True)
        ),
        relative=relative_distance(result, adapted),
        effect=relative_distance(adapted, plain),
        rounding=relative_distance(rounded, plain),
        adapter_loss=_loss(adapted, texts),
        merged_loss=_loss(result, texts),
    )


def check_memory(base: Path) -> None:
    """Check that the comparison fits into memory.

    Raises:
        OutOfMemoryError: it does not.
    """
    needed, free = disk_bytes(base), psutil.virtual_memory().available
    if needed > free:
        raise OutOfMemoryError(
            f"comparing the merged model needs {format_gib(needed)}, "
            f"and {format_gib(free)} of memory are free",
            hint="--no-verify merges without the comparison, in little memory",
        )


def sample_texts(folder: Path) -> list[list[int]]:
    """Return the token ids of a few conversations, in the model's chat template if it has one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = ChatTemplate.of(tokenizer)
    if not template:
        return [tokenizer(f"{question}\n{answer}").input_ids for question, answer in _CONVERSATIONS]
    return [
        template.render(
            (Message("user", question), Message("assistant", answer)),
            RenderOptions(add_generation_prompt=False),
        ).ids
        for question, answer in _CONVERSATIONS
    ]


def _base_logits(
    base: Path, adapter: Path, texts: Sequence[list[int]], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the logits of the base, of base and adapter, and of the base rounded to `dtype`."""
    from peft import PeftModel

    model = read_original_weights(base)
    plain = rounded = compute_logits(model, texts)
    if model.dtype != dtype:
        model = read_original_weights(base, dtype)
        rounded = compute_logits(model, texts)
        model = read_original_weights(base)
    if (rows := adapter_vocab_size(adapter)) is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings(action="ignore"):
        adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    return plain, compute_logits(adapted, texts), rounded


@torch.inference_mode()
def compute_logits(model: Any, texts: Sequence[list[int]]) -> list[Tensor]:
    """Return the logits (tokens, vocab) of each text, in float32."""
    with _compute_in_float32(model):
        return [
            model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float() for ids in texts
        ]


@contextmanager
def _compute_in_float32(model: nn.Module) -> Iterator[None]:
    """Convert the weights to float32 while they are used, one module at a time."""
    held: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}

    def widen(module: nn.Module, _: Any) -> None:
        narrow = [p for p in module.parameters(recurse=False) if p.dtype in _HALF_PRECISION]
        held[module] = [(parameter, parameter.data) for parameter in narrow]
        for parameter in narrow:
            parameter.data = parameter.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for parameter, data in held.pop(module):
            parameter.data = data

    hooks = [
        hook
        for module in model.modules()
        if any(p.dtype in _HALF_PRECISION for p in module.parameters(recurse=False))
        for hook in (
            module.register_forward_pre_hook(widen),
            module.register_forward_hook(restore),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def relative_distance(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the norm of the difference by the norm of `expected`, of the worst text."""
    distances: list[float] = [
        (_difference(one, other).norm() / other.norm()).item()
        for one, other in zip(logits, expected, strict=True)
    ]
    return max(distances)


def _difference(logits: Tensor, expected: Tensor) -> Tensor:
    # An adapter may add tokens to the vocabulary.
    known = min(logits.shape[-1], expected.shape[-1])
    return logits[:, :known] - expected[:, :known]


def _loss(logits: Sequence[Tensor], texts: Sequence[list[int]]) -> float:
    """Return the mean cross entropy per token, without the first of each text."""
    losses = [
        F.cross_entropy(scores[:-1], torch.tensor(ids[1:]), reduction="none")
        for scores, ids in zip(logits, texts, strict=True)
    ]
    mean: float = torch.cat(losses).mean().item()
    return mean
