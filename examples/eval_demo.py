"""Fine-tunes a small model on invented facts, and evaluates it on them before and after.

Run `python examples/eval_demo.py` from the root of the project: some ten minutes on two CPU cores.
Arguments are passed to `llmctl finetune`: `--max-steps 60` takes a few minutes and learns fewer
facts. The benchmark is a file, examples/data/observatory-benchmark.jsonl, whose questions are
worded differently from the training data. An HTML report of the results is written to
checkpoints/observatory-benchmark.html.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

OUTPUT = Path("checkpoints/observatory-benchmark")
BENCHMARK = "examples/data/observatory-benchmark.jsonl"
SEPARATE_RESULTS = OUTPUT.parent / "observatory-benchmark-20"
REPORT = f"{OUTPUT}.html"


def llmctl(*arguments: str) -> str:
    """Run a command and return its stdout; its stderr is shown."""
    command = [sys.executable, "-m", "llmctl", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    training = json.loads(
        llmctl(
            *("finetune", "--config", "examples/finetune.yaml", "--output", str(OUTPUT)),
            *("--overwrite", "--eval", BENCHMARK, "--eval-mode", "gen", "--json", *sys.argv[1:]),
        )
    )
    show(training["exams"][0])
    # The same in separate commands: the folder of an adapter is a model that can be evaluated.
    selection = ("--dataset", BENCHMARK, "--mode", "gen", "--limit", "20")
    llmctl("eval", "--model", str(OUTPUT), *selection, "--output", str(SEPARATE_RESULTS))
    before = str(OUTPUT / "benchmarks" / "before")
    compared = json.loads(llmctl("eval", "compare", before, str(SEPARATE_RESULTS), "--json"))
    show(compared["comparisons"][0])
    print(llmctl("eval", "report", before, str(OUTPUT / "benchmarks" / "after"), "-o", REPORT))


def show(comparison: dict[str, Any]) -> None:
    low, high = 100 * comparison["low"], 100 * comparison["high"]
    print(
        f"{comparison['questions']} questions: accuracy {comparison['first']:.0%} before, "
        f"{comparison['second']:.0%} after; the difference is {low:+.0f} to {high:+.0f} points, "
        f"p = {comparison['p_value']:.2g}"
    )


if __name__ == "__main__":
    main()
