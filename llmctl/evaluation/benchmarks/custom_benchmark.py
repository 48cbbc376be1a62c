"""How does a person's own exam become a suite? Reads a CSV or JSON-lines file of questions.

Multiple choice has `question`, `A`, `B`, ... (or `options`, a list) and `answer`: a letter, the
option's text, or its place from 0 as a JSON number. Without options the reply itself is judged:
`answer`, and `match`: `exact` (but for case and white space), `numeric`, `contains`, `regex`, or
`judge` (another model compares). `subject` parts the file; rows with `split` `example` are shown as
solved examples, and not asked. What is not known is refused.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from llmctl.did_you_mean import did_you_mean
from llmctl.evaluation.benchmarks.prompts import (
    LABELS,
    ChatPrompt,
    CompletionPrompt,
    Doc,
    PromptTemplate,
)
from llmctl.evaluation.benchmarks.readers import (
    BenchmarkDataError,
    DatasetReader,
    FileRecord,
    iter_csv_records,
    iter_jsonl_records,
)
from llmctl.evaluation.benchmarks.registry import Benchmark
from llmctl.evaluation.benchmarks.subjects import Subject
from llmctl.types import EvalMode, Extraction

MATCH_METHODS: Final[tuple[Extraction, ...]] = ("exact", "numeric", "contains", "regex", "judge")
_EXPECTED = "question, then A, B, ... (or options) and answer; or answer and match"
_LISTS: Final = ("options", "choices")
"""Names under which all options are given at once."""
_FIELDS: Final = ("question", *_LISTS, "answer", "match", "subject", "split")
_REMARKS: Final = ("id", "explanation", "source", "comment")
"""Fields that nobody reads."""
_KNOWN: Final = frozenset(("", *_FIELDS, *_REMARKS, *LABELS))
_MOST_PROBLEMS: Final = 20

_CHOICE: Final[Mapping[EvalMode, PromptTemplate]] = {
    "ppl": CompletionPrompt(
        example="{question}\n{options}\nAnswer: {answer}\n\n",
        body="{question}\n{options}\nAnswer: ",
        ending="{label}",
    ),
    "gen": ChatPrompt(
        "{question}\n{options}\nAnswer with the letter alone.",
        "{answer}",
        "first_option",
        256,
    ),
    **{
        mode: CompletionPrompt(
            example="Question: {question}\nAnswer: {answer_text}\n\n",
            body="Question: {question}\nAnswer:",
            ending=" {text}",
        )
        for mode in ("logprob", "logprob_norm")
    },
}
_FREE: Final[Mapping[EvalMode, PromptTemplate]] = {
    "gen": ChatPrompt("{question}", "{answer}", "exact", 256)
}


def is_benchmark_file(name: str) -> bool:
    """Whether a dataset is a file of a person's own, by its ending."""
    return Path(name).suffix.lower() in (".csv", ".jsonl", ".json")


def load_custom_benchmark(file: Path) -> Benchmark:
    """Read a file far enough to know what kind of exam it is.

    Raises:
        ExamError: it is not there, or rows in it are wrong; the message has file and line of each.
    """
    layout = DatasetReader(
        file.name,
        partial(_read, examples=False),
        _EXPECTED,
        file.name,
        partial(_read, examples=True),
    )
    rows = layout.rows(file)
    kinds = {bool(row.options) for row in rows}
    if len(kinds) > 1:
        raise BenchmarkDataError(
            f"{file} has questions with options and questions without",
            hint="put them in two files: they are asked in different ways",
        )
    names = list(dict.fromkeys(row.subject or file.stem for row in rows))
    return Benchmark(
        file.stem,
        file.name,
        "en",
        len(rows),
        tuple(Subject(name, name) for name in names),
        layout,
        (".",),
        _CHOICE if kinds == {True} else _FREE,
    )


def _read(file: Path, *, examples: bool) -> list[Doc]:
    rows: list[Doc] = []
    problems: list[str] = []
    unknown: set[str] = set()
    places: set[int] = set()
    for line in _lines(file):
        new = [name for name in line.value if name not in _KNOWN | unknown]
        unknown.update(new)
        problems += [f"{file}:{line.number}: {_unknown(name)}" for name in new]
        try:
            row, is_example = _row(line.value)
        except ValueError as error:
            problems.append(f"{file}:{line.number}: {error}")
            continue
        place = line.value["answer"]
        if row.options and isinstance(place, int) and str(place) not in row.options:
            places.add(place)
        if is_example == examples:
            rows.append(replace(row, index=len(rows)))
    if places and 0 not in places:
        problems.append(f"{file}: no answer is 0, so they may count from 1: write letters")
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        end = [f"and {more} more"] if more > 0 else []
        raise BenchmarkDataError("\n".join(problems[:_MOST_PROBLEMS] + end))
    return rows


