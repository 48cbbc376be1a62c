"""Cleaning of a chunk of rows in one process, and its result."""

import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from llmctl.data.cleaning.dedup.similarity import row_digest, row_parts
from llmctl.data.cleaning.dedup.sketch import PERMUTATIONS, Banding, minhash_signature
from llmctl.data.cleaning.pipeline.row_cleaner import CleanedRow, RowCleaner
from llmctl.data.cleaning.rules.language import UNKNOWN_LANGUAGE, LanguageRule, dominant_script
from llmctl.data.cleaning.rules.lengths import TokenCounter
from llmctl.data.cleaning.rules.rule import RowView, texts_of
from llmctl.data.cleaning.settings import CleanSettings
from llmctl.data.digests import answer_key, content_key, prompt_key
from llmctl.data.formats.parse import parse_row
from llmctl.data.io.reader import RawRow
from llmctl.data.rows.extended_json import from_json, to_json
from llmctl.data.rows.row_errors import RowError
from llmctl.types import Example, SourceLocation

UNREADABLE = "unreadable"
UNREADABLE_CODE = 255
"""`removed_by` of a row that could not be read."""
MAX_EXAMPLES = 5
"""Number of rows that the report names for each rule."""


@dataclass(frozen=True, slots=True)
class SpooledRow:
    """A row in the temporary file between reading and writing."""

    origin: SourceLocation
    original: bytes
    """The row by `extended_json.to_json`; the raw text as a JSON string if it cannot be read."""
    cleaned: bytes | None
    """The row after cleaning; `None` if nothing changed."""
    detail: str = ""
    """Reason of the removal."""
    extra_lines: int = 0
    """As `RawRow.extra_lines`."""


@dataclass(frozen=True, slots=True)
class CleanJob:
    """The settings of a cleaning process. They can be pickled."""

    settings: CleanSettings
    columns: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None
    counter: Callable[[], TokenCounter] | None = None
    """Makes the token counter; called once in each process."""

    def example(self, record: SpooledRow, *, after: bool = True) -> Example:
        """Parse a readable row, after cleaning or as it was."""
        text = record.cleaned if after and record.cleaned is not None else record.original
        row = RawRow(record.origin, b"", from_json(text))
        example = parse_row(row, columns=self.columns, format=self.format)
        assert isinstance(example, Example)
        return example


@dataclass(slots=True)
class RuleCount:
    """Counts of one rule over some rows."""

    hits: int = 0
    changed: int = 0
    removed: int = 0
    examples: list[int] = field(default_factory=list)
    """Indices of the first rows with a hit."""
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, other: "RuleCount", begin: int) -> None:
        """Add the counts of a chunk whose first row has the index `begin`."""
        self.hits += other.hits
        self.changed += other.changed
        self.removed += other.removed
        self.examples += [begin + index for index in other.examples]
        del self.examples[MAX_EXAMPLES:]
        self.kinds.update(other.kinds)


ROW_DTYPE = np.dtype(
    [
        ("line", np.uint32),
        ("removed_by", np.uint8),
        ("is_changed", np.bool_),
        ("digest", np.uint64, (2,)),
        ("prompt", np.uint64),
        ("answer", np.uint64),
        ("chars_before", np.uint32),
        ("chars_after", np.uint32),
        ("turns", np.uint16),
        ("language", np.uint8),
    ]
)
"""Data kept in memory for each row: 51 bytes. `removed_by` is 0, or 1 + the index of the rule."""


@dataclass(slots=True)
class ChunkResult:
    """The result of a chunk, in the order of its rows."""

    rows: NDArray[np.void]
    """Shape (rows,), of type `ROW_DTYPE`."""
    contents: NDArray[np.uint8]
    """`digests.content_key` of each row before and after, shape (rows, 2, 16)."""
    keys: NDArray[np.uint32]
    """Shape (rows, bands)."""
    low_bytes: NDArray[np.uint8]
    """Shape (rows, PERMUTATIONS)."""
    records: list[bytes] = field(default_factory=list)
    """Pickled `SpooledRow`s."""
    languages: list[str] = field(default_factory=lambda: [UNKNOWN_LANGUAGE])
    """The field `language` of `ROW_DTYPE` is an index into this list."""
    counts: dict[str, RuleCount] = field(default_factory=dict)
    problems: list[RowError] = field(default_factory=list)
    formats: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)

    @classmethod
    def empty(cls, rows: int, bands: int) -> Self:
        return cls(
            np.zeros(rows, ROW_DTYPE),
            np.zeros((rows, 2, 16), np.uint8),
            np.zeros((rows, bands), np.uint32),
            np.zeros((rows, PERMUTATIONS if bands else 0), np.uint8),
        )

    def count(self, place: int, cleaned: CleanedRow) -> None:
        """Add the findings of the rules on a row to the counts."""
        for name, finding in cleaned.findings.items():
            count = self.counts.setdefault(name, RuleCount())
            count.hits += 1
            count.changed += name in cleaned.changed_by
            count.removed += name == cleaned.removed_by
            count.kinds.update(finding.kinds)
            if len(count.examples) < MAX_EXAMPLES:
                count.examples.append(place)


