"""How do rows become the token sequences that are learnt, and which do not?"""

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
from llmctl.data.tokenized.report import AffectedRowsCounter, TokenizeReport
from llmctl.data.tokenized.storage import TokenSequence, TokenWriter
from llmctl.engine.chat.template import ChatTemplate
from llmctl.errors import ConfigError, LlmctlError
from llmctl.types import Example, Progress, ProgressCallback, SourceLocation

OverlongPolicy = Literal["truncate", "drop"]


@dataclass(frozen=True, slots=True)
class TokenizeOptions:
    """How rows become sequences. Every field is part of the cache's key."""

    max_length: int
    """Tokens that a sequence has at most."""
    overlong: OverlongPolicy = "truncate"
    """What becomes of longer ones. `truncate` ends a conversation after its last whole reply that
    fits, so that its end-of-turn token stays, and drops it where none fits; it cuts plain text into
    pieces. `drop` drops the row. Preference pairs are always dropped."""
    turns: TurnSelection = "all"
    eval_fraction: float = 0.0
    """Share of the rows held out: the same prompt is never on both sides."""
    seed: int = 0
    """Of the choice of the rows held out."""
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    """Further variables of the chat template, such as `enable_thinking`."""
    pairs: bool = False
    """Keep preference pairs as pairs; otherwise their chosen side is learnt as a conversation."""

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


def tokenize_examples(
    examples: Iterable[Example],
    template: ChatTemplate,
    stop_ids: frozenset[int],
    options: TokenizeOptions,
    folder: Path,
    *,
    total: int,
    progress: ProgressCallback,
) -> TokenizeReport:
    """Write the sequences of `examples` into `folder`, an empty one, and say what became of them.

    Args:
        total: how many rows are expected, for the progress alone.

    Raises:
        ConfigError, TemplateError, DataError: as `build_dataset`.
    """
    rows = supervised = 0
    account = _TokenizeStats(template, stop_ids, options)
    wanted = (e if options.pairs else replace(e, rejected=()) for e in examples)
    with TokenWriter(folder) as writer:
        for example, masked in mask_examples(
            template, wanted, turns=options.turns, template_kwargs=options.template_kwargs
        ):
            rows += 1
            aside = options.eval_fraction > 0 and is_held_out(
                prompt_key(example), options.eval_fraction, options.seed
            )
            for sample in account.samples(example, masked):
                supervised += int(sample.loss_mask.sum())
                writer.add(sample, held_out=aside)
            if rows % 256 == 0 or rows == total:
                progress(Progress("tokenising", rows, max(rows, total)))
    lengths, held = writer.lengths, writer.held_out
    account.check_left(rows, len(lengths) - held)
    if options.eval_fraction and not held:
        account.notes[f"none of the {rows} rows fell into the share that is held out"] = 1
    p50, p95, longest = np.quantile(lengths, (0.5, 0.95, 1), method="higher").tolist()
    return TokenizeReport(
        rows=rows,
        sequences=len(lengths),
        eval_sequences=held,
        tokens=int(lengths.sum()),
        supervised_tokens=supervised,
        length_p50=p50,
        length_p95=p95,
        length_max=longest,
        truncated=account.truncated.losses(),
        dropped=account.dropped.losses(),
        notes=account.sentences(),
    )


