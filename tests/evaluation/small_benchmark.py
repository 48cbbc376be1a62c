"""Small exams in the layouts of C-Eval and MMLU, written by the tests that need them."""

import csv
from pathlib import Path

from llmctl.evaluation.benchmarks.registry import get_benchmark
from llmctl.evaluation.plan import EvalSelection, plan_benchmark
from llmctl.types import BenchmarkPlan, EvalMode

CEVAL_SUBJECTS = ("law", "logic", "marxism")
MMLU_SUBJECTS = ("anatomy", "astronomy")


def _rows(subject: str, count: int) -> list[tuple[str, str, str, str, str, str]]:
    return [
        (f"{subject}{n}: {n}+{n}=?", str(2 * n), str(n), f"{n}, {n}", 'a "few"', "ABCD"[n % 4])
        for n in range(count)
    ]


def write_ceval(folder: Path, questions: int = 6) -> Path:
    """Write three subjects with one example each."""
    for split, count in (("dev", 1), ("val", questions), ("test", 1)):
        for subject in CEVAL_SUBJECTS:
            file = folder / split / f"{subject}_{split}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(["id", "question", "A", "B", "C", "D", "answer"])
                writer.writerows([n, *row] for n, row in enumerate(_rows(subject, count)))
    return folder


def write_mmlu(folder: Path, questions: int = 4) -> Path:
    """Write two subjects with two examples each."""
    for split, count in (("dev", 2), ("test", questions)):
        for subject in MMLU_SUBJECTS:
            file = folder / split / f"{subject}_{split}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", encoding="utf-8", newline="") as stream:
                csv.writer(stream).writerows(_rows(subject, count))
    return folder


def plan_small_benchmark(suite: str, folder: Path, mode: EvalMode, shots: int) -> BenchmarkPlan:
    """Plan one of the small exams whole."""
    subjects = CEVAL_SUBJECTS if suite == "ceval" else MMLU_SUBJECTS
    wanted = EvalSelection(mode=mode, shots=shots, subjects=subjects)
    return plan_benchmark(get_benchmark(suite), folder, wanted)
