"""Turns a `ModelSpec` into a model and a tokenizer that are ready to run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmctl.engine.batching.forward.int4 import int4_supported
from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.loading import adapters
from llmctl.engine.loading.gguf_tokenizer import read_tokenizer as read_gguf_tokenizer
from llmctl.engine.loading.third_party import library_errors, quiet_libraries
from llmctl.engine.memory.estimate import ModelShape, shape_from_config
from llmctl.engine.memory.hardware import choose_device, choose_dtype
from llmctl.engine.memory.plan import plan_memory
from llmctl.engine.memory.request import MemoryRequest, TargetDevice
from llmctl.engine.models import adapter_metadata, model_folder, provenance, resolve
from llmctl.engine.models.resolve import ResolvedModel
from llmctl.errors import ConfigError
from llmctl.types import (
    EngineInfo,
    MemoryPlan,
    ModelSpec,
    Progress,
    ProgressCallback,
    Quant,
    SamplingParams,
    ignore_progress,
)

_FALLBACK_CONTEXT = 2048
_QUANT_BLOCK = 64
"""Weights that share a scale in bitsandbytes' 4-bit format."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode and what goes with it. Whoever loads it owns it."""

    info: EngineInfo
    plan: MemoryPlan
    model: Any
    tokenizer: Any
    template: ChatTemplate
    adapter: str | None
    """Folder of an adapter that is still to be put on."""
    has_static_adapter: bool
    """An adapter is in the weights, or fixed beside them."""
    vocab_size: int
    eos_ids: tuple[int, ...]
    sampling_defaults: SamplingParams
    """What the model's `generation_config` asks for."""


def load_model(spec: ModelSpec, progress: ProgressCallback = ignore_progress) -> LoadedModel:
    """Find, read and prepare a model.

    An adapter that can be taken off again is the runner's to put on; any other is put on here.

    Raises:
        ModelNotFoundError: no source has it.
        UnsafeModelError: it could run code of its own, and that was not asked for.
        ModelLoadError: its files cannot be used.
        OutOfMemoryError: it does not fit.
        ConfigError: the device or template is not there; the adapter is none, does not fit, or
            learnt with another chat template.
    """
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    found = resolve.resolve_model(
        spec.model, revision=spec.revision, allow_pickle=spec.allow_pickle, progress=progress
    )
    adapter = adapter_folder(spec, found)
    progress(Progress(f"loading {found.model_id} on {device}"))
    with library_errors(found.path, spec), quiet_libraries():
        config, tokenizer = read_model_config(spec, found.whole), read_tokenizer(spec, found)
        template = ChatTemplate.of(tokenizer, spec.chat_template)
        origin = provenance.check_provenance(
            found,
            adapter=adapter,
            template=template.fingerprint,
            template_chosen=spec.chat_template is not None,
        )
        kept = None if adapter is None else adapters.unsupported_per_request(adapter)
        shape = _shape(spec, found, config)
        plan = plan_memory(
            MemoryRequest(shape, TargetDevice.here(device, dtype), spec.quant, spec.limits)
        )
        # What PEFT puts on for good it knows how to put on bitsandbytes' layers.
        int4 = device.type == "cpu" and int4_supported() and kept is None
        model = read_weights(spec, found.whole, config, device, dtype, int4=int4)
        if adapter is not None and kept is not None:
            quantised = getattr(model, "is_quantized", False)
            model = adapters.attach_static_adapter(adapter, model, quantised=quantised)
    model.eval().requires_grad_(False)
    if spec.quant == "4bit" and device.type == "cpu" and not int4:
        _avoid_packed_kernel(model)
    defaults = model.generation_config
    return LoadedModel(
        info=EngineInfo(
            model_id=found.model_id,
            backend="hf",
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            quant=spec.quant,
            context_length=plan.context_length,
            parameter_count=shape.linear_parameters + shape.other_parameters,
            weight_bytes=int(model.get_memory_footprint()),
            has_chat_template=bool(template),
            template_fingerprint=template.fingerprint,
            logged_model_id=origin.model_id,
            notes=(
                *_notes(spec, device, template, int4=int4),
                *origin.notes,
                *([f"{adapter} is on for good: {kept}"] if kept else []),
                *plan.notes,
            ),
        ),
        plan=plan,
        model=model,
        tokenizer=tokenizer,
        template=template,
        adapter=None if kept else adapter,
        has_static_adapter=kept is not None,
        vocab_size=model.get_input_embeddings().weight.shape[0],
        eos_ids=eos_token_ids(defaults, tokenizer),
        sampling_defaults=_sampling_defaults(defaults),
    )


def read_shape(spec: ModelSpec, found: ResolvedModel) -> ModelShape:
    """Read what a memory plan needs to know of a model, and no weights. Raises as `load_model`."""
    with library_errors(found.path, spec), quiet_libraries():
        return _shape(spec, found, read_model_config(spec, found.whole))


def adapter_folder(spec: ModelSpec, found: ResolvedModel) -> str | None:
    """Return the folder of the adapter that goes on a model.

    Raises:
        ConfigError: two were named.
    """
    if found.base is None:
        return spec.adapter
    if spec.adapter is None:
        return str(found.path)
    raise ConfigError(
        f"{spec.model} is an adapter itself, and {spec.adapter} cannot go on top of it",
        hint=f"--model {found.base.model_id} --adapter ... takes one of them; "
        f"`llmctl models merge {spec.model} -o FOLDER` makes a model that takes another",
    )