class _TokenizeStats:
    """Takes each row's sequences, cuts what is too long, and counts what is lost."""

    def __init__(
        self, template: ChatTemplate, stop_ids: frozenset[int], options: TokenizeOptions
    ) -> None:
        self._template = template
        self._stop_ids = stop_ids
        self._options = options
        self.truncated, self.dropped = AffectedRowsCounter(), AffectedRowsCounter()
        self.notes: Counter[str] = Counter()
        self._several, self._parts = 0, 0
        """Rows that make more than one sequence, and these sequences."""

    def samples(
        self, example: Example, masked: tuple[MaskedSequence, ...] | LlmctlError
    ) -> list[TokenSequence]:
        """Return what is learnt of a row."""
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
        whole = True
        for sequence in masked:
            pieces, all_of_it = self._pieces(sequence, example)
            kept += pieces
            whole &= all_of_it
            if sequence.note:
                self.notes[sequence.note] += 1
        if len(masked) > 1 and not options.pairs:
            self._several += 1
            self._parts += len(masked)
        return kept if kept and whole else self._not_whole(example, kept, whole)

    def _not_whole(
        self, example: Example, kept: list[TokenSequence], whole: bool
    ) -> list[TokenSequence]:
        limit, origin = self._options.max_length, example.origin
        if whole:
            self.dropped.add("nothing-to-learn", "it has no reply to learn", origin)
        elif self._options.overlong == "drop" or self._options.pairs:
            self.dropped.add("too-long", f"longer than {limit} tokens", origin)
            return []
        elif not kept:
            self.dropped.add("too-long", f"its first reply ends after {limit} tokens", origin)
        elif example.text is not None:
            self.truncated.add("too-long", f"cut into pieces of {limit} tokens", origin)
        else:
            self.truncated.add("too-long", f"a reply ends after {limit} tokens", origin)
        return kept

    def _pieces(
        self, sequence: MaskedSequence, example: Example
    ) -> tuple[list[TokenSequence], bool]:
        """Return what of a sequence fits, and whether that is all of it."""
        limit = self._options.max_length
        ids = np.array(sequence.ids, dtype=np.int32)
        learn = np.array(sequence.loss_mask, dtype=np.bool_)
        learn[:1] = False  # nothing precedes it from which it could be told
        ends = np.flatnonzero(learn & ~np.append(learn[1:], False))
        self._check_stops(sequence, ids, ends, example.origin)
        if example.text is not None:
            return _overlapping(ids, limit, example.origin), len(ids) <= limit
        fitting = ends[ends < limit]
        cut = int(fitting[-1]) + 1 if len(fitting) else 0
        pieces = [TokenSequence(ids[:cut], learn[:cut], example.origin)] if cut else []
        return pieces, len(fitting) == len(ends)

    def _check_stops(
        self,
        sequence: MaskedSequence,
        ids: NDArray[np.int32],
        ends: NDArray[np.int64],
        origin: SourceLocation,
    ) -> None:
        for end in ends.tolist():
            if int(ids[end]) not in self._stop_ids:
                first, last = sequence.offsets[end]
                named = ", ".join(map(str, sorted(self._stop_ids))) or "none"
                raise ConfigError(
                    f"{origin.file}:{origin.line}: the reply ends with "
                    f"{sequence.text[first:last]!r} (token {ids[end]}), at which this model does "
                    f"not stop (it stops at: {named}), so it would not learn to end",
                    hint="take an instruct model, or a --chat-template whose replies end with one "
                    "of these tokens",
                )

    def check_left(self, rows: int, left: int) -> None:
        """Refuse to train on nothing."""
        if left:
            return
        losses = self.dropped.losses()
        why = "; ".join(f"{loss.count} rows: {loss.reason}" for loss in losses[:3])
        too_long = any(loss.kind == "too-long" for loss in losses)
        raise DataError(
            f"nothing is left to learn of {rows} rows" + (f" ({why})" if why else ""),
            hint="a larger max_length would help" if too_long else "`llmctl data show` shows rows",
        )

    def sentences(self) -> tuple[str, ...]:
        """Return the notes, those of single rows with how many rows they are of."""
        several = (
            [
                f"{self._several} rows make {self._parts} sequences: this template writes earlier "
                "replies differently once later ones follow, and each is learnt as it is served"
            ]
            if self._several
            else []
        )
        return (*several, *(f"{note} (x{n})" if n > 1 else note for note, n in self.notes.items()))


def _overlapping(ids: NDArray[np.int32], limit: int, origin: SourceLocation) -> list[TokenSequence]:
    """Cut plain text so that every token but the first is learnt exactly once.

    A piece begins with the last token of the one before, which is context there.
    """
    pieces = []
    for first in range(0, len(ids) - 1, limit - 1):
        piece = ids[first : first + limit]
        learn = np.ones(len(piece), dtype=np.bool_)
        learn[0] = False
        pieces.append(TokenSequence(piece, learn, origin))
    return pieces
