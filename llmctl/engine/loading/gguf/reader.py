"""A reader of GGUF files that reads long arrays fast."""

import struct
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType

_STRING_ITEM = struct.Struct("<Q")


class FastGGUFReader(GGUFReader):
    """`gguf.GGUFReader` with the same fields and tensors.

    The original (gguf 0.19) makes four memory maps for each item of an array: 8 s for the
    tokens, scores and types of a vocabulary of 262,144.
    """

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY or self.byte_order == "S":
            return super()._get_field_parts(orig_offs, raw_type)
        raw_item, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        item, start = GGUFValueType(raw_item[0]), orig_offs + 12
        if item == GGUFValueType.STRING:
            parts, size = self._strings(start, int(count[0]))
            first, step = 3, 2
        elif (kind := self.gguf_scalar_to_np.get(item)) is not None:
            values = np.asarray(self._get(start, kind, int(count[0])))
            if len(values) != count[0]:
                raise ValueError(f"an array of {count[0]} items ends after {len(values)}")
            parts, size = [values[i : i + 1] for i in range(len(values))], values.nbytes
            first, step = 2, 1
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [GGUFValueType.ARRAY, *([item] if count[0] else [])]
        indexes = list(range(first, len(parts) + 2, step))
        return 12 + size, [raw_item, count, *parts], indexes, types

    def _strings(self, start: int, count: int) -> tuple[list[Any], int]:
        """Return length and bytes of each string in turn, and the size of all in bytes."""
        data: Any = np.asarray(self.data)
        parts: list[Any] = []
        offset = start
        for _ in range(count):
            length = data[offset : offset + 8]
            end = offset + 8 + _STRING_ITEM.unpack(length.tobytes())[0]
            if end > len(data):
                raise ValueError(f"a string at byte {offset} goes beyond the end of the file")
            parts += (length.view(np.uint64), data[offset + 8 : end])
            offset = end
        return parts, offset - start
