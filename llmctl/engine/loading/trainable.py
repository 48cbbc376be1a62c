"""What does training need of a model: its facts before its weights are read; then those, frozen."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.loading.load import (
    adapter_folder,
    eos_token_ids,
    read_model_config,
    read_shape,
    read_tokenizer,
    read_weights,
)
from llmctl.engine.loading.third_party import library_errors, quiet_libraries
from llmctl.engine.memory.estimate import ModelShape
from llmctl.engine.memory.hardware import choose_device, choose_dtype
from llmctl.engine.models import resolve
from llmctl.engine.models.resolve import ResolvedModel
from llmctl.types import ModelSpec, Progress, ProgressCallback, ignore_progress


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """Everything of a model but its weights."""

    spec: ModelSpec
    resolved: ResolvedModel
    adapter: str | None
    """Folder of the adapter that is taught further."""
    config: Any
    tokenizer: Any
    template: ChatTemplate
    shape: ModelShape
    device: torch.device
    dtype: torch.dtype
    """To compute in."""
    eos_ids: tuple[int, ...]
    """Tokens at which the server ends a reply."""


def load_model_metadata(
    spec: ModelSpec, progress: ProgressCallback = ignore_progress
) -> ModelMetadata:
    """Find a model and read all of it but the weights. Raises as `load_model`."""
    from transformers import GenerationConfig

    device = choose_device(spec.device)
    found = resolve.resolve_model(
        spec.model, revision=spec.revision, allow_pickle=spec.allow_pickle, progress=progress
    )
    with library_errors(found.path, spec), quiet_libraries():
        config, tokenizer = read_model_config(spec, found.whole), read_tokenizer(spec, found)
        if (found.whole.path / "generation_config.json").is_file():
            defaults = GenerationConfig.from_pretrained(found.whole.path)
        else:
            defaults = GenerationConfig.from_model_config(config)
        return ModelMetadata(
            spec=spec,
            resolved=found,
            adapter=adapter_folder(spec, found),
            config=config,
            tokenizer=tokenizer,
            template=ChatTemplate.of(tokenizer, spec.chat_template),
            shape=read_shape(spec, found),
            device=device,
            dtype=choose_dtype(spec.dtype, device),
            eos_ids=eos_token_ids(defaults, tokenizer),
        )


def load_for_training(
    outline: ModelMetadata,
    *,
    dtype: torch.dtype,
    attention: str,
    progress: ProgressCallback = ignore_progress,
) -> Any:
    """Read the weights, all of them frozen, in evaluation mode.

    What is not quantised keeps `dtype`: PEFT's `prepare_model_for_kbit_training` would write
    embeddings and head out in float32, which at a vocabulary of 152,000 doubles 2 GB.

    Args:
        dtype: of the weights.
        attention: Transformers' name of an implementation.

    Raises as `load_model`.
    """
    spec, found = outline.spec, outline.resolved
    progress(Progress(f"loading {found.model_id} on {outline.device}"))
    with library_errors(found.path, spec), quiet_libraries():
        model = read_weights(spec, found.whole, outline.config, outline.device, dtype, attention)
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    if spec.quant == "4bit" and outline.device.type == "cpu":
        _keep_gradients(model)
    return model


def _keep_gradients(model: nn.Module) -> None:
    """Keep bitsandbytes from its AVX512 kernel, which knows no gradients.

    In evaluation mode `Linear4bit` repacks its weight for that kernel for good: whoever trains on
    after a measurement gets no gradient through the layer, and no error (bitsandbytes 0.50,
    `Linear4bit.forward`).
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
