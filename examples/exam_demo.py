"""Teaches a small model facts that are nowhere else, and examines it in them before and after.

Run `python examples/exam_demo.py` from the root of the project: some ten minutes on two CPU cores.
Options go to `llmctl finetune`: `--max-steps 60` is done in a few minutes, with fewer facts learnt.
The exam is a file of our own, examples/data/observatory-exam.jsonl, whose questions are worded
otherwise than the training data. A page about it is written to checkpoints/observatory-exam.html.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path("checkpoints/observatory-exam")
EXAM = "examples/data/observatory-exam.jsonl"
BY_HAND = FOLDER.parent / "observatory-exam-by-hand"
PAGE = f"{FOLDER}.html"


def llmctl(*words: str) -> str:
    """Run a command, showing what it says besides its result."""
    command = [sys.executable, "-m", "llmctl", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    taught = json.loads(
        llmctl(
            *("finetune", "--config", "examples/finetune.yaml", "--output", str(FOLDER)),
            *("--overwrite", "--eval", EXAM, "--eval-mode", "gen", "--json", *sys.argv[1:]),
        )
    )
    show(taught["exams"][0])
    # The same by hand: any folder of an adapter is a model that can sit an exam.
    exam = ("--dataset", EXAM, "--mode", "gen", "--limit", "20", "--output")
    llmctl("eval", "--model", str(FOLDER), *exam, str(BY_HAND))
    before = str(FOLDER / "exams" / "before")
    compared = json.loads(llmctl("eval", "compare", before, str(BY_HAND), "--json"))
    show(compared["comparisons"][0])
    print(llmctl("eval", "report", before, str(FOLDER / "exams" / "after"), "-o", PAGE))


def show(found: dict[str, Any]) -> None:
    print(
        f"{found['questions']} questions: {found['first']:.0%} right before, {found['second']:.0%} "
        f"after; the difference is {100 * found['low']:+.0f} to {100 * found['high']:+.0f} points, "
        f"p = {found['p_value']:.2g}"
    )


if __name__ == "__main__":
    main()
