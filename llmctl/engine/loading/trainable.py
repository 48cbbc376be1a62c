"""Loading for training: first a model's metadata, then its frozen weights."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.loading.adapter_config import unsupported_per_request
from llmctl.engine.loading.generation_defaults import read_generation_config
from llmctl.engine.loading.load import (
    adapter_folder,
    eos_token_ids,
    model_shape,
    read_model_config,
    read_tokenizer,
)
from llmctl.engine.loading.third_party import library_errors, quiet_libraries
from llmctl.engine.loading.weights import read_weights
from llmctl.engine.memory.estimate import ModelShape
from llmctl.engine.memory.hardware import choose_device, choose_dtype
from llmctl.engine.models import resolve
from llmctl.engine.models.resolved import ResolvedModel
from llmctl.types import ModelSpec, Progress, ProgressCallback, ignore_progress


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model's config, tokenizer and dimensions, without its weights."""

    spec: ModelSpec
    resolved: ResolvedModel
    adapter: str | None
    """Folder of the adapter to continue training, if any."""
    config: Any
    tokenizer: Any
    template: ChatTemplate
    shape: ModelShape
    device: torch.device
    dtype: torch.dtype
    """To compute in."""
    eos_ids: tuple[int, ...]
    """Tokens that end a reply."""


def load_model_metadata(
    spec: ModelSpec, progress: ProgressCallback = ignore_progress
) -> ModelMetadata:
    """Resolve a model and read its metadata. Raises as `load_model`."""
    device = choose_device(spec.device)
    resolved = resolve.resolve_model(
        spec.model, revision=spec.revision, allow_pickle=spec.allow_pickle, progress=progress
    )
    with library_errors(resolved.path, spec), quiet_libraries():
        config = read_model_config(spec, resolved.full_model)
        tokenizer = read_tokenizer(spec, resolved)
        defaults, _ = read_generation_config(resolved.full_model, config)
        return ModelMetadata(
            spec=spec,
            resolved=resolved,
            adapter=adapter_folder(spec, resolved),
            config=config,
            tokenizer=tokenizer,
            template=ChatTemplate.of(tokenizer, spec.chat_template),
            shape=model_shape(spec, resolved, config),
            device=device,
            dtype=choose_dtype(spec.dtype, device),
            eos_ids=eos_token_ids(defaults, tokenizer, resolved),
        )


def load_for_training(
    metadata: ModelMetadata,
    *,
    dtype: torch.dtype,
    attention: str,
    experts: bool = True,
    progress: ProgressCallback = ignore_progress,
) -> Any:
    """Read the weights, all frozen, in evaluation mode.

    Weights that are not quantised have `dtype`. PEFT's `prepare_model_for_kbit_training` would
    convert embeddings and head to float32, which for a vocabulary of 152,000 doubles 2 GB.

    Args:
        dtype: of the weights.
        attention: Transformers' name of an implementation.
        experts: whether quantisation includes the experts of a mixture; not if they are adapted.

    Raises:
        LlmctlError: as `load_model`.
    """
    spec, resolved = metadata.spec, metadata.resolved
    progress(Progress(f"loading {resolved.model_id} on {metadata.device}"))
    with library_errors(resolved.path, spec), quiet_libraries():
        model = read_weights(
            spec,
            resolved.full_model,
            metadata.config,
            metadata.device,
            dtype,
            attention,
            experts=experts
            and (metadata.adapter is None or unsupported_per_request(metadata.adapter) is None),
        )
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    if spec.quant == "4bit" and metadata.device.type == "cpu":
        _keep_gradients(model)
    return model


def _keep_gradients(model: nn.Module) -> None:
    """Disable bitsandbytes' AVX-512 kernel, which has no gradients.

    In evaluation mode `Linear4bit` repacks its weight for that kernel permanently. Training after
    an evaluation would then have no gradient through the layer, and raise no error (bitsandbytes
    0.50, `Linear4bit.forward`).
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
