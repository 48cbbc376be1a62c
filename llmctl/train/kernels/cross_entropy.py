"""The loss at the positions that are learnt, without the logits of all others.

With 150,000 words of vocabulary the logits are the largest thing in a training step, and most of
them belong to prompts and padding. Here the head sees only positions with a label, a chunk at a
time, and the gradient is made with the loss, while the chunk's logits are there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100
LOGITS_PER_CHUNK = 2**23
"""Logits that exist at once: 32 MiB in float32."""


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the cross entropies of `hidden @ weight.T + bias` with `targets`, in float32.

    Shapes: hidden (n, width), weight (vocab, width), bias (vocab,) or None, targets (n,).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        for_hidden, for_weight, for_bias, _ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if for_weight else None
        grad_bias = torch.zeros_like(weight[:, 0], dtype=torch.float32) if for_bias else None
        total = hidden.new_zeros((), dtype=torch.float32)
        rows = max(1, LOGITS_PER_CHUNK // weight.shape[0])
        for start in range(0, len(targets), rows):
            chunk, wanted = hidden[start : start + rows], targets[start : start + rows, None]
            scores = F.log_softmax(F.linear(chunk, weight, bias).float(), dim=-1)
            total -= scores.gather(1, wanted).sum()
            if not (for_hidden or for_weight or for_bias):
                continue
            # d loss / d logits: the probabilities, less 1 at the wanted token.
            grad = scores.exp_().scatter_add_(1, wanted, scores.new_full((), -1).expand_as(wanted))
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
        )


def linear_cross_entropy(head: nn.Linear, hidden: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the losses of all labelled tokens, each foretold from the one before it.

    Args:
        hidden: (batch, seq, width), what the head would see.
        labels: (batch, seq), -100 where nothing is learnt.
    """
    targets = labels[:, 1:]
    learnt = targets != IGNORE_INDEX
    picked: Tensor = hidden[:, :-1][learnt]
    apply: Any = _LinearCrossEntropy.apply
    loss: Tensor = apply(picked, head.weight, head.bias, targets[learnt])
    return loss


class ChunkedCrossEntropy:
    """Makes a causal language model answer with its loss in place of its logits."""

    def __init__(self, head: nn.Linear) -> None:
        self._head = head

    @classmethod
    def of(cls, model: Any) -> "ChunkedCrossEntropy | None":
        """Return it for a model whose head is one plain linear layer, else `None`."""
        head = model.get_output_embeddings()
        return cls(head) if type(head) is nn.Linear else None

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """Return the sum of the losses at the labelled positions of a batch, a scalar.

        Args:
            model: the model itself, or what wraps it for several devices.
            inputs: arguments of its forward, `labels` among them.
        """
        inputs = dict(inputs)
        with self._answers_with_loss(inputs.pop("labels")):
            loss: Tensor = model(**inputs).logits
        return loss

    @contextmanager
    def _answers_with_loss(self, labels: Tensor) -> Iterator[None]:
        # In the head's own place, so that whatever gathers weights for it (FSDP, DeepSpeed) or
        # waits for the model's outputs (DDP) does so as ever.
        head = self._head
        head.forward = lambda input: linear_cross_entropy(head, input, labels)  # type: ignore[method-assign]
        try:
            yield
        finally:
            del head.forward


def model_loss(model: Any, inputs: dict[str, Any]) -> Tensor:
    """Return the same sum by the model's own loss, which makes all logits."""
    labels = inputs["labels"]
    count = (labels[:, 1:] != IGNORE_INDEX).sum()
    loss: Tensor = model(**inputs, num_items_in_batch=count).loss * count
    return loss


@torch.no_grad()
def matches_model_loss(model: Any, head: ChunkedCrossEntropy, inputs: dict[str, Any]) -> bool:
    """Try whether both losses are one: some models do more to their logits than the head does."""
    own, stock = head.loss(model, inputs).float(), model_loss(model, inputs).float()
    # bfloat16 rounds logits to 3 digits, in another order here than there.
    return torch.allclose(own, stock, rtol=5e-3 if model.dtype != torch.float32 else 1e-4)
