"""What does a training step hold at once, beside the weights? Replayed without memory or work.

PyTorch's fake tensors know shapes and types and hold nothing. The real layers, the real adapter,
autograd and checkpointing run on them, and a ledger counts the storages that live at the same
time: what it counts is what a run allocates, for any architecture and method, not what a formula
for one kind of layer says. Layers are alike, so a few of them stand for all.
"""

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from llmctl.config import TrainConfig
from llmctl.engine.loading.third_party import quiet_libraries
from llmctl.engine.loading.trainable import ModelMetadata
from llmctl.train.setup.trainable_parameters import make_trainable, optimize_for_training

_FEW, _MORE = 2, 4
"""Numbers of layers that are replayed; all others follow from the difference."""


@dataclass(frozen=True, slots=True)
class TracedMemory:
    """Bytes of one forward and backward pass; the weights are left out."""

    saved: int
    """Held when the forward pass has come to the head: what the backward pass will need."""
    peak: int
    """The most held from there to the end; gradients of weights that are made on the way count."""


def trace_step(
    config: TrainConfig,
    outline: ModelMetadata,
    *,
    rows: int,
    length: int,
    dtype: torch.dtype,
    accumulates: bool,
    whole_logits: bool = False,
) -> TracedMemory:
    """Count what a micro-batch of `rows` sequences of `length` tokens holds.

    Args:
        dtype: of the weights.
        accumulates: gradients of earlier micro-batches are there already.
        whole_logits: the model makes its own loss, from all logits. Else the loss is left out.
    """
    total = outline.config.get_text_config().num_hidden_layers
    found = []
    for count in (total,) if total <= _MORE else (_FEW, _MORE):
        with quiet_libraries():
            model, mixed = _skeleton(config, outline, count, dtype)
        mode = _autocast(config) if mixed else contextlib.nullcontext()
        found.append(_step(model, mode, config, rows, length, accumulates, whole_logits))
    grown = (total - _FEW) / (_MORE - _FEW)
    first, last = found[0], found[-1]
    saved, *peaks = (int(few + grown * (more - few)) for few, more in zip(first, last, strict=True))
    return TracedMemory(saved, max(saved, *peaks))


class StorageTracker(TorchDispatchMode):
    """Sums up the storages that are alive, but for a model's own.

    `peak` begins anew whenever somebody sets it.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Views of them come out of operators too.
        own = (*model.parameters(), *model.buffers())
        self._own = {tensor.untyped_storage()._cdata for tensor in own}
        self._live: dict[int, weakref.ref[Any]] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live or key in self._own:
            return

        def gone(_: Any) -> None:
            del self._live[key]
            self.now -= size

        self._live[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def _step(
    model: Any,
    mode: contextlib.AbstractContextManager[None],
    config: TrainConfig,
    rows: int,
    length: int,
    accumulates: bool,
    whole_logits: bool,
) -> tuple[int, int, int]:
    """Run one step on fake tensors; the order of events is that of a real one.

    Returns:
        Bytes at the head; the most from there to the embedding's gradient; the most after it. Each
        grows evenly with the number of layers.
    """
    with FakeTensorMode():
        _make_fake(model, accumulates)
        ids = torch.zeros((rows, length), dtype=torch.long)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if config.packing:
            inputs["position_ids"] = ids
        if whole_logits:
            inputs |= {"labels": ids, "num_items_in_batch": torch.ones(())}
        ledger = StorageTracker(model)
        before_embedding = 0

        def reached(_: Tensor) -> None:
            nonlocal before_embedding
            before_embedding, ledger.peak = ledger.peak, ledger.now

        def watch(_: nn.Module, _inputs: Any, embedded: Tensor) -> None:
            if embedded.requires_grad:
                embedded.register_hook(reached)

        _bare(model).get_input_embeddings().register_forward_hook(watch)
        forward = model if whole_logits else _bare(model).base_model
        with ledger:
            with mode, contextlib.nullcontext() if config.packing else _known_unpacked():
                output = forward(**inputs)[0]
            saved = ledger.peak = ledger.now
            output.sum().backward()
        return saved, before_embedding, ledger.peak


def _bare(model: Any) -> Any:
    """Return the Transformers model."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _autocast(config: TrainConfig) -> contextlib.AbstractContextManager[None]:
    if config.dtype in ("bfloat16", "float16"):
        return torch.autocast("cpu", dtype=getattr(torch, config.dtype))
    return contextlib.nullcontext()


