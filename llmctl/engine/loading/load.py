"""Loading of a model and its tokenizer from a `ModelSpec`."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmctl.engine.batching.expected_path import expected_path
from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.loading import adapters
from llmctl.engine.loading.adapter_config import unsupported_per_request
from llmctl.engine.loading.generation_defaults import read_generation_config, sampling_defaults
from llmctl.engine.loading.gguf.tokenizer import end_token_ids as gguf_end_token_ids
from llmctl.engine.loading.gguf.tokenizer import read_tokenizer as read_gguf_tokenizer
from llmctl.engine.loading.quantizers.packed import (
    Packing,
    choose_packing,
    packed_bytes,
    store_ends_in_float16,
)
from llmctl.engine.loading.third_party import library_errors, quiet_libraries
from llmctl.engine.loading.weights import check_quantisation_method, read_weights
from llmctl.engine.memory.estimate import ModelShape, shape_from_config
from llmctl.engine.memory.hardware import choose_device, choose_dtype
from llmctl.engine.memory.plan import plan_memory
from llmctl.engine.memory.request import MemoryRequest, TargetDevice
from llmctl.engine.models import adapter_metadata, model_folder, provenance, resolve
from llmctl.engine.models.catalog import find_entry
from llmctl.engine.models.resolved import ResolvedModel
from llmctl.engine.models.weight_files import fingerprint
from llmctl.errors import ConfigError, ModelLoadError, ModelNotFoundError
from llmctl.types import (
    EngineInfo,
    ExecutionPath,
    MemoryPlan,
    ModelSpec,
    Progress,
    ProgressCallback,
    SamplingParams,
    ignore_progress,
)

_log = logging.getLogger(__name__)

_FALLBACK_CONTEXT = 2048
_EXPERTS_NDIM = 3
"""Dimensions of a tensor with the matrices of all experts."""
_QUANT_BLOCK = 64
"""Number of weights that share a scale in bitsandbytes' 4-bit format."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode, owned by its caller, with its tokenizer and settings."""

    info: EngineInfo
    plan: MemoryPlan
    model: Any
    tokenizer: Any
    template: ChatTemplate
    adapter: str | None
    """Folder of an adapter that the caller has to add."""
    has_static_adapter: bool
    """Whether an adapter is permanently part of the model."""
    vocab_size: int
    eos_ids: tuple[int, ...]
    sampling_defaults: SamplingParams
    """From the model's `generation_config`."""


