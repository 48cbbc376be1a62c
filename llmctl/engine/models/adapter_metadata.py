"""What does an adapter folder say of itself, and on which model does it belong? No tensors."""

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
    """The model that an adapter was trained on, as its folder names it."""

    name: str
    """Catalogue name, hub id, or path."""
    revision: str | None = None
    """To ask the hub for."""
    path: Path | None = None
    """Where it lies, if it was named by path."""


@dataclass(frozen=True, slots=True)
class AdapterMetadata:
    """What a folder with an `adapter_config.json` says; `None` where it does not."""

    kind: str
    """PEFT's name of the method in lower case, with what LoRA can have besides: `lora, dora`."""
    base: str | None
    rank: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    parameters: int | None = None
    method: str | None = None
    """As llmctl trained it; this and what follows only where llmctl did."""
    template: str | None = None
    data: str | None = None
    run_id: str | None = None
    created: str | None = None


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model."""
    return (folder / ADAPTER_CONFIG).is_file() and model_folder.missing_part(
        folder, allow_pickle=True
    ) is not None


def read_adapter_metadata(folder: Path) -> AdapterMetadata:
    """Describe an adapter.

    Raises:
        ModelLoadError: one of its files cannot be understood.
    """
    config = _read_config(folder)
    marks = {"use_dora": "dora", "use_rslora": "rslora"}
    kind = str(config.get("peft_type") or "unknown").lower()
    targets = config.get("target_modules") or ()
    note = Provenance.read(folder)
    return AdapterMetadata(
        kind=", ".join([kind, *(mark for name, mark in marks.items() if config.get(name))]),
        base=note.base.model if note else config.get("base_model_name_or_path"),
        rank=config.get("r"),
        alpha=config.get("lora_alpha"),
        targets=(targets,) if isinstance(targets, str) else tuple(sorted(targets)),
        parameters=parameter_count(folder),
        method=note.method if note else None,
        template=note.template if note else None,
        data=f"{note.data.name}, {note.data.rows:,} rows" if note and note.data else None,
        run_id=note.run_id if note else None,
        created=note.created if note else None,
    )


def parameter_count(folder: Path) -> int | None:
    """Count what an adapter holds; `None` where its weights are not safetensors."""
    try:
        return sum(entry.parameters for entry in read_entries([folder / ADAPTER_WEIGHTS]).values())
    except (OSError, ValueError, KeyError, TypeError):
        return None


def base_model_name(folder: Path) -> BaseModelName:
    """Return which model an adapter belongs on: llmctl's own note of it, else PEFT's.

    Raises:
        ModelLoadError: the folder names none, or names what can be no model.
        ModelNotFoundError: it names a path where nothing is any more.
    """
    note = Provenance.read(folder)
    if note is not None and note.base.source != "local":
        return BaseModelName(
            note.base.model, note.base.revision if note.base.source == "hub" else None
        )
    config = _read_config(folder)
    name = note.base.model if note is not None else config.get("base_model_name_or_path")
    if not name:
        raise ModelLoadError(
            f"{folder} is an adapter that does not say of which model",
            hint=f"--model MODEL --adapter {folder}",
        )
    for path in (Path(name).expanduser(), folder / name):
        if path.exists():
            return BaseModelName(name, path=path)
    if Path(name).is_absolute() or name.startswith("."):
        raise ModelNotFoundError(
            f"{folder} is an adapter of {name}, where nothing is any more",
            hint=f"if you have that model elsewhere: --model MODEL --adapter {folder}",
        )
    return BaseModelName(name, config.get("revision"))


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / ADAPTER_CONFIG
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelLoadError(f"{file} is no JSON object")
    return value
