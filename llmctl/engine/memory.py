"""What fits: how much a model's weights need, against what the machine has free."""

import psutil
import torch

from llmctl.errors import OutOfMemoryError
from llmctl.types import Quant

# Bytes per parameter. 4 bit: half a byte, and the doubly quantised scales at 64 weights a block
# (Dettmers et al. 2023, QLoRA, section 3: 0.127 bits per weight).
_QUANT_BYTES: dict[Quant, float] = {"4bit": 0.516, "8bit": 1.0}
_HEADROOM = 0.05
"""Share of the free memory that is left to the activations and to others."""


def free_bytes(device: torch.device) -> int:
    """Return what could be allocated on `device` now without pushing anything out."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def estimate_weight_bytes(linear: int, other: int, dtype: torch.dtype, quant: Quant) -> int:
    """Estimate the memory of loaded weights.

    Args:
        linear: parameters in the layers that quantisation replaces.
        other: parameters that keep their type: embeddings, head, norms.
        dtype: type of what is not quantised.
        quant: quantisation of the linear layers.
    """
    return int(linear * _QUANT_BYTES.get(quant, dtype.itemsize) + other * dtype.itemsize)


def check_fits(needed: int, device: torch.device, quant: Quant) -> None:
    """Refuse a model that cannot fit, before minutes are spent on loading it.

    Raises:
        OutOfMemoryError: with the figures, and the setting that would need less.
    """
    free = free_bytes(device)
    if needed <= free * (1 - _HEADROOM):
        return
    raise OutOfMemoryError(
        f"the weights need {gib(needed)} and {device} has {gib(free)} free",
        hint=(
            "try --quant 4bit, or a smaller model (`llmctl models list`)"
            if quant != "4bit"
            else "choose a smaller model (`llmctl models list`), or close other programs"
        ),
    )


def gib(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