def load_model(
    spec: ModelSpec,
    progress: ProgressCallback = ignore_progress,
    *,
    allow_packing: bool = True,
) -> LoadedModel:
    """Resolve, load and prepare a model.

    An adapter that can be selected per request is left to the caller; any other is added here.

    Args:
        allow_packing: whether a CPU may use the packed layers of `quantizers.packed`, where
            processor and PyTorch support them.

    Raises:
        ModelNotFoundError: no source has it.
        UnsafeModelError: it can run code of its own, which was not allowed.
        ModelLoadError: its files cannot be used.
        OutOfMemoryError: it does not fit.
        ConfigError: the device or the template is not available; the adapter is not valid, is for
            another model, or was trained with another chat template.
    """
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    resolved = resolve.resolve_model(
        spec.model, revision=spec.revision, allow_pickle=spec.allow_pickle, progress=progress
    )
    adapter = adapter_folder(spec, resolved)
    progress(Progress(f"loading {resolved.model_id} on {device}"))
    with library_errors(resolved.path, spec), quiet_libraries():
        config = read_model_config(spec, resolved.full_model)
        model_tokenizer = _read_model_tokenizer(spec, resolved.full_model)
        tokenizer = adapters.read_own_tokenizer(
            adapter, model_tokenizer, trust_remote_code=spec.trust_remote_code
        )
        difference = adapters.tokenizer_difference(tokenizer, model_tokenizer)
        template = ChatTemplate.of(tokenizer, spec.chat_template)
        check = provenance.check_provenance(
            resolved,
            adapter=adapter,
            template=template.fingerprint,
            template_chosen=spec.chat_template is not None,
        )
        static_reason = None if adapter is None else unsupported_per_request(adapter)
        shape = model_shape(spec, resolved, config)
        # PEFT adds adapters permanently to plain layers and bitsandbytes' only. Weights that
        # are quantised on disk have a format of their own.
        packing = None
        if allow_packing and static_reason is None and shape.quantisable:
            packing = choose_packing(spec.quant, spec.dtype, device)
        half = packing is not None and dtype == torch.float32
        target = TargetDevice.here(device, dtype, float16_weights=half)
        plan = plan_memory(MemoryRequest(shape, target, spec.quant, spec.limits))
        model = read_weights(
            spec,
            resolved.full_model,
            config,
            device,
            dtype,
            packing=packing,
            experts=static_reason is None,
        )
        if half:
            store_ends_in_float16(model)
        if adapter is not None and static_reason is not None:
            quantised = getattr(model, "is_quantized", False)
            model = adapters.attach_static_adapter(adapter, model, quantised=quantised)
    model.eval().requires_grad_(False)
    if spec.quant == "4bit" and device.type == "cpu" and packing is None:
        _avoid_packed_kernel(model)
    generation, generation_notes = read_generation_config(resolved.full_model, config)
    defaults, default_notes = sampling_defaults(generation, resolved.full_model.path)
    if (entry := find_entry(resolved.full_model.model_id)) is not None:
        defaults = defaults.with_defaults(entry.sampling)
    return LoadedModel(
        info=EngineInfo(
            model_id=resolved.model_id,
            backend="hf",
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            quant=spec.quant,
            context_length=plan.context_length,
            parameter_count=shape.linear_parameters + shape.other_parameters,
            weight_bytes=int(model.get_memory_footprint()) + packed_bytes(model),
            has_chat_template=bool(template),
            template_fingerprint=template.fingerprint,
            weights_fingerprint=fingerprint(resolved.full_model.weights_path),
            adapter_fingerprint=(
                None if adapter is None else fingerprint(Path(adapter).expanduser())
            ),
            logged_model_id=check.model_id,
            training_run_id=check.run_id,
            notes=(
                *_notes(spec, device, template, model, packing),
                *generation_notes,
                *default_notes,
                *check.notes,
                *([f"{adapter} brings its own tokenizer: {difference}"] if difference else []),
                *([f"{adapter} is added permanently: {static_reason}"] if static_reason else []),
                *plan.notes,
            ),
        ),
        plan=plan,
        model=model,
        tokenizer=tokenizer,
        template=template,
        adapter=None if static_reason else adapter,
        has_static_adapter=static_reason is not None,
        vocab_size=model.get_input_embeddings().weight.shape[0],
        eos_ids=eos_token_ids(generation, tokenizer, resolved),
        sampling_defaults=defaults,
    )


def read_shape(spec: ModelSpec, resolved: ResolvedModel) -> ModelShape:
    """Read a model's dimensions for the memory plan from its config. Raises as `load_model`."""
    with library_errors(resolved.path, spec), quiet_libraries():
        return model_shape(spec, resolved, read_model_config(spec, resolved.full_model))


def path_from_files(model: str) -> tuple[ExecutionPath | None, str]:
    """Return how a model is expected to run, from its config on this machine, and why.

    Returns:
        `None` and a reason if its config cannot be read; without one if it is not on this machine.
    """
    spec = ModelSpec(model, allow_pickle=True)
    try:
        resolved = resolve.resolve_local(model, allow_pickle=True)
        with library_errors(resolved.path, spec), quiet_libraries():
            return expected_path(read_model_config(spec, resolved.full_model))
    except ModelNotFoundError:
        return None, ""
    except Exception as error:  # a damaged file must not hide what else is known of a model
        _log.info("the config of %s cannot be read", model, exc_info=error)
        return None, f"unknown: {error}"


def adapter_folder(spec: ModelSpec, resolved: ResolvedModel) -> str | None:
    """Return the folder of the adapter to load with a model, or `None`.

    Raises:
        ConfigError: both `spec.model` and `spec.adapter` are adapters.
    """
    if resolved.base is None:
        return spec.adapter
    if spec.adapter is None:
        return str(resolved.path)
    raise ConfigError(
        f"{spec.model} is an adapter itself and cannot be combined with {spec.adapter}",
        hint=f"--model {resolved.base.model_id} --adapter ... loads one of them; "
        f"`llmctl models merge {spec.model} -o FOLDER` makes a model for another adapter",
    )


