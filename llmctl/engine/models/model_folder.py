"""Contents of a model folder: completeness and metadata, read without its weights."""

import json
import math
import os
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmctl.engine.models.weight_files import model_entries
from llmctl.errors import ModelLoadError, UnsafeModelError

# Both in the order in which Transformers looks for weights.
_SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLE_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PICKLE_SUFFIXES = (".bin", ".pth", ".pt")
_TRAINING_STATE = ("optimizer", "scheduler", "rng_state", "scaler", "training_args")
"""Prefixes of the pickle files of a Trainer checkpoint that are not weights."""
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")
_VOCABULARY_SUFFIXES = (".model", ".tiktoken")
_GGUF_PART = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class FolderMetadata:
    """Metadata of a model folder; `None` where the folder does not have it."""

    architecture: str | None
    context_length: int | None
    vocab_size: int | None
    dtype: str | None
    has_chat_template: bool
    parameters: int | None
    linear_parameters: int | None
    """Parameters of the layers that quantisation replaces: matrices except embeddings and head."""


def is_causal_lm(architecture: str | None) -> bool:
    """Whether the class name of an architecture is that of a causal language model."""
    return (architecture or "").endswith(("ForCausalLM", "LMHeadModel"))


def file_names(folder: Path) -> set[str]:
    """Return the names of the files in a folder, without broken links."""
    return {entry.name for entry in folder.iterdir() if entry.is_file()}


def disk_bytes(folder: Path) -> int:
    """Return the size of all files in a folder, links followed. Files may change meanwhile."""
    total = 0
    for where, _, files in os.walk(folder):
        for name in files:
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(where, name)).st_size
    return total


def pickle_weights(names: Collection[str]) -> list[str]:
    """Return the files with weights as pickle, which can run code when it is loaded."""
    return sorted(
        name
        for name in names
        if name.endswith(_PICKLE_SUFFIXES) and not name.startswith(_TRAINING_STATE)
    )


def wanted_files(names: Collection[str], *, allow_pickle: bool) -> list[str]:
    """Return the files of a hub repository that loading needs.

    Sub-folders hold the same weights in other formats. Python files are included; they run only
    with remote code allowed.
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
    """Return what a folder lacks to be a complete model, or `None`."""
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
    return None if has_tokenizer(names) else "a tokenizer"


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether one of the files of a folder is a vocabulary."""
    return any(name in _VOCABULARIES or name.endswith(_VOCABULARY_SUFFIXES) for name in names)


def check_complete(folder: Path, *, allow_pickle: bool = False) -> None:
    """Check that a model can be loaded from a folder.

    Raises:
        UnsafeModelError: its weights are pickle files, which were not allowed.
        ModelLoadError: it is an adapter, or a part is missing.
    """
    missing = missing_part(folder, allow_pickle=allow_pickle)
    if missing is None:
        return
    names = file_names(folder)
    reject_other_kinds(names, str(folder))
    if missing.startswith("weights") and not allow_pickle:
        reject_pickle(names, str(folder))
    raise ModelLoadError(
        f"{folder} is not a complete model: it lacks {missing}",
        hint="a model folder has config.json, *.safetensors and a tokenizer",
    )


def reject_pickle(names: Collection[str], where: str) -> None:
    """Raise `UnsafeModelError` if the only weights are pickle files."""
    pickles = pickle_weights(names)
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise UnsafeModelError(
            f"{where} has its weights only as {pickles[0]}, a format that can run code when loaded",
            hint="add --allow-pickle if you trust its author",
        )


def reject_other_kinds(names: Collection[str], where: str) -> None:
    """Raise `ModelLoadError` for an adapter or GGUF files alone, with a hint how to use them."""
    if "config.json" in names:
        return
    if "adapter_config.json" in names:
        raise ModelLoadError(
            f"{where} is an adapter, not a model",
            hint=f"`hf download {where} --local-dir FOLDER`, and then --model FOLDER",
        )
    if ggufs := sorted(name for name in names if name.endswith(".gguf")):
        reject_split_gguf(ggufs, where)
        raise ModelLoadError(
            f"{where} holds only GGUF files",
            hint=f"give the path of one of them on this machine, such as ./{ggufs[0]}",
        )


def reject_split_gguf(names: Collection[str], where: str) -> None:
    """Raise `ModelLoadError` if all GGUF files are parts of one model; they are read whole only."""
    parts = [part for name in names if (part := _GGUF_PART.fullmatch(name))]
    if not parts or len(parts) < len(names) or int(parts[0]["count"]) < 2:
        return
    stem, count = parts[0]["stem"], parts[0]["count"]
    raise ModelLoadError(
        f"{where}: {parts[0][0]} is one of {int(count)} parts of a GGUF file, which is read "
        "whole only",
        hint=f"`llama-gguf-split --merge {stem}-00001-of-{count}.gguf {stem}.gguf` joins the parts",
    )


def read_folder_metadata(folder: Path) -> FolderMetadata:
    """Read the metadata of a folder with a `config.json`."""
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
    """Return the numbers of all parameters and of those in linear layers, from the headers."""
    try:
        shapes = {name: entry.shape for name, entry in model_entries(folder).items()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not shapes:
        return None
    if config.get("tie_word_embeddings"):
        # Some repositories store the tied matrix twice; in memory it is one.
        shapes.pop("lm_head.weight", None)
    linear = sum(
        math.prod(shape)
        for name, shape in shapes.items()
        if (len(shape) == 2 and config.get("vocab_size") not in shape)
        or (len(shape) == 3 and ".experts." in name)
    )
    return sum(math.prod(shape) for shape in shapes.values()), linear


def _read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if there is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
