"""Memory of a training step beside the weights, traced on fake tensors.

PyTorch's fake tensors have shapes and types but no data. The real layers, the real adapter,
autograd and gradient checkpointing run on them while a tracker sums the live storages: the result
is what a run allocates, for any architecture and method. Two small models of different depth are
traced, and the full depth is extrapolated.
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
from llmctl.engine.auto_model import auto_model_class, model_body
from llmctl.engine.loading.third_party import quiet_libraries
from llmctl.engine.loading.trainable import ModelMetadata
from llmctl.train.setup.trainable_parameters import make_trainable, optimize_for_training

_FEW, _MORE = 2, 4
"""Numbers of layers that are traced."""


@dataclass(frozen=True, slots=True)
class TracedMemory:
    """Bytes of one forward and backward pass, without the weights."""

    saved: int
    """Live at the input of the output layer: what the backward pass needs."""
    peak: int
    """Peak from there to the end, including the gradients of weights."""


def trace_step(
    config: TrainConfig,
    metadata: ModelMetadata,
    *,
    rows: int,
    length: int,
    dtype: torch.dtype,
    accumulates: bool,
) -> TracedMemory:
    """Trace a micro-batch of `rows` sequences of `length` tokens, without output layer and loss.

    Args:
        dtype: of the weights.
        accumulates: gradients of earlier micro-batches already exist.
    """
    total = metadata.config.get_text_config().num_hidden_layers
    traces = []
    for count in (total,) if total <= _MORE else (_FEW, _MORE):
        with quiet_libraries():
            model, mixed = _skeleton(config, metadata, count, dtype)
        mode = _autocast(config) if mixed else contextlib.nullcontext()
        traces.append(_step(model, mode, config, rows, length, accumulates))
    factor = (total - _FEW) / (_MORE - _FEW)
    saved, *peaks = (
        int(few + factor * (more - few)) for few, more in zip(traces[0], traces[-1], strict=True)
    )
    return TracedMemory(saved, max(saved, *peaks))


class StorageTracker(TorchDispatchMode):
    """Sums the live storages, except those of a model's parameters and buffers.

    Set `peak` to `now` to start a new measurement of the peak.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Operators also return views of them.
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
                self._track(value.untyped_storage())
        return result

    def _track(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._live or key in self._own:
            return

        def on_freed(_: Any) -> None:
            del self._live[key]
            self.now -= size

        self._live[key] = weakref.ref(storage, on_freed)
        self.now += size
        self.peak = max(self.peak, self.now)


@contextlib.contextmanager
def _grouped_products_of_any_type() -> Iterator[None]:
    """Let the experts of a mixture be multiplied in float32 too.

    On fake tensors PyTorch 2.13 accepts bfloat16 alone. Transformers has an operator of its own for
    other cases, with the same inputs and outputs.
    """
    try:
        from transformers.integrations import moe
    except ImportError:  # before transformers 5
        yield
        return
    library: Any = moe
    stock = getattr(library, "_can_use_grouped_mm", None)
    library._can_use_grouped_mm = lambda *_: False
    try:
        yield
    finally:
        library._can_use_grouped_mm = stock


def _step(
    model: Any,
    mode: contextlib.AbstractContextManager[None],
    config: TrainConfig,
    rows: int,
    length: int,
    accumulates: bool,
) -> tuple[int, int, int]:
    """Run one step on fake tensors, in the order of a real step.

    Returns:
        Bytes at the output layer; peak from there to the gradient of the embedding; peak after it.
        Each is linear in the number of layers.
    """
    with FakeTensorMode(), _grouped_products_of_any_type():
        _make_fake(model, accumulates)
        ids = torch.zeros((rows, length), dtype=torch.long)
        inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}
        if config.packing:
            inputs["position_ids"] = ids
        tracker = StorageTracker(model)
        before_embedding = 0

        def at_embedding_gradient(_: Tensor) -> None:
            nonlocal before_embedding
            before_embedding, tracker.peak = tracker.peak, tracker.now

        def hook_embedding(_: nn.Module, _inputs: Any, embedded: Tensor) -> None:
            if embedded.requires_grad:
                embedded.register_hook(at_embedding_gradient)

        _unwrap(model).get_input_embeddings().register_forward_hook(hook_embedding)
        with tracker:
            with mode, contextlib.nullcontext() if config.packing else _skip_packing_detection():
                output = model_body(_unwrap(model))(**inputs)[0]
            saved = tracker.peak = tracker.now
            output.sum().backward()
        return saved, before_embedding, tracker.peak


