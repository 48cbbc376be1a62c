"""Metadata of a LoRA adapter's folder, read without its tensors."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.engine.models import model_folder
from llmctl.engine.models.provenance import Provenance
from llmctl.engine.models.weight_files import read_entries
from llmctl.errors import ModelLoadError, ModelNotFoundError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class BaseModelName:
    """The base model of an adapter, as the adapter's folder names it."""

    name: str
    """Catalogue name, hub id, or path."""
    revision: str | None = None
    """Revision on the hub."""
    path: Path | None = None
    """Its folder, if the name is a path."""


@dataclass(frozen=True, slots=True)
class AdapterMetadata:
    """Metadata of an adapter; `None` where its folder does not have it."""

    kind: str
    """PEFT's name of the method in lower case, with variants of LoRA: `lora, dora`."""
    base: str | None
    rank: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    parameters: int | None = None
    method: str | None = None
    """The training method of llmctl. This field and the following come from `llmctl.json`."""
    template: str | None = None
    data: str | None = None
    run_id: str | None = None
    created: str | None = None


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a complete model."""
    return (folder / ADAPTER_CONFIG).is_file() and model_folder.missing_part(
        folder, allow_pickle=True
    ) is not None


def read_adapter_metadata(folder: Path) -> AdapterMetadata:
    """Read the metadata of an adapter.

    Raises:
        ModelLoadError: one of its files is not valid.
    """
    config = _read_config(folder)
    variants = {"use_dora": "dora", "use_rslora": "rslora"}
    kind = str(config.get("peft_type") or "unknown").lower()
    targets = config.get("target_modules") or ()
    origin = Provenance.read(folder)
    return AdapterMetadata(
        kind=", ".join([kind, *(name for key, name in variants.items() if config.get(key))]),
        base=origin.base.model if origin else config.get("base_model_name_or_path"),
        rank=config.get("r"),
        alpha=config.get("lora_alpha"),
        targets=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        parameters=parameter_count(folder),
        method=origin.method if origin else None,
        template=origin.template if origin else None,
        data=f"{origin.data.name}, {origin.data.rows:,} rows" if origin and origin.data else None,
        run_id=origin.run_id if origin else None,
        created=origin.created if origin else None,
    )


def parameter_count(folder: Path) -> int | None:
    """Return the number of an adapter's parameters; `None` if its weights are not safetensors."""
    try:
        return sum(entry.parameters for entry in read_entries([folder / ADAPTER_WEIGHTS]).values())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def base_model_name(folder: Path) -> BaseModelName:
    """Return the base model of an adapter from `llmctl.json`, otherwise from PEFT's config.

    Raises:
        ModelLoadError: the folder does not name its base model.
        ModelNotFoundError: it names a path that does not exist.
    """
    origin = Provenance.read(folder)
    if origin is not None and origin.base.source != "local":
        revision = origin.base.revision if origin.base.source == "hub" else None
        return BaseModelName(origin.base.model, revision)
    config = _read_config(folder)
    name = origin.base.model if origin is not None else config.get("base_model_name_or_path")
    if not name:
        raise ModelLoadError(
            f"the adapter {folder} does not name its base model",
            hint=f"--model MODEL --adapter {folder}",
        )
    for path in (Path(name).expanduser(), folder / name):
        if path.exists():
            return BaseModelName(name, path=path)
    if Path(name).is_absolute() or name.startswith("."):
        raise ModelNotFoundError(
            f"the base model {name} of the adapter {folder} does not exist",
            hint=f"if it is elsewhere: --model MODEL --adapter {folder}",
        )
    return BaseModelName(name, config.get("revision"))


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / ADAPTER_CONFIG
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{file} is not a JSON object")
    return value
