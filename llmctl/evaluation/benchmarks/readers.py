"""Readers of the data files of each benchmark; their errors name file and line."""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llmctl.data.io.reader import read_text_rows
from llmctl.data.io.tables import detect_separator, read_csv_records
from llmctl.data.io.text_encoding import open_utf8
from llmctl.errors import ConfigError
from llmctl.evaluation.benchmarks.prompts import LABELS, Doc
from llmctl.evaluation.benchmarks.subjects import Subject


class BenchmarkDataError(ConfigError):
    """A data file of a benchmark is missing or malformed."""


class FileRecord(NamedTuple):
    """One record of a data file."""

    line: int
    """From 1; the first line of a record that spans several."""
    value: Any


@dataclass(frozen=True, slots=True)
class DataFile:
    """One data file, read and parsed once."""

    content: bytes
    docs: tuple[Doc, ...]
    examples: tuple[Doc, ...] = ()
    """Few-shot examples in the same file; empty if the docs of an examples file are examples."""


Parser = Callable[[Path, BinaryIO], Iterator[Doc]]
"""Yields the docs of a file from its path, for messages, and its text as UTF-8."""


@dataclass(frozen=True, slots=True)
class DatasetReader:
    """Paths of a benchmark's data files below its folder, and their parser."""

    questions: str
    """Relative path of a subject's questions, with the placeholder `{name}`."""
    parse: Parser
    expected: str
    """Description of the file format, for error messages."""
    examples: str | None = None
    """Relative path of the few-shot examples; None if there are none."""
    loaded: Mapping[Path, DataFile] = field(default_factory=dict)
    """Files that were read before."""

    def files(self, folder: Path, subject: Subject) -> tuple[Path, Path | None]:
        """Return the paths of a subject's questions and of its examples."""
        examples = self.examples
        return (
            folder / self.questions.format(name=subject.name),
            None if examples is None else folder / examples.format(name=subject.name),
        )

    def read(self, file: Path) -> DataFile:
        """Read and parse a file.

        Raises:
            BenchmarkDataError: the file is missing, empty or malformed.
        """
        if file in self.loaded:
            return self.loaded[file]
        content = read_bytes(file, self.expected)
        try:
            parsed = self.parse(file, open_utf8(io.BytesIO(content), str(file)))
            docs = tuple(replace(doc, index=index) for index, doc in enumerate(parsed))
        except BenchmarkDataError as error:
            raise BenchmarkDataError(str(error), hint=f"expected: {self.expected}") from error
        if not docs:
            raise BenchmarkDataError(f"{file} is empty", hint=f"expected: {self.expected}")
        return DataFile(content, docs)


def read_bytes(file: Path, expected: str) -> bytes:
    """Return the content of a file. Raises `BenchmarkDataError`."""
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise BenchmarkDataError(f"{file} is missing", hint=f"expected: {expected}") from error
    except OSError as error:
        raise BenchmarkDataError(f"cannot read {file}: {error}") from error


def iter_csv_records(
    file: Path, stream: BinaryIO, *, has_header: bool = True
) -> Iterator[FileRecord]:
    """Yield the records of a CSV file as lists of cells; blank lines are skipped.

    The separator is comma, semicolon or tab, whichever the header has most of.

    Raises:
        BenchmarkDataError: a record is malformed or not text.
    """
    separator = detect_separator(stream) if has_header else ","
    for line, _, cells, error in read_csv_records(stream, separator):
        if error is not None:
            raise BenchmarkDataError(f"{file}:{line + error.line}: {error.what} ({error.fix})")
        yield FileRecord(line, cells)


def iter_json_records(file: Path, stream: BinaryIO) -> Iterator[FileRecord]:
    """Yield the objects of a file of JSON lines, or of a JSON array.

    Raises:
        BenchmarkDataError: a row is malformed or no object.
    """
    for row in read_text_rows(str(file), "json", stream):
        if row.errors:
            raise BenchmarkDataError("\n".join(map(str, row.errors)))
        yield FileRecord(row.origin.line, row.value)


