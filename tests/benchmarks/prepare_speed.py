"""How fast rows become token sequences, and how much memory that takes.

    python tests/benchmarks/prepare_speed.py [ROWS]

Two turns a row of some 90 tokens with the default model's tokenizer, from a generated file through
the reader, the template and the mask onto the disk; then once more out of the cache.
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
    from llmctl.data.io.reader import read_examples
    from llmctl.data.rows.row_errors import RowErrorLog
    from llmctl.engine.chat.template import ChatTemplate
    from llmctl.engine.models import resolve
    from llmctl.types import DatasetRef

    tokenizer = AutoTokenizer.from_pretrained(resolve.resolve_model("smollm2-135m").path)
    os.environ["LLMCTL_HOME"] = str(folder / "home")
    file = folder / "rows.jsonl"
    write_rows(file, rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        start, cpu = time.perf_counter(), time.process_time()
        report = build_dataset(
            lambda: read_examples(file, on_row_error=RowErrorLog()),
            ChatTemplate.of(tokenizer),
            (tokenizer.eos_token_id,),
            TokenizeOptions(1024, eval_fraction=0.01),
            dataset=DatasetRef("rows", str(file), f"generated {rows}", rows),
        ).report
        seconds = time.perf_counter() - start
        print(
            f"cached={report.cached}: {rows:,} rows, {report.tokens:,} tokens in {seconds:.2f} s "
            f"({rows / seconds:,.0f} rows/s, {report.tokens / seconds:,.0f} tokens/s; "
            f"processor {time.process_time() - cpu:.1f} s)"
        )
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"peak memory grew by {grown / 1000:.0f} MB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, Path(made))
