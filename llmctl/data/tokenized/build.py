"""Tokenisation of examples into masked sequences, and the report on what became of the rows."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from llmctl.data.digests import is_held_out, prompt_key
from llmctl.data.rows.row_errors import DataError
from llmctl.data.tokenized.loss_mask import MaskedSequence, TurnSelection, mask_examples
from llmctl.data.tokenized.storage import TokenSequence, TokenWriter
from llmctl.engine.chat.template import ChatTemplate
from llmctl.errors import ConfigError, LlmctlError
from llmctl.percentiles import observed_percentiles
from llmctl.types import Example, SourceLocation

OverlongPolicy = Literal["truncate", "drop"]
AffectedKind = Literal["refused", "nothing-to-learn", "no-pair", "too-long"]
"""Why a row is dropped or truncated: the template refuses it; it has no reply in the loss; it is
not a preference pair, where pairs are required; it exceeds max_length."""

_MAX_AFFECTED = 20
"""Locations kept per reason, and reasons kept per kind."""


@dataclass(frozen=True, slots=True)
class TokenizeOptions:
    """How examples become sequences. Every field is part of the cache key."""

    max_length: int
    """The most tokens of a sequence."""
    overlong: OverlongPolicy = "truncate"
    """What to do with longer sequences. `truncate` ends a conversation after its last complete
    reply that fits, so that its end-of-turn token stays, and drops it if none fits; plain text is
    split into chunks. `drop` drops the row. Preference pairs are always dropped."""
    turns: TurnSelection = "all"
    eval_fraction: float = 0.0
    """Share of the rows held out; the same prompt is never on both sides."""
    seed: int = 0
    """Seed for the choice of the held-out rows."""
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    """Further variables of the chat template, such as `enable_thinking`."""
    pairs: bool = False
    """Keep preference pairs as pairs; otherwise their chosen side is trained as a conversation."""

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ConfigError(f"max_length is {self.max_length}; it must be at least 2")
        if not 0 <= self.eval_fraction < 1:
            raise ConfigError(
                f"eval_fraction is {self.eval_fraction}; it must be from 0 to less than 1"
            )
        for name, value, allowed in (
            ("overlong", self.overlong, get_args(OverlongPolicy)),
            ("turns", self.turns, get_args(TurnSelection)),
        ):
            if value not in allowed:
                raise ConfigError(f"unknown {name} {value!r}", hint=f"one of: {', '.join(allowed)}")


@dataclass(frozen=True, slots=True)
class AffectedRows:
    """Rows that are truncated or dropped, for one reason."""

    kind: AffectedKind
    reason: str
    count: int
    origins: tuple[SourceLocation, ...]
    """The first 20 of them."""


@dataclass(frozen=True, slots=True)
class TokenizeReport:
    """What became of the rows; train and eval together unless stated otherwise."""

    rows: int
    sequences: int
    eval_sequences: int
    """Held-out sequences, included in `sequences`."""
    tokens: int
    supervised_tokens: int
    """Tokens in the loss."""
    length_p50: int
    """Tokens per sequence, as in the next two fields."""
    length_p95: int
    length_max: int
    truncated: tuple[AffectedRows, ...]
    """Rows of which a part is kept: complete replies, or chunks of plain text."""
    dropped: tuple[AffectedRows, ...]
    """Rows of which nothing is kept."""
    notes: tuple[str, ...]
    """Remarks for the user, one sentence each."""


def tokenize_examples(
    examples: Iterable[Example],
    template: ChatTemplate,
    stop_ids: frozenset[int],
    options: TokenizeOptions,
    folder: Path,
) -> TokenizeReport:
    """Write the sequences of `examples` into an empty folder and report on the rows.

    Raises:
        ConfigError: a reply does not end with a token of `stop_ids`.
        TemplateError: the model has no chat template, and a row is a conversation.
        DataError: no sequence is left to train on.
    """
    rows = supervised = 0
    tokenizer = _RowTokenizer(template, stop_ids, options)
    if not options.pairs:
        examples = (replace(example, rejected=()) for example in examples)
    with TokenWriter(folder) as writer:
        for example, masked in mask_examples(
            template, examples, turns=options.turns, template_kwargs=options.template_kwargs
        ):
            rows += 1
            held_out = options.eval_fraction > 0 and is_held_out(
                prompt_key(example), options.eval_fraction, options.seed
            )
            for sequence in tokenizer.sequences(example, masked):
                supervised += int(sequence.loss_mask.sum())
                writer.add(sequence, held_out=held_out)
    lengths, eval_sequences = writer.lengths, writer.held_out
    if len(lengths) == eval_sequences:
        raise tokenizer.nothing_left(rows)
    if options.eval_fraction and not eval_sequences:
        tokenizer.notes[f"none of the {rows} rows is in the held-out share"] = 1
    p50, p95, longest = observed_percentiles(lengths.tolist(), 50, 95, 100)
    return TokenizeReport(
        rows=rows,
        sequences=len(lengths),
        eval_sequences=eval_sequences,
        tokens=int(lengths.sum()),
        supervised_tokens=supervised,
        length_p50=p50,
        length_p95=p95,
        length_max=longest,
        truncated=tokenizer.truncated.rows(),
        dropped=tokenizer.dropped.rows(),
        notes=tokenizer.sentences(),
    )


class _RowTokenizer:
    """Truncates or drops the sequences of each row, and counts both by reason."""

    def __init__(
        self, template: ChatTemplate, stop_ids: frozenset[int], options: TokenizeOptions
    ) -> None:
        self._template = template
        self._stop_ids = stop_ids
        self._options = options
        self.truncated, self.dropped = _AffectedRowsCounter(), _AffectedRowsCounter()
        self.notes: Counter[str] = Counter()
        self._split_rows, self._split_sequences = 0, 0
        """Rows with more than one sequence, and their sequences."""

    def sequences(
        self, example: Example, masked: tuple[MaskedSequence, ...] | LlmctlError
    ) -> list[TokenSequence]:
        """Return the sequences of a row that are trained on."""
        origin, options = example.origin, self._options
        if isinstance(masked, LlmctlError):
            if not self._template and example.text is None:
                raise masked
            self.dropped.add("refused", str(masked), origin)
            return []
        if options.pairs and not example.rejected:
            self.dropped.add("no-pair", "it has no rejected answer", origin)
            return []
        kept: list[TokenSequence] = []
        complete = True
        for sequence in masked:
            fitting, fits = self._fit(sequence, example)
            kept += fitting
            complete &= fits
            if sequence.note:
                self.notes[sequence.note] += 1
        if len(masked) > 1 and not options.pairs:
            self._split_rows += 1
            self._split_sequences += len(masked)
        return kept if kept and complete else self._incomplete(example, kept, complete)

    def _incomplete(
        self, example: Example, kept: list[TokenSequence], complete: bool
    ) -> list[TokenSequence]:
        """Count a row that is empty or too long, and return the sequences to keep."""
        limit, origin = self._options.max_length, example.origin
        if complete:
            self.dropped.add("nothing-to-learn", "it has no reply in the loss", origin)
        elif self._options.overlong == "drop" or self._options.pairs:
            self.dropped.add("too-long", f"longer than {limit} tokens", origin)
            return []
        elif not kept:
            self.dropped.add("too-long", f"its first reply ends after {limit} tokens", origin)
        elif example.text is not None:
            self.truncated.add("too-long", f"split into chunks of {limit} tokens", origin)
        else:
            self.truncated.add("too-long", f"a reply ends after {limit} tokens", origin)
        return kept

    def _fit(self, sequence: MaskedSequence, example: Example) -> tuple[list[TokenSequence], bool]:
        """Return what of a sequence fits, and whether that is all of it."""
        limit = self._options.max_length
        ids = np.array(sequence.ids, dtype=np.int32)
        loss_mask = np.array(sequence.loss_mask, dtype=np.bool_)
        loss_mask[:1] = False  # nothing precedes the first token to predict it from
        ends = np.flatnonzero(loss_mask & ~np.append(loss_mask[1:], False))
        self._check_stop_tokens(sequence, ids, ends, example.origin)
        if example.text is not None:
            return _chunks(ids, limit, example.origin), len(ids) <= limit
        fitting = ends[ends < limit]
        cut = int(fitting[-1]) + 1 if len(fitting) else 0
        kept = [TokenSequence(ids[:cut], loss_mask[:cut], example.origin)] if cut else []
        return kept, len(fitting) == len(ends)

    def _check_stop_tokens(
        self,
        sequence: MaskedSequence,
        ids: NDArray[np.int32],
        ends: NDArray[np.int64],
        origin: SourceLocation,
    ) -> None:
        for end in ends.tolist():
            if int(ids[end]) not in self._stop_ids:
                first, last = sequence.offsets[end]
                stop_ids = ", ".join(map(str, sorted(self._stop_ids))) or "none"
                raise ConfigError(
                    f"{origin.file}:{origin.line}: the reply ends with "
                    f"{sequence.text[first:last]!r} (token {ids[end]}), which is not a stop token "
                    f"of this model ({stop_ids}), so it would not learn to stop",
                    hint="use an instruct model, or a --chat-template whose replies end with a "
                    "stop token",
                )

    def nothing_left(self, rows: int) -> DataError:
        """Return the error for rows of which no sequence is left, with the reasons."""
        affected = self.dropped.rows()
        reasons = "; ".join(f"{rows.count} rows: {rows.reason}" for rows in affected[:3])
        too_long = any(rows.kind == "too-long" for rows in affected)
        message = f"no sequence is left to train on of {rows} rows"
        return DataError(
            f"{message} ({reasons})" if reasons else message,
            hint="increase max_length" if too_long else "`llmctl data show` shows rows",
        )

    def sentences(self) -> tuple[str, ...]:
        """Return the notes, those on single rows with the number of rows."""
        several = (
            [
                f"{self._split_rows} rows make {self._split_sequences} sequences: this template "
                "renders earlier replies differently once later ones follow, and each is trained "
                "as it is served"
            ]
            if self._split_rows
            else []
        )
        return (*several, *(f"{note} (x{n})" if n > 1 else note for note, n in self.notes.items()))


class _AffectedRowsCounter:
    """Counts rows by reason, and keeps the first locations of each."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[AffectedKind, str]] = Counter()
        self._origins: dict[tuple[AffectedKind, str], list[SourceLocation]] = {}

    def add(self, kind: AffectedKind, reason: str, origin: SourceLocation) -> None:
        if (kind, reason) not in self._counts and len(self._counts) >= _MAX_AFFECTED:
            reason = "other reasons"  # a template's refusal may contain text of the row
        self._counts[kind, reason] += 1
        first = self._origins.setdefault((kind, reason), [])
        if len(first) < _MAX_AFFECTED:
            first.append(origin)

    def rows(self) -> tuple[AffectedRows, ...]:
        """Return the counts, the most frequent reason first."""
        return tuple(
            AffectedRows(kind, reason, count, tuple(self._origins[kind, reason]))
            for (kind, reason), count in self._counts.most_common()
        )


def _chunks(ids: NDArray[np.int32], limit: int, origin: SourceLocation) -> list[TokenSequence]:
    """Split plain text so that every token but the first is in the loss exactly once.

    A chunk begins with the last token of the chunk before, which is only context.
    """
    chunks = []
    for first in range(0, len(ids) - 1, limit - 1):
        chunk = ids[first : first + limit]
        loss_mask = np.ones(len(chunk), dtype=np.bool_)
        loss_mask[0] = False
        chunks.append(TokenSequence(chunk, loss_mask, origin))
    return chunks
