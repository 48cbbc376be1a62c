"""Invented exams, small enough for a model with a context of 256 bytes."""

import csv
import json
from pathlib import Path


def write_custom_benchmark(folder: Path, count: int = 12) -> Path:
    """Write an exam with two subjects and an example; return its file."""
    file = folder / "colours.jsonl"
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
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def write_ceval_dir(folder: Path, subjects: list[str], *, size: int = 3) -> Path:
    """Write a C-Eval of a few subjects in its own layout; return the folder above it."""
    for subject in subjects:
        for split, count in (("dev", 5), ("val", size)):
            file = folder / "ceval/formal_ceval" / split / f"{subject}_{split}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream)
                writer.writerow(("id", "question", "A", "B", "C", "D", "answer"))
                for n in range(count):
                    answer = "ABCD"[n % 4]
                    writer.writerow((n, f"{subject} {n}，哪个{{A}}对？", 1, 2, 3, n, answer))
    return folder
