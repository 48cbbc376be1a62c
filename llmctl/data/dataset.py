"""Tokenised datasets for training, built from files and cached on disk."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from llmctl.data import digests, formats, io, rows
from llmctl.data.digests import DatasetDigest
from llmctl.data.formats import turn_order
from llmctl.data.io.reader import read_examples, read_rows
from llmctl.data.io.sources import DataSource, SourceFile, list_source_files
from llmctl.data.io.validating_reader import ReadOptions
from llmctl.data.rows.row_errors import DataError, RowErrorLog
from llmctl.data.tokenized import assistant_spans, build, cache, loss_mask, storage
from llmctl.data.tokenized.build import (
    AffectedRows,
    OverlongPolicy,
    TokenizeOptions,
    TokenizeReport,
    tokenize_examples,
)
from llmctl.data.tokenized.storage import PairDataset, TokenDataset, TokenSequence
from llmctl.dataclass_json import from_json
from llmctl.engine.chat import control_tokens, tokenize
from llmctl.engine.chat import template as chat_template
from llmctl.engine.chat.template import ChatTemplate
from llmctl.errors import ConfigError, LlmctlError
from llmctl.types import DatasetRef, Example, Progress, ProgressCallback, ignore_progress

__all__ = [
    "AffectedRows",
    "OverlongPolicy",
    "PairDataset",
    "TokenDataset",
    "TokenSequence",
    "TokenizeOptions",
    "TokenizeReport",
    "TokenizedDataset",
    "build_dataset",
]

_TOKENIZE_CODE = (
    assistant_spans,
    build,
    digests,
    loss_mask,
    storage,
    turn_order,
    control_tokens,
    chat_template,
    tokenize,
)
"""The modules that decide which sequences an example becomes."""
_READ_CODE = (rows, formats, io)
"""The packages that decide which examples a file has."""
_REPORT = "report.json"
_MAX_ROW_ERRORS = 50
_CHUNK = 2**20


@dataclass(frozen=True, slots=True)
class TokenizedDataset:
    """Token sequences to train on and to evaluate on."""

    train: TokenDataset
    eval: TokenDataset | None
    """`None` if no rows are held out."""
    report: TokenizeReport
    data: DatasetRef
    """The rows that were read; `digest` is that of the examples, whatever file they came from."""
    key: str
    """Equal keys are equal sequences with an equal split, whatever file they came from."""
    cached: bool
    """Whether the sequences were in the cache, so that no row was parsed."""
    skipped: Mapping[str, int]
    """Kinds of row errors -> their number, in rows that are left out."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """What a cache entry holds besides its sequences."""

    report: TokenizeReport
    data: DatasetRef
    error_kinds: Mapping[str, int] = field(default_factory=dict)
    first_errors: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "_Entry":
        return from_json(cls, json.loads((folder / _REPORT).read_text(encoding="utf-8")))

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=1)  # ASCII, because a path may not be UTF-8
        (folder / _REPORT).write_text(text, encoding="utf-8")


def build_dataset(
    source: DataSource,
    template: ChatTemplate,
    stop_ids: Sequence[int],
    options: TokenizeOptions,
    *,
    reading: ReadOptions | None = None,
    progress: ProgressCallback = ignore_progress,
) -> TokenizedDataset:
    """Read, validate and tokenise a source, or return the sequences from the cache.

    The cache key is a hash of the files' bytes, so that a cached source is not parsed. Otherwise
    each row is parsed, validated, hashed and tokenised in one pass.

    Every reply in the loss ends with a token at which the server stops, which is checked for every
    sequence; a sequence has no tokens after its last reply.

    Args:
        stop_ids: the tokens at which the server ends a reply (`LoadedModel.eos_ids`).
        reading: how rows are read, and whether invalid rows are an error or are left out.

    Raises:
        ConfigError: a file or column does not exist, or replies do not end with a stop token.
        TemplateError: the model has no chat template, and a row is a conversation.
        DataError: rows are invalid, or no sequence is left to train on.
    """
    reading = reading or ReadOptions()
    files = list_source_files(source)
    states = [_file_state(file) for file in files]
    tokenizing = _tokenizing(template, stop_ids, options)

    def build_entry(folder: Path) -> None:
        entry = _read_and_tokenize(
            source, template, frozenset(stop_ids), options, reading, folder, progress
        )
        if [_file_state(file) for file in files] != states:
            raise DataError("the data files changed while they were read", hint="run it again")
        entry.write(folder)

    cache_key = _hash(
        {
            "files": [[file.location, _content_digest(file, progress)] for file in files],
            "columns": dict(reading.columns),
            "format": reading.format,
            "reading_code": _code_digest(*_READ_CODE),
            **tokenizing,
        }
    )
    folder, cached = cache.get_or_build(cache_key, build_entry, progress)
    entry = _Entry.read(folder)
    _check_row_errors(entry.error_kinds, entry.first_errors, reading, entry.data.rows)
    return TokenizedDataset(
        TokenDataset(folder, held_out=False),
        TokenDataset(folder, held_out=True) if entry.report.eval_sequences else None,
        entry.report,
        entry.data,
        _hash({"rows": entry.data.digest, **tokenizing}),
        cached,
        entry.error_kinds,
    )


def _read_and_tokenize(
    source: DataSource,
    template: ChatTemplate,
    stop_ids: frozenset[int],
    options: TokenizeOptions,
    reading: ReadOptions,
    folder: Path,
    progress: ProgressCallback,
) -> _Entry:
    """Tokenise the source in one pass and return its reports.

    Errors in rows are raised all together, before any error of the tokenisation.
    """
    digest, log = DatasetDigest(), RowErrorLog(_MAX_ROW_ERRORS)

    def valid_rows() -> Iterator[Example]:
        for example in read_examples(
            source,
            columns=reading.columns,
            format=reading.format,
            on_row_error=log,
            progress=lambda done: progress(
                replace(done, stage=done.stage.replace("reading", "tokenising"))
            ),
        ):
            digest.add(example)
            # The remaining rows are read for their errors alone.
            if not log.total or reading.on_error == "skip":
                yield example

    def first_errors() -> list[str]:
        lines = [str(error) for error in log.first]
        more = log.total - len(lines)
        return [*lines, f"and {more:,} more"] if more else lines

    examples = valid_rows()
    try:
        report = tokenize_examples(examples, template, stop_ids, options, folder)
    except LlmctlError:
        for _ in examples:
            pass
        _check_row_errors(log.kinds, first_errors(), reading, digest.rows)
        raise
    _check_row_errors(log.kinds, first_errors(), reading, digest.rows)
    kinds = dict(log.kinds.most_common())
    return _Entry(report, digest.ref(source), kinds, tuple(first_errors()))


def _check_row_errors(
    kinds: Mapping[str, int], lines: Sequence[str], reading: ReadOptions, valid_rows: int
) -> None:
    if not kinds or (reading.on_error == "skip" and valid_rows):
        return
    way = "--on-error skip leaves these rows out" if valid_rows else "no valid row is left"
    raise DataError("\n".join(lines), hint=f"{way}; `llmctl data check` shows more")


def _tokenizing(
    template: ChatTemplate, stop_ids: Sequence[int], options: TokenizeOptions
) -> dict[str, object]:
    """Return everything besides the examples that the sequences depend on."""
    return {
        "template": template.fingerprint,
        "tokenizer": template.tokens.fingerprint,
        "stop_ids": sorted(stop_ids),
        "options": asdict(options),
        "libraries": [version(name) for name in ("transformers", "tokenizers")],
        "code": _code_digest(*_TOKENIZE_CODE),
    }


def _file_state(file: SourceFile) -> tuple[int, int] | None:
    if file.kind == "hub":
        return None
    state = Path(file.location).stat()
    return state.st_size, state.st_mtime_ns


def _content_digest(file: SourceFile, progress: ProgressCallback) -> str:
    """Return the SHA-256 of a file's bytes; of a hub dataset, that of its rows as JSON."""
    digest = hashlib.sha256()
    if file.kind == "hub":
        for row in read_rows(file.name, progress):
            digest.update(row.raw + b"\n")
        return digest.hexdigest()
    path = Path(file.location)
    try:
        total = path.stat().st_size
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                progress(Progress(f"hashing {file.name}", stream.tell(), total, "B"))
    except OSError as error:
        raise ConfigError(f"cannot read {file.name}: {error.strerror}") from error
    return digest.hexdigest()


def _code_digest(*modules: object) -> str:
    """Return a hash of the sources of modules, and of all modules of packages."""
    digest = hashlib.sha256()
    for module in modules:
        file = Path(str(getattr(module, "__file__", "")))
        for source in sorted(file.parent.glob("*.py")) if file.name == "__init__.py" else [file]:
            digest.update(source.read_bytes())
    return digest.hexdigest()


def _hash(parts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
