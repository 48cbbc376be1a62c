"""What does a model folder hold, and is it whole? Reads names, JSON and headers, never weights."""

import json
import math
import os
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.engine.models.weight_files import model_entries
from llmctl.errors import ModelLoadError, UnsafeModelError

# Both lists in the order in which Transformers looks for weights.
_SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLE_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PICKLE_SUFFIXES = (".bin", ".pth", ".pt")
_TRAINING_STATE = ("optimizer", "scheduler", "rng_state", "scaler", "training_args")
"""A Trainer checkpoint's own pickles, which are not weights."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")
_VOCABULARY_SUFFIXES = (".model", ".tiktoken")


@dataclass(frozen=True, slots=True)
class FolderMetadata:
    """What a model folder says of itself; `None` where it does not say."""

    architecture: str | None
    context_length: int | None
    vocab_size: int | None
    dtype: str | None
    has_chat_template: bool
    parameters: int | None
    linear_parameters: int | None
    """Those in the layers that quantisation replaces: all matrices but embeddings and head."""


def is_causal_lm(architecture: str | None) -> bool:
    """Whether an architecture's class name is that of a model which continues text."""
    return (architecture or "").endswith(("ForCausalLM", "LMHeadModel"))


def file_names(folder: Path) -> set[str]:
    """List the names of a folder's files; a link whose target is gone is no file."""
    return {entry.name for entry in folder.iterdir() if entry.is_file()}


def disk_bytes(folder: Path) -> int:
    """Sum the sizes of a folder's files, links followed; files may come and go meanwhile."""
    total = 0
    for where, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, name)).st_size
    return total


def pickle_weights(names: Collection[str]) -> list[str]:
    """Return the files that hold weights as pickle, which can run code while it is read."""
    return sorted(
        name
        for name in names
        if name.endswith(_PICKLE_SUFFIXES) and not name.startswith(_TRAINING_STATE)
    )


def wanted_files(names: Collection[str], *, allow_pickle: bool) -> list[str]:
    """Choose, among a hub repository's files, those that loading needs.

    Sub-folders hold the same weights in other formats. Python files run only when the person asks
    for remote code, and are needed then.
    """
    weights = _SAFE_WEIGHTS
    if allow_pickle and not any(name in names for name in _SAFE_WEIGHTS):
        weights = _PICKLE_WEIGHTS
    stem, _, suffix = weights[0].rpartition(".")
    return sorted(
        name
        for name in names
        if "/" not in name
        and (
            name.endswith((".json", ".jinja", ".txt", ".py", *_VOCABULARY_SUFFIXES))
            or name == weights[0]
            or (
                weights[0] not in names
                and name.startswith(f"{stem}-")
                and name.endswith(f".{suffix}")
            )
        )
    )


def missing_part(folder: Path, *, allow_pickle: bool = False) -> str | None:
    """Name what the folder lacks to be a whole model, or return `None`."""
    names = file_names(folder)
    if "config.json" not in names:
        return "config.json"
    single, index = _SAFE_WEIGHTS
    if allow_pickle and not {single, index} & names:
        single, index = _PICKLE_WEIGHTS
    if single not in names:
        if index not in names:
            return "weights (model.safetensors)"
        shards = set(_read_json(folder / index).get("weight_map", {}).values())
        if not shards or shards - names:
            return f"weights ({min(shards - names, default=index)})"
    return None if has_tokenizer(folder) else "a tokenizer"


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a vocabulary."""
    return any(
        name in _VOCABULARIES or name.endswith(_VOCABULARY_SUFFIXES) for name in file_names(folder)
    )


def check_complete(folder: Path, *, allow_pickle: bool = False) -> None:
    """Refuse a folder that no model can be loaded from.

    Raises:
        UnsafeModelError: its weights exist only as pickle, which was not allowed.
        ModelLoadError: it is an adapter, or lacks a part.
    """
    lacks = missing_part(folder, allow_pickle=allow_pickle)
    if lacks is None:
        return
    names = file_names(folder)
    refuse_other_kinds(names, str(folder))
    if lacks.startswith("weights") and not allow_pickle:
        refuse_pickle(names, str(folder))
    raise ModelLoadError(
        f"{folder} is not a whole model: it lacks {lacks}",
        hint="a model folder holds config.json, *.safetensors and a tokenizer",
    )


def refuse_pickle(names: Collection[str], where: str) -> None:
    """Raise `UnsafeModelError` where the only weights are pickle."""
    pickles = pickle_weights(names)
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise UnsafeModelError(
            f"{where} has its weights only as {pickles[0]}, a format that can run code when read",
            hint="add --allow-pickle if you trust whoever made it",
        )


def refuse_other_kinds(names: Collection[str], where: str) -> None:
    """Raise `ModelLoadError` for an adapter, or for GGUF files alone, and say how to use them."""
    if "config.json" in names:
        return
    if "adapter_config.json" in names:
        raise ModelLoadError(
            f"{where} is an adapter, not a model",
            hint=f"`hf download {where} --local-dir FOLDER`, and then --model FOLDER",
        )
    if ggufs := sorted(name for name in names if name.endswith(".gguf")):
        raise ModelLoadError(
            f"{where} holds only GGUF files",
            hint=f"have one of them on this machine and give its path, such as ./{ggufs[0]}",
        )


def read_folder_metadata(folder: Path) -> FolderMetadata:
    """Read what a folder with a `config.json` says of itself."""
    config = _read_json(folder / "config.json")
    text = config.get("text_config") or config
    vocab_size = text.get("vocab_size")
    counts = None if "quantization_config" in config else _count_parameters(folder, text)
    parameters, linear = counts or (None, None)
    return FolderMetadata(
        architecture=next(iter(config.get("architectures") or []), None),
        context_length=text.get("max_position_embeddings") or text.get("n_positions"),
        vocab_size=vocab_size,
        dtype=config.get("dtype") or config.get("torch_dtype"),
        has_chat_template=(folder / "chat_template.jinja").is_file()
        or "chat_template" in _read_json(folder / "tokenizer_config.json"),
        parameters=parameters,
        linear_parameters=linear,
    )


def _count_parameters(folder: Path, config: dict[str, Any]) -> tuple[int, int] | None:
    """Count all parameters and those of linear layers, from the safetensors headers."""
    try:
        shapes = {name: entry.shape for name, entry in model_entries(folder).items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not shapes:
        return None
    if config.get("tie_word_embeddings"):
        # Some repositories store the shared matrix twice; in memory it is one.
        shapes.pop("lm_head.weight", None)
    linear = sum(
        math.prod(shape)
        for shape in shapes.values()
        if len(shape) == 2 and config.get("vocab_size") not in shape
    )
    return sum(math.prod(shape) for shape in shapes.values()), linear


def _read_json(file: Path) -> dict[str, Any]:
    """Read an object; a file that is absent or no object is an empty one."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
