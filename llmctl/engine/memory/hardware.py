"""Choice of the device and the dtype to compute with."""

import torch

from llmctl.engine.batching.forward.packed_linear import fbgemm_supported
from llmctl.errors import ConfigError
from llmctl.types import DType


def choose_device(wanted: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda[:n]` or `mps`.

    Raises:
        ConfigError: the name is not valid, or this machine has no such device.
    """
    if wanted == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {wanted!r}", hint="auto, cpu, cuda, cuda:1, mps") from (
            error
        )
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(
                f"device {wanted} is not available: torch sees {count} CUDA device(s)",
                hint="check `nvidia-smi` and that torch is a CUDA build, or use --device cpu",
            )
        return torch.device("cuda", device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device mps is not available", hint="use --device cpu")
    if device.type not in ("cpu", "mps"):
        raise ConfigError(f"unknown device {wanted!r}", hint="auto, cpu, cuda, cuda:1, mps")
    return device


def choose_dtype(wanted: DType, device: torch.device) -> torch.dtype:
    """Return the dtype to compute in; `auto` is a 16-bit type if the device supports it natively.

    On a CPU without bfloat16 instructions `auto` is float32: bfloat16 halves the memory there and
    multiplies the time. There `float16` is float32 too, with weights in float16.
    """
    if wanted == "float16" and stores_float16(wanted, device):
        return torch.float32
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.bfloat16 if cpu_has_bfloat16() else torch.float32


def stores_float16(wanted: DType, device: torch.device) -> bool:
    """Whether weights are float16 and arithmetic is float32: on a CPU without 16-bit arithmetic."""
    if device.type != "cpu" or not fbgemm_supported():
        return False
    return wanted == "float16" or (wanted == "auto" and not cpu_has_bfloat16())


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16, AMX, Arm BF16).

    `ATEN_CPU_CAPABILITY=avx2` hides the instructions of newer processors, as for PyTorch's kernels.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        return False
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