def _shape(spec: ModelSpec, found: ResolvedModel, config: Any) -> ModelShape:
    adapter, found = adapter_folder(spec, found), found.whole
    quantised = getattr(config, "quantization_config", None) is not None
    if spec.quant != "none" and (quantised or found.gguf_file is not None):
        raise ConfigError(
            f"--quant {spec.quant} cannot be put on top of {found.model_id}, quantised already",
            hint="leave out --quant, or use the model's unquantised safetensors",
        )
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return shape_from_config(
        config,
        int(length) if length else _tokenizer_limit(read_tokenizer(spec, found)),
        trust_remote_code=spec.trust_remote_code,
        stored_bytes=model_folder.disk_bytes(found.path) if quantised else None,
        quantisable=not quantised and found.gguf_file is None,
        adapter_parameters=(adapter and adapter_metadata.parameter_count(Path(adapter))) or 0,
    )


def read_model_config(spec: ModelSpec, found: ResolvedModel) -> Any:
    """Read a whole model's Transformers config."""
    from transformers import AutoConfig

    if found.gguf_file is not None:
        return AutoConfig.from_pretrained(found.path, gguf_file=found.gguf_file)
    return AutoConfig.from_pretrained(found.path, trust_remote_code=spec.trust_remote_code)


def read_tokenizer(spec: ModelSpec, found: ResolvedModel) -> Any:
    """Read a model's tokenizer with its chat template: an adapter's own where it brings one."""
    from transformers import AutoTokenizer

    whole = found.whole
    if whole.gguf_file is not None:
        tokenizer = read_gguf_tokenizer(whole.path / whole.gguf_file)
    else:
        tokenizer = AutoTokenizer.from_pretrained(
            whole.path, trust_remote_code=spec.trust_remote_code
        )
    if found.base is None or not model_folder.has_tokenizer(found.path):
        return tokenizer
    own = AutoTokenizer.from_pretrained(found.path, trust_remote_code=spec.trust_remote_code)
    if own.chat_template is None:  # not every tool saves it
        own.chat_template = tokenizer.chat_template
    return own


def read_weights(
    spec: ModelSpec,
    found: ResolvedModel,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    attention: str | None = None,
    *,
    int4: bool = False,
) -> Any:
    """Read a whole model's weights.

    Args:
        attention: Transformers' name of an implementation.
        int4: whether four bits may be `int4`'s, which knows no gradients, instead of NF4.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    options: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if (gguf_file := found.gguf_file) is not None:
        options |= {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    else:
        options |= {"config": config, "use_safetensors": None if spec.allow_pickle else True}
        if (quantisation := _quantisation(spec.quant, dtype, int4=int4)) is not None:
            options["quantization_config"] = quantisation
    return AutoModelForCausalLM.from_pretrained(
        found.path,
        dtype=dtype,
        device_map={"": device},
        trust_remote_code=spec.trust_remote_code,
        **options,
    )


def _quantisation(quant: Quant, compute_dtype: torch.dtype, *, int4: bool) -> Any:
    """Return the settings of `int4`; or bitsandbytes', NF4 with double quantisation or LLM.int8."""
    if quant == "none":
        return None
    if quant == "4bit" and int4:
        from llmctl.engine.loading.int4_quantizer import Int4Config

        return Int4Config()
    from transformers import BitsAndBytesConfig

    if quant == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


def _avoid_packed_kernel(model: nn.Module) -> None:
    """Keep bitsandbytes from its AVX512 kernel where a layer's shape does not suit it.

    The kernel packs 32 output features at a time and whole blocks of inputs, and fails on others
    instead of falling back (bitsandbytes 0.50, `_convert_weight_packed_for_cpu`).
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit) and (
            module.out_features % 32 or module.in_features % _QUANT_BLOCK
        ):
            module.support_avx512bf16_for_cpu = False


def _tokenizer_limit(tokenizer: Any) -> int:
    # Tokenizers without a limit say 10**30.
    limit = int(tokenizer.model_max_length)
    return limit if limit < 10**9 else _FALLBACK_CONTEXT


def eos_token_ids(defaults: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens at which a reply ends; `defaults` is the model's generation config."""
    ids = defaults.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    return tuple(sorted({i for i in (*listed, tokenizer.eos_token_id) if i is not None}))


def _sampling_defaults(defaults: Any) -> SamplingParams:
    if not defaults.do_sample:
        return SamplingParams()
    return SamplingParams(
        temperature=defaults.temperature,
        top_p=defaults.top_p,
        top_k=defaults.top_k,
        min_p=defaults.min_p,
        repetition_penalty=defaults.repetition_penalty,
    )


def _notes(
    spec: ModelSpec, device: torch.device, template: ChatTemplate, *, int4: bool
) -> tuple[str, ...]:
    notes = []
    if spec.quant == "4bit" and int4:
        notes.append("on a CPU --quant 4bit is faster for one reply at a time, not for many")
    elif spec.quant != "none" and device.type == "cpu":
        notes.append(f"on a CPU --quant {spec.quant} saves memory, not time")
    if not template:
        notes.append("the model has no chat template: it can complete text, not chat")
    return tuple(notes)
