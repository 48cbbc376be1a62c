"""What is in these files, and what should a person know before a model learns from them?"""

import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llmctl.data.cleaning.rules.language import detect_language
from llmctl.data.formats.columns import format_columns
from llmctl.data.io.sources import DataSource, skipped_files
from llmctl.data.io.validating_reader import ReadOptions, ValidatingReader
from llmctl.data.operations.overlap import DuplicateGroups, OverlapIndex
from llmctl.data.rows.row_errors import RowError
from llmctl.data.tokenized.loss_mask import MaskedSequence, mask_examples
from llmctl.engine.chat.template import ChatTemplate
from llmctl.errors import LlmctlError
from llmctl.types import Example, ProgressCallback, SourceLocation, ignore_progress

_CONFIDENCE = 0.8
_SAMPLE = 2000
"""Characters of a row in which its language shows."""
_SHOWN_ROWS = 5
_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")


@dataclass(frozen=True, slots=True)
class Percentiles:
    """How a number is spread over the rows."""

    p50: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class OverlongRows:
    """Rows with more tokens than a sequence may have, and what cutting does to them."""

    limit: int
    rows: int
    lose_end: int
    """A cut at the limit takes the end-of-turn token of their last reply: learnt so, a model does
    not know when to stop."""
    lose_all: int
    """Not one whole reply fits; training leaves these rows out."""
    first: tuple[SourceLocation, ...]


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Rows as one model's tokenizer and chat template make them."""

    model: str
    per_row: Percentiles
    """Of a preference pair and of a row that becomes several sequences, the longest."""
    total: int
    learnt: int
    """Tokens that the loss falls on."""
    overlong: OverlongRows | None
    notes: tuple[tuple[str, int], ...]
    """What the template does to rows, each with the number of rows."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `llmctl data check` found."""

    files: tuple[str, ...]
    rows: int
    whole_rows: int
    formats: dict[str, int]
    unused: dict[str, tuple[str, ...]]
    """By format, the columns that rows have and nothing reads."""
    turns: Percentiles | None
    """User's turns per conversation."""
    with_system: int
    with_tools: int
    languages: dict[str, int]
    """ISO 639-1 code -> rows; `?` where it cannot be told."""
    cjk_share: float
    """Chinese characters among all characters but blanks, from 0 to 1."""
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
    """Files in folders that hold no examples."""

    @property
    def sound(self) -> bool:
        """Whether every row can be learnt from and no eval row is in train."""
        return not self.problem_count and not (self.leaks and self.leaks.rows)


@dataclass(frozen=True, slots=True)
class TargetModel:
    """The model that rows are measured with."""

    name: str
    template: ChatTemplate
    max_length: int | None
    """Tokens that a sequence may have; `None` asks for no forecast."""


def check_rows(
    source: DataSource,
    *,
    eval_source: DataSource | None = None,
    options: ReadOptions,
    measure: TargetModel | None = None,
    progress: ProgressCallback = ignore_progress,
) -> CheckReport:
    """Read every row once and report on all of them.

    Memory grows by some 40 bytes per row and by what is wrong.

    Raises:
        ConfigError, DataError: as `read_training_data`.
    """
    intake = ValidatingReader(source, options, progress)
    survey = _RowStatistics()
    _look(intake, survey, measure)
    log, eval_survey, eval_rows = intake.log, None, None
    if eval_source is not None:
        eval_intake, eval_survey = (
            ValidatingReader(eval_source, options, progress),
            _RowStatistics(),
        )
        _look(eval_intake, eval_survey, measure)
        eval_rows = eval_intake.rows
        log.extend(eval_intake.log)
    others = [] if eval_source is None else _names(eval_source)
    return CheckReport(
        files=(*_names(source), *others),
        rows=intake.rows,
        whole_rows=intake.rows - intake.bad_rows,
        formats=dict(survey.formats.most_common()),
        unused={name: tuple(sorted(columns)) for name, columns in survey.unused.items() if columns},
        turns=_spread(survey.turns),
        with_system=survey.with_system,
        with_tools=survey.with_tools,
        languages=dict(survey.languages.most_common()),
        cjk_share=survey.cjk / survey.characters if survey.characters else 0.0,
        tokens=None if measure is None else survey.tokens(measure),
        duplicates=survey.index.duplicates(),
        contradictions=survey.index.contradictions(),
        eval_rows=eval_rows,
        leaks=None if eval_survey is None else survey.index.leaks_into(eval_survey.index),
        problem_count=log.total,
        problem_kinds=dict(log.kinds.most_common()),
        problems=tuple(log.first),
        not_read=tuple(skipped_files(source)),
    )


