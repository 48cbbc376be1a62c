"""Memory leak test: sends many short random requests and measures the process's memory.

    python tests/benchmarks/soak.py --requests 2000
    python tests/benchmarks/soak.py --requests 400 --model smollm2-135m

Prints the resident memory after the warm-up requests and after the last; exits with 1 if it has
final_mib by more than two percent in between. Only the engine is imported, so that nothing else is
measured.
"""

import argparse
import gc
import random
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[2]))

from llmctl.engine.hf_runner import HFRunner
from llmctl.types import GenerationRequest, MemoryLimits, ModelSpec, SamplingParams
from tests.tiny import save_tiny_model

WARM_UP = 200
"""Requests before the first measurement: what is allocated on first use exists by then."""
CONCURRENCY = 8
CANCELLED_SHARE = 0.2
LIMIT_PERCENT = 2.0


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(save_tiny_model(Path(folder) / "tiny"))
        # The growth of a prefix cache is not a leak: this one is full after the warm-up.
        limits = MemoryLimits(context_length=256, kv_bytes=options.kv_kib * 1024)
        spec = ModelSpec(model, device="cpu", dtype=options.dtype, limits=limits)
        with HFRunner(spec) as engine:
            engine.load()
            rng = random.Random(options.seed)
            _send(engine, WARM_UP, rng)
            warm_mib = _resident_mib()
            _print(f"after {WARM_UP} requests: {warm_mib:.1f} MiB")
            _send(engine, options.requests - WARM_UP, rng)
            final_mib = _resident_mib()
            assert engine.in_flight == 0, "a stream was not released"
    percent = 100 * (final_mib - warm_mib) / warm_mib
    _print(f"after {options.requests} requests: {final_mib:.1f} MiB, {percent:+.2f} %")
    return 1 if percent > LIMIT_PERCENT else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument(
        "--model", help="a catalogue name or folder; a tiny random model by default"
    )
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv-kib", type=int, default=1024, help="size of the KV cache")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.requests <= WARM_UP:
        parser.error(f"--requests must be above {WARM_UP}")
    return options


def _random_request(rng: random.Random) -> GenerationRequest:
    words = " ".join(rng.choice(("red", "of", "house", "a", "12")) for _ in range(30))
    sampling = rng.choice(
        (
            {"temperature": 0},
            {"temperature": 1.0, "seed": rng.randrange(99)},
            {"temperature": 0.8, "top_p": 0.9, "logprobs": 2},
            {"temperature": 0, "repetition_penalty": 1.2, "stop": ("e",)},
        )
    )
    params = SamplingParams(max_new_tokens=rng.randint(1, 24), **sampling)
    return GenerationRequest(prompt=words[: rng.randint(1, 120)], sampling=params)


def _send(engine: HFRunner, count: int, rng: random.Random) -> None:
    """Send `count` requests concurrently, and cancel some after their first chunk."""
    remaining = iter(range(count))
    lock = threading.Lock()

    def worker() -> None:
        while True:
            with lock:
                if next(remaining, None) is None:
                    return
                request, cancel = _random_request(rng), rng.random() < CANCELLED_SHARE
            with engine.submit(request) as stream:
                for _ in stream:
                    if cancel:
                        stream.cancel()

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        for done in [pool.submit(worker) for _ in range(CONCURRENCY)]:
            done.result()


def _resident_mib() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 2**20


def _print(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
