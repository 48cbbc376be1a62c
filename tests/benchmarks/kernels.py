"""Times of the linear layers that a CPU can use, by number of rows.

Run `python -m tests.benchmarks.kernels [--threads N]` on an otherwise idle machine. Each layer
cycles through enough copies of its weights to read them from memory. The kernels take turns, and
the shortest of 20 times is printed, in microseconds. To measure a processor without AVX-512 on one
that has it, set `ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
FBGEMM_ENABLE_INSTRUCTIONS=AVX2`.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from itertools import cycle

import torch
import torch.nn.functional as F  # noqa: N812  its name everywhere
from torch import Tensor

from llmctl.engine.batching.forward.int4 import Int4Linear, int4_supported
from llmctl.engine.batching.forward.linear import Linear, packed_linear
from llmctl.engine.batching.forward.packed_linear import (
    Float16Linear,
    Int8Linear,
    fbgemm_supported,
)
from llmctl.engine.memory.hardware import cpu_has_bfloat16

SHAPES = ((576, 576), (3072, 576), (576, 1536), (49152, 576))
"""Outputs and inputs of the layers of SmolLM2-135M; the last is the head."""
ROWS = (1, 2, 4, 8, 16, 64, 512)
_CACHE_BYTES = 200_000_000
_REPEATS = 20


def kernels() -> dict[str, tuple[torch.dtype, Callable[[Tensor], Linear]]]:
    """Return by name the type of the inputs, and a function that makes a layer of a weight."""
    found: dict[str, tuple[torch.dtype, Callable[[Tensor], Linear]]] = {
        "float32": (torch.float32, lambda w: lambda x: F.linear(x, w)),
    }
    if cpu_has_bfloat16():
        found["bfloat16"] = torch.bfloat16, lambda w: packed_linear(w.bfloat16())
    if fbgemm_supported():
        found["float16"] = torch.float32, lambda w: Float16Linear.of(w).multiply
        found["int8"] = torch.float32, lambda w: Int8Linear.of(w).multiply
    if int4_supported():
        found["int4"] = torch.float32, lambda w: Int4Linear.of(w).multiply
    return found


def fastest_us(calls: dict[str, Callable[[], Tensor]]) -> dict[str, float]:
    """Return the shortest time of each call, in microseconds; they take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(_REPEATS):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            best[name] = min(best[name], 1e6 * (time.perf_counter() - start))
    return best


def _call(layers: Iterator[Linear], x: Tensor) -> Callable[[], Tensor]:
    return lambda: next(layers)(x)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    print(f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads")
    known = kernels()
    print("| weight | rows |", " | ".join(known), "|")
    print("| --- " * (2 + len(known)) + "|")
    for outputs, inputs in SHAPES:
        copies = max(1, min(30, _CACHE_BYTES // (4 * outputs * inputs)))
        weights = [0.02 * torch.randn(outputs, inputs) for _ in range(copies)]
        layers = {name: cycle([make(w) for w in weights]) for name, (_, make) in known.items()}
        for rows in ROWS:
            x = torch.randn(rows, inputs)
            calls = {name: _call(layers[name], x.to(dtype)) for name, (dtype, _) in known.items()}
            times = fastest_us(calls)
            cells = " | ".join(f"{times[name]:,.0f}" for name in known)
            print(f"| {outputs}x{inputs} | {rows} | {cells} |", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
