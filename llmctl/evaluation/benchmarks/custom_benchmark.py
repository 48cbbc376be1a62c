"""Custom benchmarks: CSV or JSON files written by the user.

Multiple choice: `question`, `A`, `B`, ... (or `options`, a list) and `answer`: a letter, the text
of an option, or its index from 0 as a JSON number; several right options as a list or as letters
(`BD`), of which a reply must state all and no other. Without options the reply itself is scored
against `answer` by `match`: `exact` (ignoring case and white space), `numeric`, `contains`, `regex`
or `judge` (a judge model compares). `subject` groups the rows. Rows with `split` `example` are
few-shot examples and are not evaluated. Unknown fields are errors.
"""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from llmctl.data.io.tables import column_names, header_error
from llmctl.data.io.text_encoding import open_utf8
from llmctl.data.rows.row_errors import join_names
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
    DataFile,
    DatasetReader,
    FileRecord,
    iter_csv_records,
    iter_json_records,
    read_bytes,
)
from llmctl.evaluation.benchmarks.registry import Benchmark
from llmctl.evaluation.benchmarks.subjects import Subject
from llmctl.types import EvalMode, Extraction

MATCH_METHODS: Final[tuple[Extraction, ...]] = ("exact", "numeric", "contains", "regex", "judge")
_EXPECTED = "question, then A, B, ... (or options) and answer; or answer and match"
_OPTION_LISTS: Final = ("options", "choices")
"""Fields that hold all options."""
_FIELDS: Final = ("question", *_OPTION_LISTS, "answer", "match", "subject", "split")
_IGNORED: Final = ("id", "explanation", "source", "comment", "Unnamed: 0")
_KNOWN: Final = frozenset(("", *_FIELDS, *_IGNORED, *LABELS))
_MAX_ERRORS: Final = 20
_TABLES: Final = (".csv", ".tsv")

