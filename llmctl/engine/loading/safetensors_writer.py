"""A safetensors writer that takes one tensor at a time; the library's writer needs all at once."""

import json
import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import BinaryIO, Final, Self

import torch
from torch import Tensor

DTYPES: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By their names in the format."""
_ALIGNMENT = 8


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype in the format."""
    return next(name for name, known in DTYPES.items() if known == dtype)


class SafetensorsWriter:
    """Writes the tensors of a safetensors file in the order in which they were declared.

    The format (github.com/huggingface/safetensors): the length of the header in 8 bytes, the
    header as JSON, the tensors' bytes end to end.
    """

    def __init__(self, file: Path, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> None:
        """Write the header of a file with these dtypes and shapes, by name."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in tensors.items():
            begin, end = end, end + prod(shape) * DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._remaining = list(tensors.items())
        self._stream: BinaryIO = file.open("wb")
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, tensor: Tensor) -> None:
        """Write the next tensor in its declared dtype. Raises `ValueError` for another shape."""
        name, (dtype, shape) = self._remaining.pop(0)
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(shape)}")
        contiguous = tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
        # numpy has no bfloat16, so the bytes are written.
        self._stream.write(contiguous.reshape(-1).view(torch.uint8).numpy().data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._remaining:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        self._stream.close()
        if kind is None and self._remaining:
            raise ValueError(f"{self._remaining[0][0]} was never written")
