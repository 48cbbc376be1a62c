"""The `llmctl data` commands other than `clean`: check, show, convert, split and merge."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from llmctl.config.model import ModelConfig
from llmctl.data.formats.columns import validate_format_options
from llmctl.data.formats.parse import parse_row
from llmctl.data.io.reader import RawRow, read_rows
from llmctl.data.io.validating_reader import ReadOptions
from llmctl.data.operations import check as checking
from llmctl.data.operations.check import CheckReport, TargetModel
from llmctl.data.operations.convert import convert_rows
from llmctl.data.operations.merge import merge_sources
from llmctl.data.operations.split import split_rows
from llmctl.data.rows.row import find_at_line
from llmctl.data.rows.row_errors import DataError
from llmctl.data.tokenized.loss_mask import MaskedSequence, mask_example
from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.models import model_folder, resolve
from llmctl.engine.models.resolved import ResolvedModel
from llmctl.errors import ConfigError, ModelNotFoundError
from llmctl.types import Example, ModelSpec, ProgressCallback, ignore_progress

__all__ = ["TokenizedRow", "check", "convert_rows", "merge_sources", "show", "split_rows"]


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One row as a model would be trained on it."""

    example: Example
    number: int
    """Of the row in its source, from 1."""
    sequences: tuple[MaskedSequence, ...]


def check(
    files: Sequence[str],
    eval_files: Sequence[str] = (),
    *,
    spec: ModelSpec | None = None,
    max_length: int | None = None,
    options: ReadOptions,
    progress: ProgressCallback = ignore_progress,
) -> CheckReport:
    """Report on every row of some files.

    Args:
        spec: the model whose tokenizer counts tokens; if not given, the default model if it is
            downloaded, otherwise tokens are not counted.
        max_length: tokens that a sequence may have; the model's context length if not given.

    Raises:
        ConfigError, DataError: the files cannot be read at all.
        ModelNotFoundError: no source has the model, or `max_length` is given without a model.
    """
    return checking.check_rows(
        files,
        eval_source=eval_files or None,
        options=options,
        model=_target_model(spec, max_length, progress),
        progress=progress,
    )


def show(
    file: str,
    number: int | None,
    *,
    line: int | None = None,
    count: int = 1,
    spec: ModelSpec,
    options: ReadOptions,
    progress: ProgressCallback = ignore_progress,
) -> Iterator[TokenizedRow]:
    """Yield rows with their tokens and loss masks.

    Args:
        number: the first row to show, from 1.
        line: in place of the number, a line of that row in the first file.
        count: the number of rows to show.

    Raises:
        ConfigError: there is no such row.
        DataError: a row to show is invalid.
        TemplateError: the chat template refuses a row, or the model has no template.
    """
    validate_format_options(options.columns, options.format)
    rows = _rows_from(file, number, line)
    template = _template(spec, _resolve(spec, progress))
    for at, row in islice(rows, count):
        example = parse_row(row, columns=options.columns, format=options.format)
        if not isinstance(example, Example):
            raise DataError("\n".join(map(str, example)), hint="fix the row, or show another one")
        yield TokenizedRow(example, at, mask_example(template, example))


def _rows_from(file: str, number: int | None, line: int | None) -> Iterator[tuple[int, RawRow]]:
    """Yield the rows from the given one on, each with its number from 1."""
    rows = ((at, row) for at, row in enumerate(read_rows(file), 1) if row.raw or row.errors)
    if line is not None:
        yield find_at_line(((row.origin, row.extra_lines, (at, row)) for at, row in rows), line)
        yield from rows
        return
    at = 0
    for at, row in rows:
        if at == number:
            yield at, row
            yield from rows
            return
    raise ConfigError(f"{file} has no row {number}", hint=f"it has {at:,} rows")


def _target_model(
    spec: ModelSpec | None, max_length: int | None, progress: ProgressCallback
) -> TargetModel | None:
    if spec is None:
        spec = ModelConfig().model_spec()
        try:
            found = resolve.resolve_local(spec.model)
        except ModelNotFoundError:
            if max_length is None:
                return None
            raise
    else:
        found = _resolve(spec, progress)
    if max_length is None and found.gguf_file is None:
        max_length = model_folder.read_folder_metadata(found.full_model.path).context_length
    return TargetModel(spec.model, _template(spec, found), max_length)


def _resolve(spec: ModelSpec, progress: ProgressCallback) -> ResolvedModel:
    return resolve.resolve_model(
        spec.model, revision=spec.revision, allow_pickle=spec.allow_pickle, progress=progress
    )


def _template(spec: ModelSpec, found: ResolvedModel) -> ChatTemplate:
    from llmctl.engine.loading import load  # torch, for which converting files should not wait

    return ChatTemplate.of(load.read_tokenizer(spec, found), spec.chat_template)
