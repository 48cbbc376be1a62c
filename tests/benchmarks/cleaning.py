"""Speed of `llmctl data clean`, and recall and precision of its near-duplicate search.

Run `python tests/benchmarks/cleaning.py [--rows 20000] [--length] [--workers N]`. The rows are made
here: conversations of 150 to 300 words, Chinese, English and mixed, a tenth of them planted.
"""

import argparse
import json
import random
import re
import resource
import tempfile
import time
from bisect import bisect
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path

from llmctl.data.cleaner import clean_dataset
from llmctl.data.cleaning.pipeline.chunk import CleanJob
from llmctl.data.cleaning.pipeline.corpus_rules import CleanedDataset
from llmctl.data.cleaning.report.outputs import CleanOutputs, write_outputs
from llmctl.data.cleaning.report.summarize import build_report
from llmctl.data.cleaning.settings import CleanSettings
from llmctl.types import ModelSpec, Progress

THRESHOLD = 0.8


class Words:
    """Words and characters as frequent as in language: the n-th is used 1/n as often."""

    def __init__(self, random_: random.Random) -> None:
        self._random = random_
        letters = "etaoinshrdlucmfwypvbgk"
        self._english = [
            "".join(random_.choices(letters, k=random_.randint(2, 9))) for _ in range(9000)
        ]
        self._chinese = [chr(0x4E00 + i) for i in random_.sample(range(8000), 3000)]
        self._weights = list(accumulate(1 / (rank + 3) for rank in range(9000)))

    def english(self, count: int) -> str:
        words = [self._english[self._rank(9000)] for _ in range(count)]
        return " ".join(words).capitalize() + "."

    def chinese(self, count: int) -> str:
        return "".join(self._chinese[self._rank(3000)] for _ in range(count)) + "。"

    def other(self, unit: str) -> str:
        return (
            self.chinese(1)[0] if "\u4e00" <= unit[0] <= "\u9fff" else self.english(1)[:-1].lower()
        )

    def _rank(self, size: int) -> int:
        return bisect(self._weights, self._random.random() * self._weights[size - 1])


@dataclass
class Planted:
    row: int
    of: int
    similarity: float


def corpus(path: Path, count: int, seed: int) -> list[Planted]:
    """Write rows, a tenth of which copy an earlier row with small changes; return these."""
    random_ = random.Random(seed)
    words = Words(random_)
    earlier: list[tuple[int, str, str]] = []
    planted = []
    with path.open("w", encoding="utf-8") as file:
        for row in range(count):
            if row > 100 and random_.random() < 0.1:
                of, prompt, answer = random_.choice(earlier)
                share = random_.choice((0.0, 0.01, 0.02, 0.03, 0.05, 0.08))
                new = _edited(prompt, share, words, random_), _edited(answer, share, words, random_)
                similarity = min(_jaccard(prompt, new[0]), _jaccard(answer, new[1]))
                if similarity >= THRESHOLD:
                    planted.append(Planted(row, of, similarity))
                prompt, answer = new
            else:
                prompt, answer = _row(words, random_)
                earlier.append((row, prompt, answer))
            messages = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer},
            ]
            file.write(json.dumps({"id": row, "messages": messages}, ensure_ascii=False) + "\n")
    return planted


