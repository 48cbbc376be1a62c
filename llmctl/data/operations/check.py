"""Report on data files before training: formats, lengths, languages, duplicates, leakage."""

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llmctl.data.cleaning.rules.language import detect_language
from llmctl.data.formats.columns import format_columns
from llmctl.data.io.sources import DataSource, skipped_files
from llmctl.data.io.validating_reader import ReadOptions, ValidatingReader
from llmctl.data.operations.overlap import DuplicateGroups, OverlapIndex
from llmctl.data.rows.row_errors import RowError
from llmctl.data.tokenized.loss_mask import MaskedSequence, mask_examples
from llmctl.engine.chat.template import ChatTemplate
from llmctl.errors import LlmctlError
from llmctl.percentiles import observed_percentiles
from llmctl.types import Example, ProgressCallback, SourceLocation, ignore_progress

_LANGUAGE_CONFIDENCE = 0.8
_LANGUAGE_CHARACTERS = 2000
"""Characters of a row that its language is detected from."""
_MAX_ORIGINS = 5
_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Percentiles of a value over the rows; each is a value that occurs."""

    p50: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class OverlongRows:
    """Rows with more tokens than a sequence may have, and the effect of truncation on them."""

    limit: int
    rows: int
    lose_end: int
    """Truncation at the limit removes the end-of-turn token of their last reply, without which a
    model does not learn to stop."""
    lose_all: int
    """No complete reply fits; training leaves these rows out."""
    first: tuple[SourceLocation, ...]


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Token counts with one model's tokenizer and chat template."""

    model: str
    per_row: Percentiles
    """Tokens per row; of a row with several sequences or a preference pair, the longest."""
    total: int
    learnt: int
    """Tokens in the loss."""
    overlong: OverlongRows | None
    notes: tuple[tuple[str, int], ...]
    """Remarks on how the template renders rows, each with its number of rows."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of `llmctl data check`."""

    files: tuple[str, ...]
    rows: int
    whole_rows: int
    formats: dict[str, int]
    unused: dict[str, tuple[str, ...]]
    """Columns that are not read, by format."""
    turns: Percentiles | None
    """User's turns per conversation."""
    with_system: int
    with_tools: int
    languages: dict[str, int]
    """ISO 639-1 code -> rows; `?` if undetected."""
    cjk_share: float
    """Share of Chinese characters among all characters except white space, from 0 to 1."""
    tokens: TokenStatistics | None
    duplicates: DuplicateGroups
    contradictions: DuplicateGroups
    eval_rows: int | None
    leaks: DuplicateGroups | None
    """Rows of the eval files whose prompt is in the train files."""
    problem_count: int
    problem_kinds: dict[str, int]
    problems: tuple[RowError, ...]
    not_read: tuple[str, ...]
    """Files of the folders that are not data files."""

    @property
    def sound(self) -> bool:
        """Whether every row is valid and no eval prompt is in train."""
        return not self.problem_count and not (self.leaks and self.leaks.rows)


@dataclass(frozen=True, slots=True)
class TargetModel:
    """The model whose tokenizer and template count the tokens."""

    name: str
    template: ChatTemplate
    max_length: int | None
    """Tokens that a sequence may have; `None` skips the report on longer rows."""


def check_rows(
    source: DataSource,
    *,
    eval_source: DataSource | None = None,
    options: ReadOptions,
    model: TargetModel | None = None,
    progress: ProgressCallback = ignore_progress,
) -> CheckReport:
    """Read every row once and report on all of them.

    Memory grows by about 40 bytes per row, and by the errors kept.

    Raises:
        ConfigError, DataError: as `read_rows`.
    """
    reader = ValidatingReader(source, options, progress)
    statistics = _RowStatistics()
    _collect(reader, statistics, model)
    log, eval_statistics, eval_rows = reader.log, None, None
    if eval_source is not None:
        eval_reader, eval_statistics = (
            ValidatingReader(eval_source, options, progress),
            _RowStatistics(),
        )
        _collect(eval_reader, eval_statistics, model)
        eval_rows = eval_reader.rows
        log.extend(eval_reader.log)
    eval_files = [] if eval_source is None else _names(eval_source)
    return CheckReport(
        files=(*_names(source), *eval_files),
        rows=reader.rows,
        whole_rows=reader.rows - reader.bad_rows,
        formats=dict(statistics.formats.most_common()),
        unused={
            name: tuple(sorted(columns)) for name, columns in statistics.unused.items() if columns
        },
        turns=_percentiles(statistics.turns),
        with_system=statistics.with_system,
        with_tools=statistics.with_tools,
        languages=dict(statistics.languages.most_common()),
        cjk_share=statistics.cjk / statistics.characters if statistics.characters else 0.0,
        tokens=None if model is None else statistics.tokens(model),
        duplicates=statistics.index.duplicates(),
        contradictions=statistics.index.contradictions(),
        eval_rows=eval_rows,
        leaks=None
        if eval_statistics is None
        else statistics.index.leaks_into(eval_statistics.index),
        problem_count=log.total,
        problem_kinds=dict(log.kinds.most_common()),
        problems=tuple(log.first),
        not_read=tuple(skipped_files(source)),
    )