@contextlib.contextmanager
def _known_unpacked() -> Iterator[None]:
    """Have no rows taken for packed ones: fake positions cannot be looked at."""
    from transformers import masking_utils

    library: Any = masking_utils
    looked = library.find_packed_sequence_indices
    library.find_packed_sequence_indices = lambda _: None
    try:
        yield
    finally:
        library.find_packed_sequence_indices = looked


def _skeleton(
    config: TrainConfig, outline: ModelMetadata, layers: int, dtype: torch.dtype
) -> tuple[Any, bool]:
    """Return the model on the meta device with so many layers, and whether it needs autocast."""
    from transformers import AutoModelForCausalLM

    shortened = _shortened(outline.config, layers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            shortened,
            dtype=dtype,
            # What flash attention keeps is what PyTorch's own keeps.
            attn_implementation="eager" if config.attention == "eager" else "sdpa",
            trust_remote_code=outline.spec.trust_remote_code,
        )
        model.requires_grad_(False)
        if config.weights_quant != "none":
            _quantise(model, config)
        learning = _adapted(model, outline.adapter) or make_trainable(model, config, None)
    return learning, optimize_for_training(learning, config, outline.device.type)


def _shortened(config: Any, layers: int) -> Any:
    shortened = deepcopy(config)
    text = shortened.get_text_config()
    total = text.num_hidden_layers
    text.num_hidden_layers = layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == total:  # such as the kind of each layer
            setattr(text, name, value[:layers])
    return shortened


def _adapted(model: Any, adapter: str | None) -> Any:
    """Return the model with an adapter of the same form as the one in a folder."""
    if adapter is None:
        return None
    from peft import PeftConfig, get_peft_model

    settings = PeftConfig.from_pretrained(adapter)
    settings.inference_mode = False
    return get_peft_model(model, settings).train()


class _Dequantised(torch.autograd.Function):
    """A product with a quantised weight, which is written out for it and again for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, outputs: int, keeps_input: bool) -> Tensor:
        ctx.shape, ctx.x = (outputs, x.shape[-1]), x if keeps_input else None
        return x @ x.new_empty(ctx.shape).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ grad.new_empty(ctx.shape), None, None


def _quantise(model: Any, config: TrainConfig) -> None:
    """Put layers with bitsandbytes' ways of working in place of the linear ones but the head.

    PEFT treats its layers in a way of their own, so the stand-ins are of its classes, but for DoRA,
    which asks for the weights themselves.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    eight = config.weights_quant == "8bit"
    kind: Any = Linear8bitLt if eight else Linear4bit
    options: dict[str, Any] = {"has_fp16_weights": False} if eight else {}
    head = model.get_output_embeddings()
    for path, linear in list(model.named_modules()):
        if type(linear) is not nn.Linear or linear is head:
            continue
        layer: Any = linear
        if config.method != "dora":
            layer = kind(linear.in_features, linear.out_features, bias=False, **options)
            layer.weight = linear.weight
            model.set_submodule(path, layer)
        layer.forward = _product(linear.out_features, keeps_input=eight)


def _product(outputs: int, *, keeps_input: bool) -> Any:
    def forward(x: Tensor) -> Tensor:
        result: Tensor = _Dequantised.apply(x, outputs, keeps_input)  # type: ignore[no-untyped-call]
        return result

    return forward


def _make_fake(model: nn.Module, accumulates: bool) -> None:
    """Move a model from the meta device to where fake tensors are; shared tensors stay shared."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    fake: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, nn.Parameter):
                        fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                        if accumulates and tensor.requires_grad:
                            fake.grad = torch.empty_like(fake)
                    made[id(tensor)] = fake
                tensors[name] = made[id(tensor)]  # type: ignore[assignment]