def _row(words: Words, random_: random.Random) -> tuple[str, str]:
    total = random_.randint(150, 300)
    kind = random_.choice(("english", "chinese", "mixed"))
    asked = total // 4
    makers: dict[str, Callable[[int], str]] = {
        "english": lambda n: _sentences(words.english, n, " "),
        "chinese": lambda n: _sentences(words.chinese, n, ""),
        "mixed": lambda n: words.chinese(n // 2) + " " + _sentences(words.english, n // 2, " "),
    }
    make = makers[kind]
    paragraphs = [make((total - asked) // 3) for _ in range(3)]
    return make(asked), "\n\n".join(paragraphs)


def _sentences(make: Callable[[int], str], count: int, between: str) -> str:
    return between.join(make(min(15, count - start)) for start in range(0, count, 15))


_UNIT = re.compile("[\u4e00-\u9fff]|[a-z]+", re.IGNORECASE)


def _edited(text: str, share: float, words: Words, random_: random.Random) -> str:
    return _UNIT.sub(
        lambda found: words.other(found.group()) if random_.random() < share else found.group(),
        text,
    )


def _jaccard(one: str, other: str) -> float:
    """Compute the similarity once more, by other code than the one that is measured."""
    sets = []
    for text in (one, other):
        units = _UNIT.findall(text.lower())
        grams = set()
        for place, unit in enumerate(units):
            width = 5 if "\u4e00" <= unit <= "\u9fff" else 3
            if place + width <= len(units):
                grams.add(tuple(units[place : place + width]))
        sets.append(grams or {tuple(units)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def measure(args: argparse.Namespace) -> Iterator[str]:
    """Clean a corpus and yield the lines of the report."""
    settings = CleanSettings()
    counter = None
    if args.length:
        from llmctl.services.data_clean import load_token_counter

        counter = partial(load_token_counter, ModelSpec("smollm2-135m"))
        settings = settings.model_copy(
            update={"length": settings.length.model_copy(update={"max_tokens": 4096})}
        )
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        source = Path(folder) / "in.jsonl"
        # In another process, so that the peak memory of this one is that of cleaning.
        with ProcessPoolExecutor(1) as other:
            planted = other.submit(corpus, source, args.rows, args.seed).result()
        yield f"{args.rows:,} rows, {source.stat().st_size / 1e6:.0f} MB, {len(planted):,} planted"
        outputs = CleanOutputs.beside(Path(folder) / "out.jsonl")
        stages: dict[str, float] = {}

        def note(progress: Progress) -> None:
            stages.setdefault(progress.stage.split(" /")[0], time.perf_counter())

        began, cpu_began = time.perf_counter(), _cpu()
        job = CleanJob(settings, counter=counter)
        with clean_dataset(str(source), job, workers=args.workers, progress=note) as dataset:
            loaded = counter() if counter else None
            write_outputs(
                dataset, build_report(dataset, "in", "out", loaded), outputs, progress=note
            )
            took, cpu = time.perf_counter() - began, _cpu() - cpu_began
            for stage, at in stages.items():
                yield f"  {stage} began after {at - began:.1f} s"
            yield f"{took:.1f} s, {cpu:.1f} CPU s, {args.rows / took:,.0f} rows/s"
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            yield f"peak memory of the main process: {peak:.0f} MB"
            yield from _judge(dataset, planted, source)


def _judge(dataset: CleanedDataset, planted: list[Planted], source: Path) -> Iterator[str]:
    rows = [json.loads(line)["messages"] for line in source.open(encoding="utf-8")]
    removed = ~dataset.index.is_kept
    found_pairs = sum(bool(removed[pair.row]) for pair in planted)
    yield f"recall: {found_pairs / len(planted):.4f} ({found_pairs:,} of {len(planted):,})"
    near = dataset.earlier_rows["near-duplicates"]
    false = 0
    for row in near.hits.nonzero()[0].tolist():
        one, other = rows[row], rows[int(near.indices[row])]
        least = min(_jaccard(one[turn]["content"], other[turn]["content"]) for turn in (0, 1))
        false += least < THRESHOLD
    yield f"near duplicates: {int(near.hits.sum()):,}, of them below the threshold: {false}"
    yield f"exact duplicates: {int(dataset.earlier_rows['duplicates'].hits.sum()):,}"


def _cpu() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Measure once and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--length", action="store_true", help="count tokens too")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", default=None, help="where the files lie meanwhile")
    for line in measure(parser.parse_args()):
        print(line)


if __name__ == "__main__":
    main()