_CHOICE_PROMPTS: Final[Mapping[EvalMode, PromptTemplate]] = {
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
_OPTION_SET_PROMPTS: Final[Mapping[EvalMode, PromptTemplate]] = {
    "gen": ChatPrompt(
        "{question}\n{options}\nAnswer with the letters of all right options alone.",
        "{answer}",
        "option_set",
        256,
    )
}
_FREE_FORM_PROMPTS: Final[Mapping[EvalMode, PromptTemplate]] = {
    "gen": ChatPrompt("{question}", "{answer}", "exact", 256)
}


def is_benchmark_file(name: str) -> bool:
    """Return whether a dataset name is the path of a custom benchmark, by its suffix."""
    return Path(name).suffix.lower() in (*_TABLES, ".jsonl", ".json")


def load_custom_benchmark(file: Path) -> Benchmark:
    """Read a custom benchmark. The file is read once; the benchmark holds its rows.

    Raises:
        BenchmarkDataError: the file is missing or has invalid rows; the message lists file and line
            of each.
    """
    content = read_bytes(file, _EXPECTED)
    try:
        data = _parse(file, content)
    except BenchmarkDataError as error:
        raise BenchmarkDataError(str(error), hint=f"expected: {_EXPECTED}") from error
    if not data.docs:
        raise BenchmarkDataError(f"{file} is empty", hint=f"expected: {_EXPECTED}")
    with_options = {bool(doc.options) for doc in data.docs}
    if len(with_options) > 1:
        raise BenchmarkDataError(
            f"{file} has questions with options and questions without",
            hint="put them in two files: they use different prompts",
        )
    if with_options == {False}:
        prompts = _FREE_FORM_PROMPTS
    elif any(len(doc.gold) > 1 for doc in data.docs):
        prompts = _OPTION_SET_PROMPTS
    else:
        prompts = _CHOICE_PROMPTS
    names = list(dict.fromkeys(doc.subject or file.stem for doc in data.docs))
    return Benchmark(
        file.stem,
        file.name,
        "en",
        len(data.docs),
        tuple(Subject(name, name) for name in names),
        DatasetReader(
            file.name,
            lambda path, stream: iter(_parse(path, stream.read()).docs),
            _EXPECTED,
            file.name,
            loaded={file: data},
        ),
        (".",),
        prompts,
    )


def _parse(file: Path, content: bytes) -> DataFile:
    docs: list[Doc] = []
    examples: list[Doc] = []
    errors: list[str] = []
    unknown: set[str] = set()
    answer_indices: set[int] = set()
    for line, value in _records(file, open_utf8(io.BytesIO(content), str(file))):
        new = [name for name in value if name not in _KNOWN | unknown]
        unknown.update(new)
        errors += [f"{file}:{line}: {_unknown_field(name)}" for name in new]
        try:
            doc, is_example = _doc(value)
        except ValueError as error:
            errors.append(f"{file}:{line}: {error}")
            continue
        answers = value["answer"] if isinstance(value["answer"], list) else [value["answer"]]
        answer_indices.update(
            answer
            for answer in answers
            if doc.options and isinstance(answer, int) and str(answer) not in doc.options
        )
        target = examples if is_example else docs
        target.append(replace(doc, index=len(target)))
    if answer_indices and 0 not in answer_indices:
        errors.append(f"{file}: no answer is 0, so they may count from 1: write letters")
    if errors:
        more = len(errors) - _MAX_ERRORS
        end = [f"and {more} more"] if more > 0 else []
        raise BenchmarkDataError("\n".join(errors[:_MAX_ERRORS] + end))
    return DataFile(content, tuple(docs), tuple(examples))


def _records(file: Path, stream: BinaryIO) -> Iterator[FileRecord]:
    if file.suffix.lower() not in _TABLES:
        yield from iter_json_records(file, stream)
        return
    records = iter_csv_records(file, stream)
    header = column_names(next(records, FileRecord(0, [])).value)
    if header and not {"question", "answer"} & set(header):
        raise BenchmarkDataError(
            f"{file}:1: the first row names no column question or answer: it has "
            f"{join_names(header)}"
        )
    if (error := header_error(header)) is not None:
        raise BenchmarkDataError(f"{file}:1: {error.what} ({error.fix})")
    for line, values in records:
        extra = values[len(header) :]
        cells = dict(zip(header, values, strict=False)) | ({"": extra} if extra else {})
        yield FileRecord(line, cells)


def _doc(value: Mapping[str, Any]) -> tuple[Doc, bool]:
    """Return the doc of a row, and whether it is a few-shot example. Raises `ValueError`."""
    if "" in value:
        raise ValueError("more cells than the header has columns: quote text with commas")
    question = _text(value, "question")
    options = _options(value)
    subject = str(value.get("subject") or "")
    is_example = str(value.get("split") or "") == "example"
    match = value.get("match") or None
    if options:
        if match is not None:
            raise ValueError("match is for questions without options")
        gold = _gold_labels(value, options)
        return Doc(question, gold, options, subject=subject), is_example
    gold = _text(value, "answer")
    if match is not None and match not in MATCH_METHODS:
        raise ValueError(f"match is {match!r}; it must be one of {', '.join(MATCH_METHODS)}")
    if match == "regex":
        try:
            re.compile(gold)
        except re.error as error:
            raise ValueError(f"the answer is not a valid regular expression: {error}") from error
    if match == "numeric":
        try:
            float(gold.replace(",", ""))
        except ValueError:
            raise ValueError(f"match is numeric, but the answer is {gold!r}") from None
    return Doc(question, gold, extraction=match, subject=subject), is_example


def _text(value: Mapping[str, Any], name: str) -> str:
    text = value.get(name)
    if text is None or str(text).strip() == "":
        raise ValueError(f"{name} is missing")
    if isinstance(text, bool | list | dict):
        raise ValueError(f"{name} is {json.dumps(text)[:40]}; it must be text")
    return str(text).strip()


def _gold_labels(value: Mapping[str, Any], options: Sequence[str]) -> str:
    """Return the labels of the right options, sorted."""
    answers = value.get("answer")
    if isinstance(answers, str) and answers.lstrip().startswith("["):
        try:
            answers = json.loads(answers)
        except ValueError:
            answers = value["answer"]
    if not isinstance(answers, list):
        text = _text(value, "answer")
        letters = re.sub(r"[\s,，、;]", "", text.upper())
        several = len(letters) > 1 and set(letters) <= set(LABELS[: len(options)])
        answers = list(letters) if several and text not in options else [answers]
    elif not answers:
        raise ValueError("answer is an empty list")
    for answer in answers:
        _text({"answer": answer}, "answer")
    labels = [_label(answer, options) for answer in answers]
    if len(set(labels)) < len(labels):
        raise ValueError(f"the answer {value['answer']!r} names an option twice")
    return "".join(sorted(labels))


def _label(answer: str | int, options: Sequence[str]) -> str:
    """Return the label of the right option, given as a label, a text or an index."""
    labels, text = LABELS[: len(options)], str(answer).strip()
    if len(text) == 1 and text.upper() in labels:
        return text.upper()
    pairs = zip(labels, options, strict=True)
    matches = {label for label, option in pairs if option.strip() == text}
    if isinstance(answer, int) and 0 <= answer < len(options):
        matches.add(labels[answer])
    if len(matches) != 1:
        which = f"could be {' or '.join(sorted(matches))}" if matches else "is none"
        raise ValueError(f"the answer {answer!r} {which} of {', '.join(labels)}")
    return matches.pop()


def _options(value: Mapping[str, Any]) -> tuple[str, ...]:
    lists = {name: value[name] for name in _OPTION_LISTS if _has_value(value.get(name))}
    lettered = {label: value[label] for label in LABELS if _has_value(value.get(label))}
    sources = [*lists, *list(lettered)[:1]]
    if len(sources) > 1:
        raise ValueError(f"options are given twice, as {sources[0]} and as {sources[1]}")
    if not sources:
        return ()
    given = next(iter(lists.values()), lettered)
    try:
        options = json.loads(given) if isinstance(given, str) else given
    except ValueError:
        options = None
    if isinstance(options, dict):
        names = sorted(options)
        if names != list(LABELS[: len(names)]):
            raise ValueError(f"the options are {', '.join(names)}; they must be A, B, ...")
        options = [options[name] for name in names]
    if not isinstance(options, list):
        raise ValueError(f'{sources[0]} is {str(given)[:40]!r}; it must be a list: ["red", "blue"]')
    if any(isinstance(text, bool | list | dict) or not _has_value(text) for text in options):
        raise ValueError("an option is empty or not text")
    if len(options) == 1:
        raise ValueError("only one option")
    if len(options) > len(LABELS):
        raise ValueError(f"{len(options)} options, but only {len(LABELS)} letters")
    return tuple(map(str, options))


def _has_value(value: Any) -> bool:
    """Return whether a field is filled; a CSV row has empty cells for absent fields."""
    return value not in (None, [], {}) and bool(str(value).strip())


def _unknown_field(name: str) -> str:
    near = did_you_mean(name, _KNOWN, cutoff=0.7)
    hint = f"did you mean {near!r}?" if near else f"known: {', '.join(_FIELDS)}, A, B, ..."
    return f"unknown field {name!r}; {hint}"
