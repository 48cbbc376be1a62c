"""Writes a safetensors file one tensor at a time; the library's own writer wants all of them."""

import json
import os
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from types import TracebackType
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
"""By the names that the format has for them."""
_ALIGNMENT = 8


def dtype_name(dtype: torch.dtype) -> str:
    """Return the format's name of a type."""
    return next(name for name, known in DTYPES.items() if known == dtype)


class SafetensorsWriter:
    """A safetensors file in the making. The tensors come in the order in which they were named.

    The format (github.com/huggingface/safetensors): the length of the header in 8 bytes, the
    header as JSON, the tensors' bytes end to end.
    """

    def __init__(self, file: Path, tensors: Mapping[str, tuple[str, Sequence[int]]]) -> None:
        """Begin a file of these types and shapes, by name."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, (dtype, shape) in tensors.items():
            begin, end = end, end + prod(shape) * DTYPES[dtype].itemsize
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._awaited = list(tensors.items())
        self._stream: BinaryIO = file.open("wb")
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, tensor: Tensor) -> None:
        """Write the next tensor, in the type that was named for it."""
        name, (dtype, shape) = self._awaited.pop(0)
        if tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {tuple(shape)}")
        plain = tensor.detach().to("cpu", DTYPES[dtype]).contiguous()
        # numpy knows no bfloat16; bytes it knows.
        self._stream.write(plain.reshape(-1).view(torch.uint8).numpy().data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and not self._awaited:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        self._stream.close()
        if error is None and self._awaited:
            raise ValueError(f"{self._awaited[0][0]} was never written")
