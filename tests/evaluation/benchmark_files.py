"""Small benchmarks, written by the tests that need them."""

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from llmctl.config.evaluation import EvalSelection
from llmctl.evaluation.benchmarks.registry import get_benchmark
from llmctl.evaluation.plan import plan_benchmark
from llmctl.types import BenchmarkPlan, EvalMode

CEVAL_SUBJECTS = ("law", "logic", "marxism")
MMLU_SUBJECTS = ("anatomy", "astronomy")
CEVAL_HEADER = ("id", "question", "A", "B", "C", "D", "answer")


def write_custom_benchmark(folder: Path, count: int = 12) -> Path:
    """Write a file with two subjects and an example, for a context of 256 bytes; return it."""
    rows: list[dict[str, object]] = [
        {
            "question": f"{n}?",
            "options": [f"red {n}", f"blue {n}", "none"],
            "answer": "ABC"[n % 3],
            "subject": "warm" if n % 2 else "cold",
        }
        for n in range(count)
    ]
    rows.append({"question": "e?", "options": ["x", "y"], "answer": "B", "split": "example"})
    return write_jsonl(folder / "colours.jsonl", *rows)


def write_jsonl(file: Path, *rows: Mapping[str, object]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_ceval_dir(folder: Path, subjects: list[str], *, size: int = 3) -> Path:
    """Write some subjects of C-Eval in its own layout; return the folder above it."""
    for subject in subjects:
        for split, count in (("dev", 5), ("val", size)):
            file = folder / "ceval/formal_ceval" / split / f"{subject}_{split}.csv"
            _write_csv(
                file,
                CEVAL_HEADER,
                *(
                    (n, f"{subject} {n}，哪个{{A}}对？", 1, 2, 3, n, "ABCD"[n % 4])
                    for n in range(count)
                ),
            )
    return folder


def write_ceval(folder: Path, questions: int = 6) -> Path:
    """Write three subjects of C-Eval with one example each; return the folder of its splits."""
    for split, count in (("dev", 1), ("val", questions), ("test", 1)):
        for subject in CEVAL_SUBJECTS:
            rows = ((n, *row) for n, row in enumerate(_choice_rows(subject, count)))
            _write_csv(folder / split / f"{subject}_{split}.csv", CEVAL_HEADER, *rows)
    return folder


def write_mmlu(folder: Path, questions: int = 4) -> Path:
    """Write two subjects of MMLU with two examples each; return the folder of its splits."""
    for split, count in (("dev", 2), ("test", questions)):
        for subject in MMLU_SUBJECTS:
            _write_csv(folder / split / f"{subject}_{split}.csv", *_choice_rows(subject, count))
    return folder


def plan_small_benchmark(name: str, folder: Path, mode: EvalMode, shots: int) -> BenchmarkPlan:
    """Plan all samples of what `write_ceval` or `write_mmlu` wrote."""
    subjects = CEVAL_SUBJECTS if name == "ceval" else MMLU_SUBJECTS
    selection = EvalSelection(mode=mode, shots=shots, subjects=subjects)
    return plan_benchmark(get_benchmark(name), folder, selection)


def _choice_rows(subject: str, count: int) -> list[tuple[object, ...]]:
    return [
        (f"{subject}{n}: {n}+{n}=?", str(2 * n), str(n), f"{n}, {n}", 'a "few"', "ABCD"[n % 4])
        for n in range(count)
    ]


def _write_csv(file: Path, *rows: Iterable[object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
