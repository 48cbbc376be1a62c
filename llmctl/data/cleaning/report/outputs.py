"""What is written, and where? The rows that stay, those that go and why, and the report."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llmctl.data.cleaner import CleanedDataset
from llmctl.data.cleaning.pipeline.chunk import UNREADABLE, UNREADABLE_CODE
from llmctl.data.cleaning.report.report import CleanReport
from llmctl.data.cleaning.report.summarize import corpus_rule_detail
from llmctl.data.io.writer import RowWriter
from llmctl.data.rows.extended_json import from_json
from llmctl.errors import ConfigError
from llmctl.types import Progress, ProgressCallback

_EVERY = 1024


@dataclass(frozen=True, slots=True)
class CleanOutputs:
    """The files of one run, side by side."""

    rows: Path
    rejected: Path
    report: Path

    @classmethod
    def beside(cls, rows: Path) -> Self:
        """Name the others after the first: `clean.rejected.jsonl`, `clean.report.json`."""
        stem = rows.with_suffix("") if rows.suffix.lower() == ".gz" else rows
        return cls(rows, stem.with_suffix(".rejected.jsonl"), stem.with_suffix(".report.json"))

    def check(self, *, overwrite: bool) -> None:
        """Refuse what could not be written, before any work is done.

        Raises:
            ConfigError: a file is there and may not be overwritten, or cannot be written.
        """
        for path in (self.rows, self.rejected):
            RowWriter(path, overwrite=overwrite)
        if self.report.exists() and not overwrite:
            raise ConfigError(f"{self.report} is there already", hint="--overwrite")


def write_outputs(
    cleaned: CleanedDataset,
    report: CleanReport,
    outputs: CleanOutputs,
    *,
    overwrite: bool = False,
    progress: ProgressCallback,
) -> None:
    """Write all files, or none: they appear together when the last row is written.

    Raises:
        ConfigError: as `CleanOutputs.check`.
    """
    ledger = cleaned.ledger
    names = list(cleaned.job.settings.rules())
    removed_by = ledger.rows["removed_by"].tolist()
    with (
        RowWriter(outputs.rows, overwrite=overwrite) as rows,
        _whole_file(outputs.report) as report_file,
        RowWriter(outputs.rejected, overwrite=overwrite) as rejected,
    ):
        for index, record in enumerate(ledger.records()):
            if index % _EVERY == 0:
                progress(Progress("writing rows", index, len(removed_by)))
            number = removed_by[index]
            if number == 0:
                rows.write_raw(record.original if record.cleaned is None else record.cleaned)
                continue
            rule = UNREADABLE if number == UNREADABLE_CODE else names[number - 1]
            rejected.write(
                {
                    "file": record.origin.file,
                    "line": record.origin.line,
                    "row": index + 1,
                    "rule": rule,
                    "detail": corpus_rule_detail(cleaned, rule, index)
                    if rule in cleaned.relations
                    else record.detail,
                    "original": from_json(record.original),
                }
            )
        report_file.write_text(
            json.dumps(report.plain(), ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Yield a name to write to; the file takes its own when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