def _collect(
    reader: ValidatingReader, statistics: "_RowStatistics", model: TargetModel | None
) -> None:
    examples = statistics.add_rows(reader)
    if model is None:
        for _ in examples:
            pass
        return
    for example, result in mask_examples(model.template, examples):
        if isinstance(result, LlmctlError):
            reader.reject((RowError(example.origin, "template", str(result), result.hint),))
        else:
            statistics.add_tokens(example, result, model.max_length)


@dataclass(slots=True)
class _RowStatistics:
    """Statistics of the rows so far."""

    formats: Counter[str] = field(default_factory=Counter)
    unused: dict[str, set[str]] = field(default_factory=dict)
    turns: "array[int]" = field(default_factory=lambda: array("L"))
    with_system: int = 0
    with_tools: int = 0
    languages: Counter[str] = field(default_factory=Counter)
    cjk: int = 0
    characters: int = 0
    index: OverlapIndex = field(default_factory=OverlapIndex)
    lengths: "array[int]" = field(default_factory=lambda: array("L"))
    total: int = 0
    trained: int = 0
    too_long: int = 0
    lose_end: int = 0
    lose_all: int = 0
    first_too_long: list[SourceLocation] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def add_rows(self, reader: ValidatingReader) -> Iterator[Example]:
        for row in reader:
            example = row.example
            self.formats[example.format] += 1
            extra = row.value.keys() - format_columns(example.format)
            self.unused.setdefault(example.format, set()).update(extra)
            self._add_conversation(example)
            self._add_language(example)
            self.index.add(example)
            yield example

    def _add_conversation(self, example: Example) -> None:
        roles = [message.role for message in example.messages]
        if roles:
            self.turns.append(roles.count("user"))
        self.with_system += roles[:1] in (["system"], ["developer"])
        self.with_tools += bool(example.tools) or "tool" in roles

    def _add_language(self, example: Example) -> None:
        texts = [m.content for m in example.messages if m.role in ("user", "assistant")]
        text = (
            "\n".join(texts)[:_LANGUAGE_CHARACTERS]
            if example.text is None
            else example.text[:_LANGUAGE_CHARACTERS]
        )
        self.languages[detect_language(text, _LANGUAGE_CONFIDENCE)] += 1
        self.characters += sum(map(len, text.split()))
        self.cjk += sum(map(len, _CJK.findall(text)))

    def add_tokens(
        self, example: Example, sequences: Sequence[MaskedSequence], limit: int | None
    ) -> None:
        """Add the sequences of a row."""
        if not sequences:
            return
        longest = max(sequences, key=lambda sequence: len(sequence.ids))
        self.lengths.append(len(longest.ids))
        self.total += sum(len(sequence.ids) for sequence in sequences)
        self.trained += sum(sum(sequence.loss_mask) for sequence in sequences)
        self.notes.update({sequence.note for sequence in sequences if sequence.note})
        if limit is None or len(longest.ids) <= limit:
            return
        self.too_long += 1
        if len(self.first_too_long) < _MAX_ORIGINS:
            self.first_too_long.append(example.origin)
        if example.text is None:
            ends = [end for sequence in sequences for end in _reply_ends(sequence.loss_mask)]
            self.lose_end += any(end > limit for end in ends)
            self.lose_all += all(end > limit for end in ends)

    def tokens(self, model: TargetModel) -> TokenStatistics | None:
        per_row = _percentiles(self.lengths)
        if per_row is None:
            return None
        overlong = model.max_length and OverlongRows(
            model.max_length,
            self.too_long,
            self.lose_end,
            self.lose_all,
            tuple(self.first_too_long),
        )
        return TokenStatistics(
            model.name,
            per_row,
            self.total,
            self.trained,
            overlong or None,
            tuple(self.notes.most_common()),
        )


def _reply_ends(loss_mask: Sequence[bool]) -> Iterator[int]:
    """Yield the number of tokens up to the end of each reply."""
    for at, (here, after) in enumerate(zip(loss_mask, [*loss_mask[1:], False], strict=True), 1):
        if here and not after:
            yield at


def _percentiles(values: "array[int]") -> Percentiles | None:
    if not values:
        return None
    return Percentiles(*observed_percentiles(values, 50, 95, 100))


def _names(source: DataSource) -> list[str]:
    return [str(source)] if isinstance(source, str | Path) else [str(name) for name in source]
