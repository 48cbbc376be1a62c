"""Does the engine grow? Sends many short random requests and weighs the process.

    python tests/benchmarks/soak.py --requests 2000
    python tests/benchmarks/soak.py --requests 400 --model smollm2-135m

Prints the resident memory after the first requests and after the last; exits 1 if it has grown by
more than two percent in between. Only the engine is imported, so that nothing else is weighed.
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

SETTLING = 200
"""Requests before the first weighing: what is built on first use is there by then."""
AT_ONCE = 8
CANCELLED = 0.2
LIMIT_PERCENT = 2.0


def main() -> int:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(save_tiny_model(Path(folder) / "tiny"))
        # A pool of kept prefixes that still fills up is no leak: this one is full once settled.
        limits = MemoryLimits(context_length=256, kv_bytes=options.kv_kib * 1024)
        spec = ModelSpec(model, device="cpu", dtype=options.dtype, limits=limits)
        with HFRunner(spec) as engine:
            engine.load()
            dice = random.Random(options.seed)
            _send(engine, SETTLING, dice)
            settled = _resident_mib()
            _say(f"after {SETTLING} requests: {settled:.1f} MiB")
            _send(engine, options.requests - SETTLING, dice)
            grown = _resident_mib()
            assert engine.in_flight == 0, "a stream was never forgotten"
    percent = 100 * (grown - settled) / settled
    _say(f"after {options.requests} requests: {grown:.1f} MiB, {percent:+.2f} %")
    return 1 if percent > LIMIT_PERCENT else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--model", help="a catalogue name or folder; else a tiny random model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv-kib", type=int, default=1024, help="for keys and values")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.requests <= SETTLING:
        parser.error(f"--requests must be above {SETTLING}")
    return options


def _random_request(dice: random.Random) -> GenerationRequest:
    words = " ".join(dice.choice(("red", "of", "house", "a", "12")) for _ in range(30))
    sampling = dice.choice(
        (
            {"temperature": 0},
            {"temperature": 1.0, "seed": dice.randrange(99)},
            {"temperature": 0.8, "top_p": 0.9, "logprobs": 2},
            {"temperature": 0, "repetition_penalty": 1.2, "stop": ("e",)},
        )
    )
    params = SamplingParams(max_new_tokens=dice.randint(1, 24), **sampling)
    return GenerationRequest(prompt=words[: dice.randint(1, 120)], sampling=params)


def _send(engine: HFRunner, count: int, dice: random.Random) -> None:
    """Send so many at once, leaving some after their first chunk; nothing of them is kept."""
    coming = iter(range(count))
    lock = threading.Lock()

    def ask() -> None:
        while True:
            with lock:
                if next(coming, None) is None:
                    return
                request, leaving = _random_request(dice), dice.random() < CANCELLED
            with engine.submit(request) as stream:
                for _ in stream:
                    if leaving:
                        stream.cancel()

    with ThreadPoolExecutor(AT_ONCE) as people:
        for done in [people.submit(ask) for _ in range(AT_ONCE)]:
            done.result()


def _resident_mib() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 2**20


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
