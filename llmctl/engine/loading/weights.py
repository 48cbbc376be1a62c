"""Reading of a model's weights, with a check that the files have exactly those of the model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llmctl.engine.auto_model import auto_model_class
from llmctl.engine.error_translation import is_out_of_memory
from llmctl.engine.loading.generation_defaults import read_generation_config
from llmctl.engine.loading.tensor_names import is_of_adapter, key_mapping, unknown_names
from llmctl.engine.loading.third_party import quiet_libraries
from llmctl.engine.models.resolved import ResolvedModel
from llmctl.engine.models.weight_files import tensor_names
from llmctl.errors import ModelLoadError
from llmctl.types import ModelSpec, Quant

if TYPE_CHECKING:
    from llmctl.engine.loading.quantizers.packed import Packing

_SHOWN = 3


def read_weights(
    spec: ModelSpec,
    resolved: ResolvedModel,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    attention: str | None = None,
    *,
    packing: "Packing | None" = None,
    experts: bool = True,
) -> Any:
    """Read the weights of a full model.

    Args:
        spec: the model and its quantisation.
        resolved: where it is.
        config: of Transformers.
        device: to load to.
        dtype: of weights that are not quantised.
        attention: Transformers' name of an implementation.
        packing: format of packed layers, which have no gradients, instead of bitsandbytes' for
            `spec.quant`, or of plain ones.
        experts: whether the experts of a mixture are quantised too; adapters of them need theirs
            unquantised.

    Raises:
        ModelLoadError: the files lack tensors, or have others or of other shapes; or a package for
            their quantisation is missing.
    """
    generation, _ = read_generation_config(resolved, config)
    options: dict[str, Any] = {"generation_config": generation}
    if attention is not None:
        options["attn_implementation"] = attention
    if (gguf_file := resolved.gguf_file) is not None:
        options |= _gguf_options(gguf_file)
    else:
        options |= {"config": config, "use_safetensors": None if spec.allow_pickle else True}
        if (quantisation := _quantisation(spec.quant, dtype, packing, experts=experts)) is not None:
            options["quantization_config"] = quantisation
    try:
        return _read_checked(resolved, config, dtype, {"": device}, spec.trust_remote_code, options)
    except (ImportError, ValueError, RuntimeError) as error:
        method = _quantisation_method(config)
        if method is None or is_out_of_memory(error):
            raise
        reason = str(error).strip().splitlines()[0]
        install = "install that package, or " if isinstance(error, ImportError) else ""
        raise ModelLoadError(
            f"{resolved.model_id} is quantised with {method}: {reason}",
            hint=f"{install}{_OTHER_FORMATS}",
        ) from error


def read_original_weights(path: Path, dtype: torch.dtype | str = "auto") -> Any:
    """Read the weights of a model folder or a GGUF file on the CPU, in evaluation mode.

    Raises:
        ModelLoadError: the files lack tensors, or have others or of other shapes.
    """
    return _read_path(path, dtype, "cpu").eval()


def check_weights(folder: Path) -> None:
    """Check that a model folder has all tensors, without reading them.

    Raises:
        ModelLoadError: the files lack tensors, or have others or of other shapes.
    """
    _read_path(folder, "auto", "meta")


def _read_path(path: Path, dtype: torch.dtype | str, device: str) -> Any:
    from transformers import AutoConfig

    is_file = path.is_file()
    folder, gguf_file = (path.parent, path.name) if is_file else (path, None)
    resolved = ResolvedModel(path.name, folder, gguf_file, "local", None)
    file_option = {"gguf_file": gguf_file} if is_file else {}
    config = AutoConfig.from_pretrained(folder, **file_option)
    options = _gguf_options(gguf_file) if gguf_file is not None else {"config": config}
    with quiet_libraries():
        return _read_checked(resolved, config, dtype, {"": device}, False, options)


def _gguf_options(gguf_file: str) -> dict[str, Any]:
    from transformers import GgufConfig

    return {"gguf_file": gguf_file, "quantization_config": GgufConfig(dequantize=True)}


def _read_checked(
    resolved: ResolvedModel,
    config: Any,
    dtype: torch.dtype | str,
    device_map: dict[str, Any],
    trust_remote_code: bool,
    options: dict[str, Any],
) -> Any:
    is_gguf = resolved.gguf_file is not None
    if not is_gguf and (mapping := key_mapping(_names(resolved.path))):
        options = {**options, "key_mapping": mapping}
    model, report = auto_model_class(config).from_pretrained(
        resolved.path,
        dtype=dtype,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # reported below with all others
        **options,
    )
    _check_tensors(model, report, resolved, is_gguf=is_gguf)
    return model


_OTHER_FORMATS = "take the unquantised safetensors with --quant 4bit or 8bit, or a GGUF file"


def check_quantisation_method(config: Any, model_id: str) -> None:
    """Check that Transformers knows how the weights are quantised; it would ignore it otherwise.

    Raises:
        ModelLoadError: it does not.
    """
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    method = _quantisation_method(config)
    known = {*AUTO_QUANTIZATION_CONFIG_MAPPING, "bitsandbytes"}
    if method is not None and method not in known:
        raise ModelLoadError(
            f"{model_id} is quantised with {method!r}, which Transformers does not read",
            hint=_OTHER_FORMATS,
        )


def _quantisation_method(config: Any) -> str | None:
    own = getattr(config, "quantization_config", None)
    if own is None:
        # MLX writes a key of its own, with its groups and bits.
        mlx = getattr(config, "quantization", None)
        return "MLX" if isinstance(mlx, dict) and "bits" in mlx else None
    if isinstance(own, dict):
        method = own.get("quant_method")
    else:
        method = getattr(own, "quant_method", None)
    if method is None:  # bitsandbytes did not write it at first
        return "bitsandbytes"
    return str(getattr(method, "value", method))


def _quantisation(
    quant: Quant, compute_dtype: torch.dtype, packing: "Packing | None", *, experts: bool
) -> Any:
    """Return the config of packed layers, of NF4 with double quantisation, or of LLM.int8()."""
    if packing is not None:
        from llmctl.engine.loading.quantizers.packed import PackingConfig

        return PackingConfig(packing)
    if quant == "none":
        return None
    from llmctl.engine.loading.quantizers.bitsandbytes import Int8Config, NF4Config

    if quant == "8bit":
        return Int8Config(experts=experts)
    return NF4Config(compute_dtype, experts=experts)


def _names(folder: Path) -> list[str]:
    try:
        return tensor_names(folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return []  # reading the weights reports what is wrong


def _check_tensors(model: Any, report: Any, resolved: ResolvedModel, *, is_gguf: bool) -> None:
    """Raise `ModelLoadError` if tensors are missing, unknown or of another shape."""
    mismatched = [
        f"{name} {tuple(found)} instead of {tuple(expected)}"
        for name, found, expected in report["mismatched_keys"]
    ]
    text = model.config.get_text_config(decoder=True)
    unexpected = [] if is_gguf else unknown_names(report["unexpected_keys"], text)
    problems = [
        ("lack", sorted(report["missing_keys"])),
        ("have tensors of another shape:", mismatched),
        ("have tensors that the model does not:", unexpected),
    ]
    parts = [f"{what} {_some(names)}" for what, names in problems if names]
    if not parts:
        return
    if any(map(is_of_adapter, unexpected)):
        hint = "they hold an adapter that is not merged: save merge_and_unload() of the PEFT model"
    elif resolved.source == "local":
        hint = "the files are incomplete, or config.json is of another model: save or copy it again"
    else:
        hint = "the files are incomplete: `llmctl models rm` and `pull` download them anew"
    raise ModelLoadError(f"the weights of {resolved.model_id} {', '.join(parts)}", hint=hint)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
