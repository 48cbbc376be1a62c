"""Turns a `ModelSpec` into a model and a tokenizer that are ready to run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llmctl.engine import catalog, model_folder
from llmctl.engine.case import Case, Machine
from llmctl.engine.catalog import ResolvedModel
from llmctl.engine.failures import is_out_of_memory
from llmctl.engine.gguf_tokenizer import read_tokenizer
from llmctl.engine.hardware import choose_device, choose_dtype
from llmctl.engine.memory import ModelShape, shape_of
from llmctl.engine.plan import plan_memory
from llmctl.engine.template import ChatTemplate
from llmctl.errors import (
    ConfigError,
    LlmctlError,
    ModelLoadError,
    OutOfMemoryError,
    UnsafeModelError,
)
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
    vocab_size: int
    eos_ids: tuple[int, ...]
    sampling_defaults: SamplingParams
    """What the model's `generation_config` asks for."""


def load_model(spec: ModelSpec, progress: ProgressCallback = ignore_progress) -> LoadedModel:
    """Find, read and prepare a model; its adapter is the runner's to put on.

    Raises:
        ModelNotFoundError: no source has it.
        UnsafeModelError: it could run code of its own, and that was not asked for.
        ModelLoadError: its files cannot be used.
        OutOfMemoryError: it does not fit.
        ConfigError: the device or template is not there.
    """
    device = choose_device(spec.device)
    dtype = choose_dtype(spec.dtype, device)
    found = catalog.resolve(
        spec.model, revision=spec.revision, allow_pickle=spec.allow_pickle, progress=progress
    )
    progress(Progress(f"loading {found.model_id} on {device}"))
    with _library_errors(found.path, spec), _quiet_libraries():
        config, tokenizer = _read_config(spec, found), _read_tokenizer(spec, found)
        template = ChatTemplate.of(tokenizer, spec.chat_template)
        shape = _shape(spec, found, config)
        plan = plan_memory(Case(shape, Machine.here(device, dtype), spec.quant, spec.limits))
        model = _read_weights(spec, found.path, found.gguf_file, config, device, dtype)
    model.eval().requires_grad_(False)
    if spec.quant == "4bit" and device.type == "cpu":
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
            notes=(*_notes(spec, device, template), *plan.notes),
        ),
        plan=plan,
        model=model,
        tokenizer=tokenizer,
        template=template,
        vocab_size=model.get_input_embeddings().weight.shape[0],
        eos_ids=_eos_ids(defaults, tokenizer),
        sampling_defaults=_sampling_defaults(defaults),
    )


def read_shape(spec: ModelSpec, found: ResolvedModel) -> ModelShape:
    """Read what a memory plan needs to know of a model, and no weights. Raises as `load_model`."""
    with _library_errors(found.path, spec), _quiet_libraries():
        return _shape(spec, found, _read_config(spec, found))


def _shape(spec: ModelSpec, found: ResolvedModel, config: Any) -> ModelShape:
    quantised = getattr(config, "quantization_config", None) is not None
    if spec.quant != "none" and (quantised or found.gguf_file is not None):
        raise ConfigError(
            f"--quant {spec.quant} cannot be put on top of {found.model_id}, quantised already",
            hint="leave out --quant, or use the model's unquantised safetensors",
        )
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return shape_of(
        config,
        int(length) if length else _tokenizer_limit(_read_tokenizer(spec, found)),
        trust_remote_code=spec.trust_remote_code,
        stored_bytes=model_folder.disk_bytes(found.path) if quantised else None,
        quantisable=not quantised and found.gguf_file is None,
    )


def _read_config(spec: ModelSpec, found: ResolvedModel) -> Any:
    from transformers import AutoConfig

    if found.gguf_file is not None:
        return AutoConfig.from_pretrained(found.path, gguf_file=found.gguf_file)
    return AutoConfig.from_pretrained(found.path, trust_remote_code=spec.trust_remote_code)


def _read_tokenizer(spec: ModelSpec, found: ResolvedModel) -> Any:
    from transformers import AutoTokenizer

    if found.gguf_file is not None:
        return read_tokenizer(found.path / found.gguf_file)
    return AutoTokenizer.from_pretrained(found.path, trust_remote_code=spec.trust_remote_code)


def _read_weights(
    spec: ModelSpec,
    path: Path,
    gguf_file: str | None,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    options: dict[str, Any] = {}
    if gguf_file is not None:
        options |= {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}
    else:
        options |= {"config": config, "use_safetensors": None if spec.allow_pickle else True}
        if (quantisation := _quantisation(spec.quant, dtype)) is not None:
            options["quantization_config"] = quantisation
    return AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        device_map={"": device},
        trust_remote_code=spec.trust_remote_code,
        **options,
    )


def _quantisation(quant: Quant, compute_dtype: torch.dtype) -> Any:
    """Return bitsandbytes' settings: NF4 with double quantisation, or LLM.int8."""
    if quant == "none":
        return None
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


def _eos_ids(defaults: Any, tokenizer: Any) -> tuple[int, ...]:
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


def _notes(spec: ModelSpec, device: torch.device, template: ChatTemplate) -> tuple[str, ...]:
    notes = []
    if spec.quant != "none" and device.type == "cpu":
        notes.append(f"on a CPU --quant {spec.quant} saves memory, not time")
    if not template:
        notes.append("the model has no chat template: it can complete text, not chat")
    return tuple(notes)


@contextmanager
def _library_errors(path: Path, spec: ModelSpec) -> Iterator[None]:
    """Turn what the libraries raise while they read a model into errors that say what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except LlmctlError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        MemoryError,
        ImportError,
        SafetensorError,
    ) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"memory ran out while {spec.model} was loading",
                hint="try --quant 4bit, or a smaller model",
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            raise UnsafeModelError(
                f"{spec.model} brings Python code of its own, which is not run unless asked for",
                hint="add --trust-remote-code if you trust it",
            ) from error
        raise ModelLoadError(
            f"cannot load {path}: {reason}",
            hint="LLMCTL_TRACEBACK=1 shows more; `llmctl models rm` and `pull` fetch it anew",
        ) from error


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own bars and warnings off the terminal: we report the loading."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    # Warns at every import on a CPU about an optional package, then at every 8-bit layer call.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # This bar heeds no switch (transformers 5.23).
    gguf: Any = modeling_gguf_pytorch_utils
    gguf_bar = gguf.tqdm
    gguf.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        gguf.tqdm = gguf_bar
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