def model_shape(spec: ModelSpec, resolved: ResolvedModel, config: Any) -> ModelShape:
    """Return a model's dimensions for the memory plan.

    Args:
        config: of the full model, as `read_model_config` returns it.

    Raises:
        ConfigError: a quantisation was requested for weights that are quantised on disk.
        ModelLoadError: the config lacks a dimension.
    """
    adapter, model = adapter_folder(spec, resolved), resolved.full_model
    quantised = getattr(config, "quantization_config", None) is not None
    if spec.quant != "none" and (quantised or model.gguf_file is not None):
        raise ConfigError(
            f"--quant {spec.quant} cannot be applied: {model.model_id} is already quantised",
            hint="omit --quant, or use the model's unquantised safetensors",
        )
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return shape_from_config(
        config,
        int(length) if length else _tokenizer_limit(read_tokenizer(spec, model)),
        trust_remote_code=spec.trust_remote_code,
        stored_bytes=model_folder.disk_bytes(model.path) if quantised else None,
        quantisable=not quantised and model.gguf_file is None,
        experts=adapter is None or unsupported_per_request(adapter) is None,
        adapter_parameters=(adapter and adapter_metadata.parameter_count(Path(adapter))) or 0,
    )


def read_model_config(spec: ModelSpec, resolved: ResolvedModel) -> Any:
    """Read the Transformers config of a full model."""
    from transformers import AutoConfig

    if resolved.gguf_file is not None:
        return AutoConfig.from_pretrained(resolved.path, gguf_file=resolved.gguf_file)
    config = AutoConfig.from_pretrained(resolved.path, trust_remote_code=spec.trust_remote_code)
    check_quantisation_method(config, resolved.model_id)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelLoadError(
            f"{resolved.model_id} ({config.model_type}) is an encoder-decoder: its replies do not "
            "continue the prompt, and llmctl runs decoders only",
            hint="choose one of `llmctl models list`, or another model for text generation",
        )
    return config


def read_tokenizer(spec: ModelSpec, resolved: ResolvedModel) -> Any:
    """Read a model's tokenizer with its chat template; that of an adapter if it has one."""
    tokenizer = _read_model_tokenizer(spec, resolved.full_model)
    adapter = adapter_folder(spec, resolved)
    return adapters.read_own_tokenizer(adapter, tokenizer, trust_remote_code=spec.trust_remote_code)


def _read_model_tokenizer(spec: ModelSpec, model: ResolvedModel) -> Any:
    from transformers import AutoTokenizer

    if model.gguf_file is not None:
        return read_gguf_tokenizer(model.path / model.gguf_file)
    return AutoTokenizer.from_pretrained(model.path, trust_remote_code=spec.trust_remote_code)


def _avoid_packed_kernel(model: nn.Module) -> None:
    """Disable bitsandbytes' AVX-512 kernel for layers of a shape that it does not support.

    The kernel packs 32 output features and whole blocks of inputs, and fails on other shapes
    instead of falling back (bitsandbytes 0.50, `_convert_weight_packed_for_cpu`).
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit) and (
            module.out_features % 32 or module.in_features % _QUANT_BLOCK
        ):
            module.support_avx512bf16_for_cpu = False


def _tokenizer_limit(tokenizer: Any) -> int:
    # Tokenizers without a limit have 10**30.
    limit = int(tokenizer.model_max_length)
    return limit if limit < 10**9 else _FALLBACK_CONTEXT


def eos_token_ids(defaults: Any, tokenizer: Any, resolved: ResolvedModel) -> tuple[int, ...]:
    """Return the ids that end a reply; `defaults` is of `read_generation_config`."""
    found = {*(defaults.eos_token_id or ())}
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    if resolved.full_model.gguf_file is not None:
        found |= gguf_end_token_ids(resolved.full_model.weights_path)
    return tuple(sorted(found))


def _notes(
    spec: ModelSpec,
    device: torch.device,
    template: ChatTemplate,
    model: Any,
    packing: Packing | None,
) -> tuple[str, ...]:
    notes = []
    if packing == "int4":
        notes.append("on a CPU --quant 4bit is faster for one reply at a time, not for many")
    elif packing == "float16":
        notes.append("the weights are float16, the arithmetic is float32 (FBGEMM)")
    elif packing is None and spec.quant != "none" and device.type == "cpu":
        notes.append(f"on a CPU --quant {spec.quant} saves memory, not time")
    numbers = [(p.numel(), p.ndim) for p in model.parameters() if p.is_floating_point()]
    kept = sum(count for count, ndim in numbers if ndim == _EXPERTS_NDIM)
    if spec.quant != "none" and kept > sum(count for count, _ in numbers) / 10:
        notes.append(
            f"{kept / 1e6:,.0f} M parameters of experts keep {str(model.dtype).split('.')[-1]}: "
            f"--quant {spec.quant} takes linear layers and the experts of most types only"
        )
    if not template:
        notes.append("the model has no chat template: it can complete text, not chat")
    return tuple(notes)