def _unwrap(model: Any) -> Any:
    """Return the Transformers model inside a PEFT model."""
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model


def _autocast(config: TrainConfig) -> contextlib.AbstractContextManager[None]:
    if config.dtype in ("bfloat16", "float16"):
        return torch.autocast("cpu", dtype=getattr(torch, config.dtype))
    return contextlib.nullcontext()


@contextlib.contextmanager
def _skip_packing_detection() -> Iterator[None]:
    """Disable Transformers' detection of packed rows, which reads the values of positions."""
    from transformers import masking_utils

    library: Any = masking_utils
    original = library.find_packed_sequence_indices
    library.find_packed_sequence_indices = lambda _: None
    try:
        yield
    finally:
        library.find_packed_sequence_indices = original


def _skeleton(
    config: TrainConfig, metadata: ModelMetadata, layers: int, dtype: torch.dtype
) -> tuple[Any, bool]:
    """Return the model with fewer layers on the meta device, and whether it needs autocast."""
    with torch.device("meta"):
        model = auto_model_class(metadata.config).from_config(
            _with_layers(metadata.config, layers),
            dtype=dtype,
            # SDPA keeps the same tensors as flash attention.
            attn_implementation="eager" if config.attention == "eager" else "sdpa",
            trust_remote_code=metadata.spec.trust_remote_code,
        )
        model.requires_grad_(False)
        if config.weights_quant != "none":
            _quantize(model, config)
        trainable = _with_adapter(model, metadata.adapter) or make_trainable(model, config, None)
    return trainable, optimize_for_training(trainable, config, metadata.device.type)


def _with_layers(config: Any, layers: int) -> Any:
    """Return a copy of a model config with fewer layers."""
    shortened = deepcopy(config)
    text = shortened.get_text_config()
    total = text.num_hidden_layers
    text.num_hidden_layers = layers
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == total:  # such as the kind of each layer
            setattr(text, name, value[:layers])
    return shortened


def _with_adapter(model: Any, adapter: str | None) -> Any:
    """Return the model with an adapter of the shape of the one in a folder, `None` without one."""
    if adapter is None:
        return None
    from peft import PeftConfig, get_peft_model

    settings = PeftConfig.from_pretrained(adapter)
    settings.inference_mode = False
    return get_peft_model(model, settings).train()


class _DequantizedLinear(torch.autograd.Function):
    """A product with a quantized weight, which is dequantized in the forward and backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, outputs: int, keeps_input: bool) -> Tensor:
        ctx.shape, ctx.x = (outputs, x.shape[-1]), x if keeps_input else None
        return x @ x.new_empty(ctx.shape).T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ grad.new_empty(ctx.shape), None, None


def _quantize(model: Any, config: TrainConfig) -> None:
    """Replace the linear layers except the output layer by ones with bitsandbytes' memory use.

    They are of bitsandbytes' classes, which PEFT handles specially. For DoRA they stay linear
    layers, because it reads the weights.
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
        result: Tensor = _DequantizedLinear.apply(x, outputs, keeps_input)  # type: ignore[no-untyped-call]
        return result

    return forward


def _make_fake(model: nn.Module, accumulates: bool) -> None:
    """Replace the meta tensors of a model by fake tensors; shared tensors stay shared."""
    fakes: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in fakes:
                    fake: Tensor = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, nn.Parameter):
                        fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
                        if accumulates and tensor.requires_grad:
                            fake.grad = torch.empty_like(fake)
                    fakes[id(tensor)] = fake
                tensors[name] = fakes[id(tensor)]  # type: ignore[assignment]