def _lines(file: Path) -> Iterator[FileRecord]:
    if file.suffix.lower() == ".csv":
        lines = iter_csv_records(file)
        header = next(lines, FileRecord(0, [])).value
        for number, values in lines:
            extra = values[len(header) :]
            cells = dict(zip(header, values, strict=False)) | ({"": extra} if extra else {})
            yield FileRecord(number, cells)
        return
    yield from iter_jsonl_records(file)


def _row(value: Mapping[str, Any]) -> tuple[Doc, bool]:
    """Return a row, and whether it is an example; raise `ValueError` saying what is wrong."""
    if "" in value:
        raise ValueError("more cells than the header has columns: quote text with commas")
    question = _text(value, "question")
    gold = _text(value, "answer")
    options = _options(value)
    subject = str(value.get("subject") or "")
    split = str(value.get("split") or "")
    match = value.get("match") or None
    if options:
        if match is not None:
            raise ValueError("match is for questions without options")
        gold = _label(value["answer"], options)
        return Doc(question, gold, options, subject=subject), split == "example"
    if match is not None and match not in MATCH_METHODS:
        raise ValueError(f"match is {match!r}; it must be one of {', '.join(MATCH_METHODS)}")
    if match == "regex":
        try:
            re.compile(gold)
        except re.error as error:
            raise ValueError(f"the answer is no regular expression: {error}") from error
    if match == "numeric":
        try:
            float(gold.replace(",", ""))
        except ValueError:
            raise ValueError(f"the answer {gold!r} is no number, and match is numeric") from None
    return Doc(question, gold, extraction=match, subject=subject), split == "example"


def _text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    if found is None or str(found).strip() == "":
        raise ValueError(f"no {name}")
    if isinstance(found, bool | list | dict):
        raise ValueError(f"{name} is {json.dumps(found)[:40]}; it must be text")
    return str(found).strip()


def _label(answer: str | int, options: Sequence[str]) -> str:
    """Return the label of the right option, of which the answer is letter, text or place."""
    labels, told = LABELS[: len(options)], str(answer).strip()
    if len(told) == 1 and told.upper() in labels:
        return told.upper()
    meant = {label for label, text in zip(labels, options, strict=True) if text.strip() == told}
    if isinstance(answer, int) and 0 <= answer < len(options):
        meant.add(labels[answer])
    if len(meant) != 1:
        which = f"may be {' or '.join(sorted(meant))}" if meant else "is none"
        raise ValueError(f"the answer {answer!r} {which} of {', '.join(labels)}")
    return meant.pop()


def _options(value: Mapping[str, Any]) -> tuple[str, ...]:
    given = {name: value[name] for name in _LISTS if _is_given(value.get(name))}
    lettered = {label: value[label] for label in LABELS if _is_given(value.get(label))}
    ways = [*given, *list(lettered)[:1]]
    if len(ways) > 1:
        raise ValueError(f"options are given twice, as {ways[0]} and as {ways[1]}")
    if not ways:
        return ()
    told = next(iter(given.values()), lettered)
    try:
        listed = json.loads(told) if isinstance(told, str) else told
    except ValueError:
        listed = None
    if isinstance(listed, dict):
        names = sorted(listed)
        if names != list(LABELS[: len(names)]):
            raise ValueError(f"the options are {', '.join(names)}; they must be A, B, ...")
        listed = [listed[name] for name in names]
    if not isinstance(listed, list):
        raise ValueError(f'{ways[0]} is {str(told)[:40]!r}; it must be a list: ["red", "blue"]')
    if any(isinstance(text, bool | list | dict) or not _is_given(text) for text in listed):
        raise ValueError("an option is empty, or no text")
    if len(listed) == 1:
        raise ValueError("only one option")
    if len(listed) > len(LABELS):
        raise ValueError(f"{len(listed)} options, and there are {len(LABELS)} letters")
    return tuple(map(str, listed))


def _is_given(told: Any) -> bool:
    """Whether a field says something; a table has an empty cell where a row says nothing."""
    return told not in (None, [], {}) and bool(str(told).strip())


def _unknown(name: str) -> str:
    near = did_you_mean(name, _KNOWN, cutoff=0.7)
    known = f"did you mean {near!r}?" if near else f"it may be {', '.join(_FIELDS)}, A, B, ..."
    return f"unknown {name!r}; {known}"
