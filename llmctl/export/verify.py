"""Does a merged model say what base and adapter said? Compares their logits and their loss."""

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
from llmctl.engine.loading.third_party import quiet_libraries
from llmctl.engine.memory.estimate import format_gib
from llmctl.engine.models.model_folder import disk_bytes
from llmctl.errors import OutOfMemoryError
from llmctl.export.merge import MergeDType
from llmctl.types import Message, Progress, ProgressCallback, ignore_progress

_NARROW = (torch.bfloat16, torch.float16)
_MOST = 0.05
"""Of the logits' length: more than rounding to 16 bits has ever made of it."""
_KEPT = 0.5
"""Of what the adapter does to the logits, so much may be lost at most."""
_EXACT = 1e-4
"""Of the logits' length: the order of summation alone makes differences of this kind."""
_MOST_LOSS = 0.05
_TALKS = (
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
    """How far a merged model is from base and adapter, over a few texts, computed in float32."""

    tokens: int
    largest: float
    """Largest difference of a single logit."""
    relative: float
    """Length of the difference by length of the logits, in the worst text."""
    effect: float
    """The same between base with and without the adapter: what was learnt."""
    rounding: float
    """The same between the base and the base in the type of the result."""
    adapter_loss: float
    """Mean cross-entropy in nats per token, of base and adapter."""
    merged_loss: float

    @property
    def limit(self) -> float:
        """How large `relative` may be: small, and small beside what was learnt."""
        return min(_MOST, _KEPT * self.effect) + 2 * self.rounding + _EXACT

    @property
    def good(self) -> bool:
        return (
            self.relative <= self.limit and abs(self.merged_loss - self.adapter_loss) <= _MOST_LOSS
        )


def compare_merged_logits(
    base: Path,
    adapter: Path,
    merged: Path,
    dtype: MergeDType,
    progress: ProgressCallback = ignore_progress,
) -> MergeComparison:
    """Run base and adapter, then the merged model, over a few texts.

    One of them is in memory at a time, in the type it is stored in; each matrix is widened while
    it is used, so that rounding within the computation is no part of the difference.

    Args:
        merged: the folder, with its tokenizer.
        dtype: of its weights.
    """
    texts = sample_texts(merged)
    kind: torch.dtype = getattr(torch, dtype)
    progress(Progress("comparing the merged model with base and adapter"))
    plain, adapted, rounded = _base_logits(base, adapter, texts, kind)
    gc.collect()
    result = compute_logits(load_reference_model(merged), texts)
    return MergeComparison(
        tokens=sum(map(len, texts)),
        largest=max(
            _apart(one, other).abs().max().item()
            for one, other in zip(result, adapted, strict=True)
        ),
        relative=relative_distance(result, adapted),
        effect=relative_distance(adapted, plain),
        rounding=relative_distance(rounded, plain),
        adapter_loss=_loss(adapted, texts),
        merged_loss=_loss(result, texts),
    )


def check_memory(base: Path) -> None:
    """Refuse to begin what could not be compared in the end.

    Raises:
        OutOfMemoryError: the model does not fit into memory.
    """
    needed, free = disk_bytes(base), psutil.virtual_memory().available
    if needed > free:
        raise OutOfMemoryError(
            f"comparing the merged model takes {format_gib(needed)}, "
            f"and {format_gib(free)} of memory are free",
            hint="--no-verify merges without comparing, which takes little memory",
        )


def sample_texts(folder: Path) -> list[list[int]]:
    """Return a few conversations as token ids, in the model's own template where it has one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = ChatTemplate.of(tokenizer)
    if not template:
        return [tokenizer(f"{asked}\n{told}").input_ids for asked, told in _TALKS]
    return [
        template.render(
            (Message("user", asked), Message("assistant", told)),
            RenderOptions(add_generation_prompt=False),
        ).ids
        for asked, told in _TALKS
    ]


def _base_logits(
    base: Path, adapter: Path, texts: Sequence[list[int]], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Return the logits of the base, of base and adapter, and of the base rounded to `dtype`."""
    from peft import PeftModel

    model = load_reference_model(base)
    plain = rounded = compute_logits(model, texts)
    if model.dtype != dtype:
        model = load_reference_model(base, dtype)
        rounded = compute_logits(model, texts)
        model = load_reference_model(base)
    if (rows := adapter_vocab_size(adapter)) is not None:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings(action="ignore"):
        adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    return plain, compute_logits(adapted, texts), rounded


def load_reference_model(folder: Path, dtype: torch.dtype | str = "auto") -> Any:
    from transformers import AutoModelForCausalLM

    with quiet_libraries():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


@torch.inference_mode()
def compute_logits(model: Any, texts: Sequence[list[int]]) -> list[Tensor]:
    """Return the logits (tokens, vocab) of each text, in float32."""
    with _widened(model):
        return [
            model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float() for ids in texts
        ]


@contextmanager
def _widened(model: nn.Module) -> Iterator[None]:
    """Compute in float32 whatever type the weights have, one module written out at a time."""
    held: dict[nn.Module, list[tuple[nn.Parameter, Tensor]]] = {}

    def widen(module: nn.Module, _: Any) -> None:
        narrow = [p for p in module.parameters(recurse=False) if p.dtype in _NARROW]
        held[module] = [(parameter, parameter.data) for parameter in narrow]
        for parameter in narrow:
            parameter.data = parameter.data.float()

    def restore(module: nn.Module, *_: Any) -> None:
        for parameter, data in held.pop(module):
            parameter.data = data

    hooks = [
        hook
        for module in model.modules()
        if any(p.dtype in _NARROW for p in module.parameters(recurse=False))
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
    """Return how far logits are from others by the others' length, at the worst text."""
    distances: list[float] = [
        (_apart(one, other).norm() / other.norm()).item()
        for one, other in zip(logits, expected, strict=True)
    ]
    return max(distances)


def _apart(logits: Tensor, expected: Tensor) -> Tensor:
    # An adapter may bring tokens that the base has not.
    known = min(logits.shape[-1], expected.shape[-1])
    return logits[:, :known] - expected[:, :known]


def _loss(logits: Sequence[Tensor], texts: Sequence[list[int]]) -> float:
    """Return the mean cross-entropy per token that something stands before."""
    losses = [
        F.cross_entropy(scores[:-1], torch.tensor(ids[1:]), reduction="none")
        for scores, ids in zip(logits, texts, strict=True)
    ]
    mean: float = torch.cat(losses).mean().item()
    return mean