def _look(intake: ValidatingReader, survey: "_RowStatistics", measure: TargetModel | None) -> None:
    examples = survey.of_rows(intake)
    if measure is None:
        for _ in examples:
            pass
        return
    for example, made in mask_examples(measure.template, examples):
        if isinstance(made, LlmctlError):
            problem = RowError(example.origin, "template", str(made), made.hint)
            intake.reject((problem,))
        else:
            survey.add_tokens(example, made, measure.max_length)


@dataclass(slots=True)
class _RowStatistics:
    """What has been seen so far."""

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
    learnt: int = 0
    too_long: int = 0
    lose_end: int = 0
    lose_all: int = 0
    first_too_long: list[SourceLocation] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def of_rows(self, intake: ValidatingReader) -> Iterator[Example]:
        for row in intake:
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
        said = [m.content for m in example.messages if m.role in ("user", "assistant")]
        text = "\n".join(said)[:_SAMPLE] if example.text is None else example.text[:_SAMPLE]
        self.languages[detect_language(text, _CONFIDENCE)] += 1
        self.characters += sum(map(len, text.split()))
        self.cjk += sum(map(len, _CJK.findall(text)))

    def add_tokens(
        self, example: Example, made: Sequence[MaskedSequence], limit: int | None
    ) -> None:
        """Take in the sequences that a row became."""
        if not made:
            return
        longest = max(made, key=lambda sequence: len(sequence.ids))
        self.lengths.append(len(longest.ids))
        self.total += sum(len(sequence.ids) for sequence in made)
        self.learnt += sum(sum(sequence.loss_mask) for sequence in made)
        self.notes.update({sequence.note for sequence in made if sequence.note})
        if limit is None or len(longest.ids) <= limit:
            return
        self.too_long += 1
        if len(self.first_too_long) < _SHOWN_ROWS:
            self.first_too_long.append(example.origin)
        if example.text is None:
            ends = [end for sequence in made for end in _reply_ends(sequence.loss_mask)]
            self.lose_end += any(end > limit for end in ends)
            self.lose_all += all(end > limit for end in ends)

    def tokens(self, measure: TargetModel) -> TokenStatistics | None:
        per_row = _spread(self.lengths)
        if per_row is None:
            return None
        overlong = measure.max_length and OverlongRows(
            measure.max_length,
            self.too_long,
            self.lose_end,
            self.lose_all,
            tuple(self.first_too_long),
        )
        return TokenStatistics(
            measure.name,
            per_row,
            self.total,
            self.learnt,
            overlong or None,
            tuple(self.notes.most_common()),
        )


def _reply_ends(loss_mask: Sequence[bool]) -> Iterator[int]:
    """Yield how many tokens there are up to and with the last of each reply."""
    for at, (here, after) in enumerate(zip(loss_mask, [*loss_mask[1:], False], strict=True), 1):
        if here and not after:
            yield at


def _spread(values: "array[int]") -> Percentiles | None:
    if not values:
        return None
    ordered = np.sort(np.asarray(values))
    # The smallest value that so many rows do not exceed, which is always one of the values.
    p50, p95 = (int(ordered[-(-len(ordered) * share // 100) - 1]) for share in (50, 95))
    return Percentiles(p50, p95, int(ordered[-1]))


def _names(source: DataSource) -> list[str]:
    return [str(source)] if isinstance(source, str | Path) else [str(name) for name in source]
