"""Speed and memory use of tokenisation, with an empty cache and with a full one.

    python tests/benchmarks/prepare_speed.py [ROWS]

Each row of a generated file has two turns and about 90 tokens of the default model's tokenizer.
"""

import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

WORDS = ("the", "capital", "of", "a", "country", "is", "where", "its", "government", "sits", "and")


def write_rows(file: Path, rows: int) -> None:
    chance = random.Random(0)

    def words(count: int) -> str:
        return " ".join(chance.choices(WORDS, k=count)) + f" {chance.randrange(10**6)}."

    with file.open("w", encoding="utf-8") as out:
        for _ in range(rows):
            out.write(json.dumps({"instruction": words(12), "output": words(35)}) + "\n")


def main(rows: int, folder: Path) -> None:
    from transformers import AutoTokenizer

    from llmctl.data.dataset import TokenizeOptions, build_dataset
    from llmctl.engine.chat.template import ChatTemplate
    from llmctl.engine.models import resolve

    tokenizer = AutoTokenizer.from_pretrained(resolve.resolve_model("smollm2-135m").path)
    os.environ["LLMCTL_HOME"] = str(folder / "home")
    file = folder / "rows.jsonl"
    write_rows(file, rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        start, cpu = time.perf_counter(), time.process_time()
        dataset = build_dataset(
            file,
            ChatTemplate.of(tokenizer),
            (tokenizer.eos_token_id,),
            TokenizeOptions(1024, eval_fraction=0.01),
        )
        report = dataset.report
        seconds = time.perf_counter() - start
        print(
            f"cached={dataset.cached}: {rows:,} rows, {report.tokens:,} tokens in {seconds:.2f} s "
            f"({rows / seconds:,.0f} rows/s, {report.tokens / seconds:,.0f} tokens/s; "
            f"processor {time.process_time() - cpu:.1f} s)"
        )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"peak memory grew by {grown / 1000:.0f} MB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, Path(made))