def read_ceval_csv(file: Path, stream: BinaryIO) -> Iterator[Doc]:
    """Read C-Eval's `id,question,A,B,C,D,answer` with a header; further columns are ignored."""
    records = iter_csv_records(file, stream)
    header = next(records, FileRecord(0, [])).value
    missing = {"question", "A", "B", "C", "D", "answer"} - set(header)
    if missing:
        raise BenchmarkDataError(f"{file}:1: column {min(missing)} is missing")
    for line, values in records:
        cells = dict(zip(header, values, strict=False))
        if len(values) < len(header):
            raise BenchmarkDataError(f"{file}:{line}: {len(values)} cells of {len(header)}")
        options = [cells[label] for label in "ABCD"]
        yield _choice_doc(file, line, cells["question"], options, cells["answer"])


def read_mmlu_csv(file: Path, stream: BinaryIO) -> Iterator[Doc]:
    """Read MMLU's six columns without a header: question, four options, label."""
    for line, values in iter_csv_records(file, stream, has_header=False):
        if len(values) != 6:
            raise BenchmarkDataError(f"{file}:{line}: {len(values)} columns")
        yield _choice_doc(file, line, values[0], values[1:5], values[5])


def read_cmmlu_csv(file: Path, stream: BinaryIO) -> Iterator[Doc]:
    """Read CMMLU's seven columns with a header: index, question, four options, label."""
    records = iter_csv_records(file, stream)
    next(records, None)
    for line, values in records:
        if len(values) != 7:
            raise BenchmarkDataError(f"{file}:{line}: {len(values)} columns")
        yield _choice_doc(file, line, values[1], values[2:6], values[6])


def read_arc_jsonl(file: Path, stream: BinaryIO) -> Iterator[Doc]:
    """Read AI2's objects; like OpenCompass, skip questions that do not have four options."""
    for line, value in iter_json_records(file, stream):
        try:
            choices = value["question"]["choices"]
            if len(choices) != 4:
                continue
            gold = LABELS[[choice["label"] for choice in choices].index(value["answerKey"])]
            options = tuple(choice["text"] for choice in choices)
            yield Doc(value["question"]["stem"], gold, options)
        except (KeyError, TypeError, ValueError) as error:
            raise _malformed(file, line, error) from error


def read_gsm8k_jsonl(file: Path, stream: BinaryIO) -> Iterator[Doc]:
    """Read `{"question", "answer"}`; the answer ends in `#### NUMBER`."""
    for line, value in iter_json_records(file, stream):
        try:
            solution, gold = value["answer"].split("#### ")
            yield Doc(value["question"], gold.strip().replace(",", ""), solution=solution)
        except (KeyError, AttributeError, ValueError) as error:
            raise _malformed(file, line, error) from error


def read_truthfulqa_csv(file: Path, stream: BinaryIO) -> Iterator[Doc]:
    """Read the authors' table as MC1: the best answer, which is A, then the incorrect ones."""
    records = iter_csv_records(file, stream)
    header = next(records, FileRecord(0, [])).value
    for line, values in records:
        cells = dict(zip(header, values, strict=False))
        try:
            incorrect = [answer.strip() for answer in cells["Incorrect Answers"].split(";")]
            answers = [cells["Best Answer"], *incorrect]
            options = tuple(_with_full_stop(answer) for answer in answers if answer)
            yield Doc(cells["Question"], "A", options)
        except KeyError as error:
            raise _malformed(file, line, error) from error


def read_hellaswag_jsonl(file: Path, stream: BinaryIO) -> Iterator[Doc]:
    """Read OpenCompass' `{"query", "choices", "gold"}`."""
    for line, value in iter_json_records(file, stream):
        try:
            context = value["query"].split(": ", 2)[-1]
            yield Doc(context, LABELS[value["gold"]], tuple(value["choices"]))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise _malformed(file, line, error) from error


def _choice_doc(file: Path, line: int, question: str, options: list[str], gold: str) -> Doc:
    if gold not in LABELS[: len(options)] or len(gold) != 1:
        raise BenchmarkDataError(f"{file}:{line}: the answer {gold!r} is not one of the options")
    return Doc(question, gold, tuple(options))


def _with_full_stop(text: str) -> str:
    text = text.strip()
    return text if text.endswith(".") else f"{text}."


def _malformed(file: Path, line: int, error: Exception) -> BenchmarkDataError:
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return BenchmarkDataError(f"{file}:{line}: {reason}")
