"""Which tensors lie in safetensors files, and where? Reads headers, and bytes only where asked."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

_LONGEST_HEADER = 100_000_000  # the safetensors format's own limit, bytes
_SAMPLES = 64
"""Tensors, or blocks of one file, that a fingerprint looks into."""
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies."""

    file: Path
    dtype: str
    """As safetensors spells it: `BF16`, `F32`, ..."""
    shape: tuple[int, ...]
    offset: int
    """Of its first byte in the file."""
    bytes: int

    @property
    def parameters(self) -> int:
        return prod(self.shape)


def read_entries(files: Iterable[Path]) -> dict[str, TensorEntry]:
    """Return every tensor of the files by its name.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file is not there, or not in the format.
    """
    entries = {}
    for file in files:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, _LONGEST_HEADER)))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                shape = tuple(entry["shape"])
                entries[name] = TensorEntry(
                    file, entry["dtype"], shape, 8 + length + begin, end - begin
                )
    return entries


def model_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model, or of an adapter, in the order of their names."""
    for name in ("model.safetensors", "model*.safetensors", "adapter_model.safetensors"):
        if files := sorted(folder.glob(name)):
            return files
    return []


def model_entries(folder: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a model or an adapter. Raises as `read_entries`."""
    return read_entries(model_files(folder))


def fingerprint(path: Path) -> str:
    """Return 16 hex digits that differ, all but surely, for other weights; takes milliseconds.

    Of safetensors it looks at names, types and shapes of all tensors and at a few kilobytes out of
    the middle of some, so that another cut into files makes no difference; of a file or of weights
    in another format at sizes and blocks.

    Args:
        path: folder of a model or an adapter, or a `.gguf` file.

    Raises:
        OSError, ValueError, KeyError, TypeError: as `read_entries`.
    """
    print_ = hashlib.sha256()
    if path.is_dir() and (entries := model_entries(path)):
        _print_tensors(print_, entries)
        return print_.hexdigest()[:16]
    files = [path] if path.is_file() else sorted(path.glob("pytorch_model*.bin"))
    for file in files:
        size = file.stat().st_size
        print_.update(f"{size}\n".encode())
        with file.open("rb") as stream:
            for sample in range(_SAMPLES):
                stream.seek(size * sample // _SAMPLES)
                print_.update(stream.read(_SAMPLE_BYTES))
    return print_.hexdigest()[:16]


def _print_tensors(print_: "hashlib._Hash", entries: Mapping[str, TensorEntry]) -> None:
    names = sorted(entries)
    for name in names:
        entry = entries[name]
        print_.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
    for name in names[:: -(-len(names) // _SAMPLES)]:
        entry = entries[name]
        with entry.file.open("rb") as stream:
            stream.seek(entry.offset + max(entry.bytes - _SAMPLE_BYTES, 0) // 2)
            print_.update(stream.read(min(_SAMPLE_BYTES, entry.bytes)))
