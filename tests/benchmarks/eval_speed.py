"""Questions per second of llmctl, OpenCompass and lm-evaluation-harness on the same prompts.

    python tests/benchmarks/eval_speed.py --data-dir FOLDER --lm-eval-python PATH

OpenCompass' HuggingFace model runs at batch size 1, in the environment that
`llmctl eval install-opencompass` builds; lm-evaluation-harness in its own Python
(`pip install lm_eval`), at its fastest batch size.
Each program keeps its model loaded, and they take turns, `--rounds` times, with the same prompts
and dtype. The other programs share nothing between questions, so their time per question does not
depend on the number of questions: they get the first `--peer-limit` of each subject, and llmctl,
which computes the examples of a subject once, all of `--limit`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llmctl.config.evaluation import EvalSelection
from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.models import resolve
from llmctl.evaluation.benchmarks.data_paths import locate_data
from llmctl.evaluation.benchmarks.registry import get_benchmark
from llmctl.evaluation.opencompass import venv
from llmctl.evaluation.plan import plan_benchmark
from llmctl.evaluation.runner import NativeBackend
from llmctl.types import BenchmarkPlan, ModelSpec, ignore_progress

SUBJECTS = {"mmlu": ("anatomy",), "ceval": ("operating_system",)}


class Peer:
    """A child process of `eval_peers.py`."""

    def __init__(self, name: str, python: Path, request: Path) -> None:
        self.name = name
        script = str(Path(__file__).with_name("eval_peers.py"))
        self._process = subprocess.Popen(
            [str(python), script, name, str(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        self._read()

    def evaluate(self) -> tuple[float, list[int]]:
        """Return the seconds and the index of the answer to each question."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        result = self._read()
        answers: list[int] = result["answers"]
        return result["seconds"], answers

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: see above")
        content: dict[str, Any] = json.loads(line)
        return content

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def running_peers(args: argparse.Namespace, plan: BenchmarkPlan) -> Iterator[list[Peer]]:
    """Start the other programs with the first questions of each subject."""
    questions = [
        [sample.context, list(sample.continuations)]
        for subject in plan.subjects
        for sample in subject.questions[: args.peer_limit]
    ]
    request = {
        "model": str(resolve.resolve_model(args.model).path),
        "dtype": args.dtype,
        "batch": args.lm_eval_batch,
        "questions": questions,
    }
    pythons = {"opencompass": venv.find_python(), "lm-eval": args.lm_eval_python}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        started = []
        for name, python in pythons.items():
            if python is None:
                print(f"{name} is not installed and is left out", file=sys.stderr)
                continue
            started.append(Peer(name, python, file))
            stack.callback(started[-1].close)
        yield started


def evaluate(spec: ModelSpec, plan: BenchmarkPlan) -> tuple[float, dict[tuple[str, int], int]]:
    """Evaluate with a new engine, because the prefix cache of an earlier round would help."""
    with HFRunner(spec) as engine:
        engine.load()
        started = time.perf_counter()
        results = NativeBackend().run([plan], engine, lambda _: None, ignore_progress)
        seconds = time.perf_counter() - started
    return seconds, {(r.subject, r.index): "ABCD".index(r.prediction) for r in results}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--lm-eval-python", type=Path, help="a Python that has lm_eval")
    parser.add_argument("--lm-eval-batch", type=int, default=0, help="0 finds the fastest")
    parser.add_argument("--benchmarks", nargs="*", default=[*SUBJECTS])
    parser.add_argument("--subjects", nargs="*", help="of the only benchmark")
    parser.add_argument("--limit", type=int, help="llmctl's questions per subject [default: all]")
    parser.add_argument("--peer-limit", type=int, default=4)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for name in args.benchmarks:
        benchmark = get_benchmark(name)
        subjects = tuple(args.subjects or SUBJECTS[name])
        selection = EvalSelection(mode="ppl", subjects=subjects, limit=args.limit)
        folder = locate_data(benchmark, args.data_dir)
        measure(args, plan_benchmark(benchmark, folder, selection))


def measure(args: argparse.Namespace, plan: BenchmarkPlan) -> None:
    spec = ModelSpec(args.model, dtype=args.dtype, device="cpu")
    shared = [
        (subject.subject, sample.index)
        for subject in plan.subjects
        for sample in subject.questions[: args.peer_limit]
    ]
    seconds: dict[str, list[float]] = {"llmctl": []}
    with running_peers(args, plan) as peers:
        for _ in range(args.rounds):
            duration, answers = evaluate(spec, plan)
            seconds["llmctl"].append(duration / plan.question_count)
            for peer in peers:
                duration, theirs = peer.evaluate()
                seconds.setdefault(peer.name, []).append(duration / len(theirs))
                equal = sum(answers[key] == one for key, one in zip(shared, theirs, strict=True))
                print(f"{peer.name}: {equal} of {len(theirs)} answers agree", file=sys.stderr)
    print(f"\n{plan.suite}, {plan.question_count} questions, {plan.shots} shots, {args.dtype}")
    baseline = statistics.median(seconds["llmctl"])
    for name, times in seconds.items():
        median = statistics.median(times)
        spread = f"{1 / max(times):.2f} to {1 / min(times):.2f}"
        print(f"{name:<12} {1 / median:8.2f} questions/s ({spread}) {median / baseline:7.2f}x")


if __name__ == "__main__":
    main()
