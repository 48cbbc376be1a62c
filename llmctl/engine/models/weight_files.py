"""Tensor index and fingerprint of weight files, read from their headers."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

_MAX_HEADER_BYTES = 100_000_000  # limit of the safetensors format
_SAMPLES = 64
"""Tensors, or blocks of one file, whose bytes a fingerprint includes."""
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """The location, type and shape of a tensor."""

    file: Path
    dtype: str
    """In the names of safetensors: `BF16`, `F32`, ..."""
    shape: tuple[int, ...]
    offset: int
    """Position of its first byte in the file."""
    bytes: int

    @property
    def parameters(self) -> int:
        return prod(self.shape)


def read_entries(files: Iterable[Path]) -> dict[str, TensorEntry]:
    """Return every tensor of the files by its name.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file is missing, or not valid.
    """
    entries = {}
    for file in files:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, _MAX_HEADER_BYTES)))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                shape = tuple(entry["shape"])
                entries[name] = TensorEntry(
                    file, entry["dtype"], shape, 8 + length + begin, end - begin
                )
    return entries


def model_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model or an adapter, sorted by name."""
    for name in ("model.safetensors", "model*.safetensors", "adapter_model.safetensors"):
        if files := sorted(folder.glob(name)):
            return files
    return []


def model_entries(folder: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a model or an adapter. Raises as `read_entries`."""
    return read_entries(model_files(folder))


def tensor_names(folder: Path) -> list[str]:
    """Return the names of a model's tensors, in safetensors or in files of `torch.save`.

    Raises:
        RuntimeError: a file of `torch.save` is not valid; others as `read_entries`.
    """
    if entries := model_entries(folder):
        return list(entries)
    index = folder / "pytorch_model.bin.index.json"
    if index.is_file():
        return list(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    single = folder / "pytorch_model.bin"
    if not single.is_file():
        return []
    import torch

    return list(torch.load(single, map_location="meta", mmap=True, weights_only=True))


def fingerprint(path: Path) -> str:
    """Return a fingerprint of weights, 16 hex digits of a SHA-256, within milliseconds.

    It is computed from the names, types and shapes of all tensors and from a few kilobytes of some,
    so it does not depend on how they are split into files. Of other formats it is computed from
    sizes and blocks of the files. Other weights have another fingerprint with high probability.

    Args:
        path: folder of a model or an adapter, or a `.gguf` file.

    Raises:
        OSError, ValueError, KeyError, TypeError: as `read_entries`.
    """
    digest = hashlib.sha256()
    if path.is_dir() and (entries := model_entries(path)):
        _update_with_tensors(digest, entries)
        return digest.hexdigest()[:16]
    files = [path] if path.is_file() else sorted(path.glob("pytorch_model*.bin"))
    for file in files:
        size = file.stat().st_size
        digest.update(f"{size}\n".encode())
        with file.open("rb") as stream:
            for sample in range(_SAMPLES):
                stream.seek(size * sample // _SAMPLES)
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _update_with_tensors(digest: "hashlib._Hash", entries: Mapping[str, TensorEntry]) -> None:
    names = sorted(entries)
    for name in names:
        entry = entries[name]
        digest.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
    for name in names[:: -(-len(names) // _SAMPLES)]:
        entry = entries[name]
        with entry.file.open("rb") as stream:
            stream.seek(entry.offset + max(entry.bytes - _SAMPLE_BYTES, 0) // 2)
            digest.update(stream.read(min(_SAMPLE_BYTES, entry.bytes)))
