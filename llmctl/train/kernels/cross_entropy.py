"""Chunked linear cross entropy: the loss at labelled positions, without the other logits.

With a vocabulary of 150,000 tokens the logits are the largest tensor of a training step, and most
of them belong to prompts and padding. Here the output layer is applied to labelled positions only,
chunk by chunk, and the gradient is computed together with the loss, while a chunk's logits exist.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100
"""Label of a position without loss, as in PyTorch's cross entropy."""
LOGITS_PER_CHUNK = 2**23
"""32 MiB in float32."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropies of `hidden @ weight.T + bias` with `targets`, in float32.

    Shapes: hidden (n, width), weight (vocab, width), bias (vocab,) or None, targets (n,).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        logits_per_chunk: int,
    ) -> Tensor:
        for_hidden, for_weight, for_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        grad_bias = torch.zeros_like(weight[:, 0], dtype=torch.float32) if for_bias else None
        total = hidden.new_zeros((), dtype=torch.float32)
        rows = max(1, logits_per_chunk // weight.shape[0])
        for start in range(0, len(targets), rows):
            chunk, target = hidden[start : start + rows], targets[start : start + rows, None]
            logprobs = F.log_softmax(F.linear(chunk, weight, bias).float(), dim=-1)
            total -= logprobs.gather(1, target).sum()
            if not (for_hidden or for_weight or for_bias):
                continue
            # d loss / d logits: the probabilities, minus 1 at the target.
            minus_one = logprobs.new_full((), -1).expand_as(target)
            grad = logprobs.exp_().scatter_add_(1, target, minus_one)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
            grad = grad.to(chunk.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + rows] = grad @ weight.to(chunk.dtype)
            if grad_weight is not None:
                grad_weight += grad.T @ chunk
        ctx.types = (weight.dtype, bias.dtype if bias is not None else None)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        grads = [None if g is None else g * scale.to(g.dtype) for g in ctx.saved_tensors]
        hidden, weight, bias = grads
        weight_type, bias_type = ctx.types
        return (
            hidden,
            None if weight is None else weight.to(weight_type),
            None if bias is None else bias.to(bias_type),
            None,
            None,
        )


def linear_cross_entropy(
    head: nn.Linear, hidden: Tensor, labels: Tensor, logits_per_chunk: int = LOGITS_PER_CHUNK
) -> Tensor:
    """Return the sum of the losses of all labelled tokens, a scalar in float32.

    Args:
        hidden: (batch, seq, width), the input of the output layer.
        labels: (batch, seq), `IGNORE_INDEX` at positions without loss.
    """
    targets = labels[:, 1:]
    labelled = targets != IGNORE_INDEX
    selected: Tensor = hidden[:, :-1][labelled]
    apply: Any = _LinearCrossEntropy.apply
    loss: Tensor = apply(selected, head.weight, head.bias, targets[labelled], logits_per_chunk)
    return loss


class ChunkedCrossEntropy:
    """Computes the loss of a causal language model in place of its logits.

    Args:
        head: the output layer of the model.
        logits_per_chunk: number of logits that exist at once.
    """

    def __init__(self, head: nn.Linear, logits_per_chunk: int = LOGITS_PER_CHUNK) -> None:
        self._head = head
        self._logits_per_chunk = logits_per_chunk

    @classmethod
    def for_model(
        cls, model: Any, logits_per_chunk: int = LOGITS_PER_CHUNK
    ) -> "ChunkedCrossEntropy | None":
        """Return it for a model whose output layer is a plain linear layer, else `None`."""
        head = model.get_output_embeddings()
        return cls(head, logits_per_chunk) if type(head) is nn.Linear else None

    def __call__(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the sum of the losses at the labelled positions of a batch, a scalar.

        Args:
            model: the model itself, or its wrapper for several devices.
            inputs: arguments of its forward, with `labels` of shape (batch, seq).
        """
        inputs = dict(inputs)
        with self._replace_head(inputs.pop("labels")):
            loss: Tensor = model(**inputs).logits
        return loss

    @contextmanager
    def _replace_head(self, labels: Tensor) -> Iterator[None]:
        # Replaces the forward of the output layer itself, so that wrappers that gather its weights
        # (FSDP, DeepSpeed) or track the model's outputs (DDP) work as usual.
        head, size = self._head, self._logits_per_chunk
        head.forward = lambda input: linear_cross_entropy(head, input, labels, size)  # type: ignore[method-assign]
        try:
            yield
        finally:
            del head.forward


def model_loss(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Return the same sum from the model's own loss, which computes all logits."""
    labels = inputs["labels"]
    count = (labels[:, 1:] != IGNORE_INDEX).sum()
    loss: Tensor = model(**inputs, num_items_in_batch=count).loss * count
    return loss


@torch.no_grad()
def matches_model_loss(model: Any, loss: ChunkedCrossEntropy, inputs: dict[str, Any]) -> bool:
    """Whether the two losses are equal: some models transform the output layer's logits."""
    own, expected = loss(model, inputs).float(), model_loss(model, inputs).float()
    # bfloat16 rounds logits to 3 digits, in a different order in the two losses.
    return torch.allclose(own, expected, rtol=5e-3 if model.dtype != torch.float32 else 1e-4)