class ChunkCleaner:
    """Cleans chunks of rows in one process."""

    def __init__(self, job: CleanJob) -> None:
        counter = job.counter() if job.counter and job.settings.length.is_on else None
        self._cleaner = RowCleaner(
            job.settings, columns=job.columns, format=job.format, counter=counter
        )
        self._settings = job.settings
        self._rules = list(job.settings.rules())
        self._language = LanguageRule(job.settings.language)
        near = job.settings.near_duplicates
        self._banding = Banding.for_threshold(near.threshold) if near.is_on else Banding(0, 1)

    def clean(self, rows: Sequence[RawRow]) -> ChunkResult:
        """Clean the rows of a chunk."""
        chunk = ChunkResult.empty(len(rows), self._banding.bands)
        for place, row in enumerate(rows):
            chunk.rows["line"][place] = row.origin.line
            chunk.files.add(row.origin.file)
            cleaned = self._cleaner.clean(row)
            if isinstance(cleaned, CleanedRow):
                record = self._record(place, row, cleaned, chunk)
            else:
                chunk.rows["removed_by"][place] = UNREADABLE_CODE
                chunk.problems += cleaned
                reason = "; ".join(f"{p.field}: {p.what}" if p.field else p.what for p in cleaned)
                raw = to_json(row.raw.decode("utf-8", "replace"))
                record = SpooledRow(row.origin, raw, None, reason, row.extra_lines)
            chunk.records.append(pickle.dumps(record, pickle.HIGHEST_PROTOCOL))
        return chunk

    def _record(
        self, place: int, row: RawRow, cleaned: CleanedRow, chunk: ChunkResult
    ) -> SpooledRow:
        """Put the data of a readable row into the chunk, and return its record."""
        before, after = cleaned.before, cleaned.after
        is_same = after is before
        table = chunk.rows
        chunk.formats.add(before.format)
        chunk.count(place, cleaned)
        table["is_changed"][place] = not is_same
        table["turns"][place] = min(len(after.messages), 2**16 - 1)
        table["language"][place] = self._language_of(after, chunk.languages)
        characters = sum(map(len, texts_of(before)))
        table["chars_before"][place] = characters
        table["chars_after"][place] = characters if is_same else sum(map(len, texts_of(after)))
        key = content_key(before)
        keys = key + (key if is_same else content_key(after))
        chunk.contents[place] = np.frombuffer(keys, np.uint8).reshape(2, 16)
        detail = ""
        if cleaned.removed_by is not None:
            table["removed_by"][place] = 1 + self._rules.index(cleaned.removed_by)
            detail = cleaned.findings[cleaned.removed_by].detail
        else:
            self._sketch(place, after, chunk)
        new = None if is_same else to_json(cleaned.value)
        return SpooledRow(row.origin, to_json(row.value), new, detail, row.extra_lines)

    def _sketch(self, place: int, example: Example, chunk: ChunkResult) -> None:
        """Compute the digests and the sketch by which a row is compared with others."""
        table = chunk.rows
        table["digest"][place] = np.frombuffer(row_digest(example), np.uint64)
        table["prompt"][place], table["answer"][place] = _prompt_and_answer(example)
        if self._banding.bands:
            ignore_numbers = self._settings.near_duplicates.ignore_numbers
            compared = row_parts(example, ignore_numbers=ignore_numbers)
            signature = minhash_signature(compared)
            chunk.keys[place] = self._banding.keys(signature, compared.exact)
            chunk.low_bytes[place] = signature.astype(np.uint8)

    def _language_of(self, example: Example, known: list[str]) -> int:
        view = RowView(example)
        if self._settings.language.is_on:
            name = self._language.of(view)
        else:
            name, _ = dominant_script("\n".join(view.answers))
        if name not in known:
            known.append(name)
        return known.index(name)


def _prompt_and_answer(example: Example) -> tuple[int, int]:
    """Return 64-bit keys of prompt and answer; zeros for plain texts and preference pairs."""
    if example.text is not None or example.rejected:
        return 0, 0
    prompt, answer = prompt_key(example), answer_key(example)
    return int.from_bytes(prompt[:8], "little") or 1, int.from_bytes(answer[:8], "little")
