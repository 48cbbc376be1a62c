"""How do the files of an exam look? Reads each suite's own layout; errors name file and line."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.prompts import LABELS, Doc
from llmctl.evaluation.benchmarks.subjects import Subject


class BenchmarkDataError(ConfigError):
    """A file of an exam is not as it should be."""


class FileRecord(NamedTuple):
    """One record of a file."""

    number: int
    """From 1, of its last line."""
    value: Any


@dataclass(frozen=True, slots=True)
class DatasetReader:
    """Where a suite's rows lie below its folder, and how they are read."""

    questions: str
    """Path of a subject's questions, with `{name}`."""
    read: Callable[[Path], list[Doc]]
    expected: str
    """What a file should hold, for a person whose file does not."""
    examples: str | None = None
    """Path of what the few-shot examples are taken from; None where there are none."""
    read_examples: Callable[[Path], list[Doc]] | None = None
    """Where they are read otherwise than the questions."""

    def files(self, folder: Path, subject: Subject) -> tuple[Path, Path | None]:
        """Return the files of questions and of examples."""
        examples = self.examples
        return (
            folder / self.questions.format(name=subject.name),
            None if examples is None else folder / examples.format(name=subject.name),
        )

    def rows(self, file: Path) -> list[Doc]:
        """Read a file.

        Raises:
            ExamError: it is not there, or not as it should be.
        """
        return self._rows(file, self.read)

    def example_rows(self, file: Path) -> list[Doc]:
        """Read the file of the examples, as `rows` does."""
        return self._rows(file, self.read_examples or self.read)

    def _rows(self, file: Path, read: Callable[[Path], list[Doc]]) -> list[Doc]:
        try:
            rows = read(file)
        except FileNotFoundError as error:
            raise BenchmarkDataError(
                f"{file} is missing", hint=f"it should hold {self.expected}"
            ) from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise BenchmarkDataError(f"{file} cannot be read: {error}") from error
        except BenchmarkDataError as error:
            raise BenchmarkDataError(
                str(error), hint=f"the file should hold {self.expected}"
            ) from error
        if not rows:
            raise BenchmarkDataError(f"{file} is empty", hint=f"it should hold {self.expected}")
        return rows


def iter_csv_records(file: Path) -> Iterator[FileRecord]:
    """Yield the records of a CSV file, each with the line on which it ends."""
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream)
        for values in reader:
            if values:
                yield FileRecord(reader.line_num, values)


def iter_jsonl_records(file: Path) -> Iterator[FileRecord]:
    """Yield the objects of a JSON-lines file."""
    with file.open(encoding="utf-8-sig") as stream:
        for number, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                value = json.loads(text)
            except ValueError as error:
                raise BenchmarkDataError(f"{file}:{number}: no JSON: {error}") from error
            if not isinstance(value, dict):
                raise BenchmarkDataError(f"{file}:{number}: no JSON object")
            yield FileRecord(number, value)


def _letters(file: Path, number: int, question: str, options: list[str], gold: str) -> Doc:
    if gold not in LABELS[: len(options)] or len(gold) != 1:
        raise BenchmarkDataError(f"{file}:{number}: the answer {gold!r} is none of the options")
    return Doc(question, gold, tuple(options))


def _numbered(rows: Iterator[Doc]) -> list[Doc]:
    from dataclasses import replace

    return [replace(row, index=index) for index, row in enumerate(rows)]


def read_ceval_csv(file: Path) -> list[Doc]:
    """Read `...,question,A,B,C,D,answer,...` with a header, as C-Eval has it."""

    def rows() -> Iterator[Doc]:
        lines = iter_csv_records(file)
        header = next(lines, FileRecord(0, [])).value
        missing = {"question", "A", "B", "C", "D", "answer"} - set(header)
        if missing:
            raise BenchmarkDataError(f"{file}:1: no column {min(missing)}")
        for number, values in lines:
            cells = dict(zip(header, values, strict=False))
            if len(values) < len(header):
                raise BenchmarkDataError(f"{file}:{number}: {len(values)} cells of {len(header)}")
            options = [cells[label] for label in "ABCD"]
            yield _letters(file, number, cells["question"], options, cells["answer"])

    return _numbered(rows())


