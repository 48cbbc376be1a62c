"""How fast is an exam sat? Questions per second: ours, OpenCompass' own, lm-evaluation-harness'.

    python tests/benchmarks/eval_speed.py --data-dir FOLDER --lm-eval-python PATH

OpenCompass' HuggingFace model runs at batch size 1, in the environment that `llmctl eval setup`
makes; lm-evaluation-harness in a Python of its own (`pip install lm_eval`), at the batch size that
is fastest here. Each side holds its model loaded, and they take turns, `--rounds` times, with the
same prompts in the same number type. What a question costs the others does not depend on how many
there are, as they share nothing between questions, so they are given the first `--rival-limit` of
each subject, and we all of `--limit`: a subject's examples are computed once, and few questions
would count against us what many share.
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

from llmctl.engine.hf_runner import HFRunner
from llmctl.engine.models import resolve
from llmctl.evaluation.benchmarks.data_paths import locate_data
from llmctl.evaluation.benchmarks.registry import get_benchmark
from llmctl.evaluation.opencompass import venv
from llmctl.evaluation.plan import EvalSelection, plan_benchmark
from llmctl.evaluation.runner import NativeBackend
from llmctl.types import BenchmarkPlan, ModelSpec, ignore_progress

SUBJECTS = {"mmlu": ("anatomy",), "ceval": ("operating_system",)}


class Rival:
    """A child process of `exam_rivals.py`."""

    def __init__(self, name: str, python: Path, request: Path) -> None:
        self.name = name
        script = str(Path(__file__).with_name("exam_rivals.py"))
        self._process = subprocess.Popen(
            [str(python), script, name, str(request)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        self._line()

    def sit(self) -> tuple[float, list[int]]:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        told = self._line()
        answers: list[int] = told["answers"]
        return told["seconds"], answers

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended: see above")
        told: dict[str, Any] = json.loads(line)
        return told

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def rivals(given: argparse.Namespace, plan: BenchmarkPlan) -> Iterator[list[Rival]]:
    """Start the others on the first questions of each subject."""
    questions = [
        [question.context, list(question.continuations)]
        for subject in plan.subjects
        for question in subject.questions[: given.rival_limit]
    ]
    request = {
        "model": str(resolve.resolve_model(given.model).path),
        "dtype": given.dtype,
        "batch": given.lm_eval_batch,
        "questions": questions,
    }
    pythons = {"opencompass": venv.find_python(), "lm-eval": given.lm_eval_python}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        file = Path(folder) / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        started = []
        for name, python in pythons.items():
            if python is None:
                print(f"{name} is not here, and is left out", file=sys.stderr)
                continue
            started.append(Rival(name, python, file))
            running.callback(started[-1].close)
        yield started


def ours(spec: ModelSpec, plan: BenchmarkPlan) -> tuple[float, dict[tuple[str, int], int]]:
    """Sit the exam with a new engine: what an earlier round left in its cache would be a gift."""
    with HFRunner(spec) as engine:
        engine.load()
        begin = time.perf_counter()
        results = NativeBackend().run([plan], engine, lambda _: None, ignore_progress)
        seconds = time.perf_counter() - begin
    return seconds, {(r.subject, r.index): "ABCD".index(r.prediction) for r in results}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--lm-eval-python", type=Path, help="a Python that has lm_eval")
    parser.add_argument("--lm-eval-batch", type=int, default=0, help="0 finds the fastest")
    parser.add_argument("--suites", nargs="*", default=[*SUBJECTS])
    parser.add_argument("--subjects", nargs="*", help="of the one suite that is named")
    parser.add_argument("--limit", type=int, help="questions of a subject for us; all if not given")
    parser.add_argument("--rival-limit", type=int, default=4)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    for name in given.suites:
        suite = get_benchmark(name)
        subjects = tuple(given.subjects or SUBJECTS[name])
        wanted = EvalSelection(mode="ppl", subjects=subjects, limit=given.limit)
        measure(given, plan_benchmark(suite, locate_data(suite, given.data_dir), wanted))


def measure(given: argparse.Namespace, plan: BenchmarkPlan) -> None:
    spec = ModelSpec(given.model, dtype=given.dtype, device="cpu")
    some = [
        (subject.subject, question.index)
        for subject in plan.subjects
        for question in subject.questions[: given.rival_limit]
    ]
    seconds: dict[str, list[float]] = {"llmctl": []}
    with rivals(given, plan) as others:
        for _ in range(given.rounds):
            took, answers = ours(spec, plan)
            seconds["llmctl"].append(took / plan.question_count)
            for rival in others:
                took, theirs = rival.sit()
                seconds.setdefault(rival.name, []).append(took / len(theirs))
                same = sum(answers[key] == one for key, one in zip(some, theirs, strict=True))
                print(f"{rival.name}: {same} of {len(theirs)} answers are ours", file=sys.stderr)
    print(f"\n{plan.suite}, {plan.question_count} questions, {plan.shots} shots, {given.dtype}")
    best = statistics.median(seconds["llmctl"])
    for name, times in seconds.items():
        middle = statistics.median(times)
        spread = f"{1 / max(times):.2f} to {1 / min(times):.2f}"
        print(f"{name:<12} {1 / middle:8.2f} questions/s ({spread}) {middle / best:7.2f}x")


if __name__ == "__main__":
    main()
