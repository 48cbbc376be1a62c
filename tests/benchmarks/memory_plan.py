"""Planned and measured memory of a prompt chunk, on Linux.

Run `python tests/benchmarks/memory_plan.py`; it prints the ratio of measured and planned bytes.
"""

import ctypes
from pathlib import Path

from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.loading.load import read_shape
from llmctl.engine.models import resolve
from llmctl.types import GenerationRequest, ModelSpec, SamplingParams

TOKENS = 512
FLOAT32_BYTES = 4


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _process_prompt(engine: HFRunner, first: int, count: int) -> None:
    prompt = tuple(range(first, first + count))
    engine.generate(GenerationRequest(prompt=prompt, sampling=SamplingParams(max_new_tokens=1)))


def main() -> None:
    """Measure the peak of one forward pass over a chunk, after a warm-up pass."""
    spec = ModelSpec("smollm2-135m", device="cpu", dtype="float32")
    with HFRunner(spec) as engine:
        engine.load()
        _process_prompt(engine, 10_000, 600)
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        _process_prompt(engine, 20_000, TOKENS)
        measured = _status("VmHWM") - before
    shape = read_shape(spec, resolve.resolve_model(spec.model))
    planned = shape.kv_bytes(TOKENS, FLOAT32_BYTES, "none")
    planned += shape.activation_bytes(TOKENS, 1, FLOAT32_BYTES, "none")
    print(f"measured {measured / 2**20:.0f} MiB, planned {planned / 2**20:.0f} MiB", end="")
    print(f", ratio {measured / planned:.2f}")


if __name__ == "__main__":
    main()