def read_mmlu_csv(file: Path) -> list[Doc]:
    """Read six columns without a header: question, four options, letter; as MMLU has it."""

    def rows() -> Iterator[Doc]:
        for number, values in iter_csv_records(file):
            if len(values) != 6:
                raise BenchmarkDataError(f"{file}:{number}: {len(values)} columns")
            yield _letters(file, number, values[0], values[1:5], values[5])

    return _numbered(rows())


def read_cmmlu_csv(file: Path) -> list[Doc]:
    """Read seven columns under a header: number, question, four options, letter; as CMMLU."""

    def rows() -> Iterator[Doc]:
        lines = iter_csv_records(file)
        next(lines, None)
        for number, values in lines:
            if len(values) != 7:
                raise BenchmarkDataError(f"{file}:{number}: {len(values)} columns")
            yield _letters(file, number, values[1], values[2:6], values[6])

    return _numbered(rows())


def read_arc_jsonl(file: Path) -> list[Doc]:
    """Read AI2's own objects; questions without four options are left out, as OpenCompass does."""

    def rows() -> Iterator[Doc]:
        for number, value in iter_jsonl_records(file):
            try:
                choices = value["question"]["choices"]
                if len(choices) != 4:
                    continue
                gold = LABELS[[choice["label"] for choice in choices].index(value["answerKey"])]
                options = tuple(choice["text"] for choice in choices)
                yield Doc(value["question"]["stem"], gold, options)
            except (KeyError, TypeError, ValueError) as error:
                raise BenchmarkDataError(f"{file}:{number}: {_what(error)}") from error

    return _numbered(rows())


def read_gsm8k_jsonl(file: Path) -> list[Doc]:
    """Read `{"question", "answer"}`, whose answer ends in `#### NUMBER`."""

    def rows() -> Iterator[Doc]:
        for number, value in iter_jsonl_records(file):
            try:
                solution, gold = value["answer"].split("#### ")
                yield Doc(value["question"], gold.strip().replace(",", ""), solution=solution)
            except (KeyError, AttributeError, ValueError) as error:
                raise BenchmarkDataError(f"{file}:{number}: {_what(error)}") from error

    return _numbered(rows())


def read_truthfulqa_csv(file: Path) -> list[Doc]:
    """Read the authors' table as multiple choice (MC1): the best answer, then the wrong ones."""

    def rows() -> Iterator[Doc]:
        lines = iter_csv_records(file)
        header = next(lines, FileRecord(0, [])).value
        for number, values in lines:
            cells = dict(zip(header, values, strict=False))
            try:
                wrong = [text.strip() for text in cells["Incorrect Answers"].split(";")]
                options = [_sentence(text) for text in (cells["Best Answer"], *wrong) if text]
                yield Doc(cells["Question"], "A", tuple(options))
            except KeyError as error:
                raise BenchmarkDataError(f"{file}:{number}: {_what(error)}") from error

    return _numbered(rows())


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith(".") else f"{text}."


def read_hellaswag_jsonl(file: Path) -> list[Doc]:
    """Read `{"query", "choices", "gold"}` as OpenCompass has it."""

    def rows() -> Iterator[Doc]:
        for number, value in iter_jsonl_records(file):
            try:
                context = value["query"].split(": ", 2)[-1]
                yield Doc(context, LABELS[value["gold"]], tuple(value["choices"]))
            except (KeyError, TypeError, AttributeError, IndexError) as error:
                raise BenchmarkDataError(f"{file}:{number}: {_what(error)}") from error

    return _numbered(rows())


def _what(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
