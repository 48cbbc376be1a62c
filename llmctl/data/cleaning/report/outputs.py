"""The files that cleaning writes: the rows that stay, the removed rows with reasons, the report."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from llmctl.atomic_files import atomic_path
from llmctl.data.cleaning.pipeline.chunk import UNREADABLE, UNREADABLE_CODE
from llmctl.data.cleaning.pipeline.corpus_rules import CleanedDataset
from llmctl.data.cleaning.report.report import CleanReport
from llmctl.data.io.writer import RowWriter
from llmctl.data.rows.extended_json import from_json
from llmctl.errors import ConfigError
from llmctl.types import Progress, ProgressCallback

_PROGRESS_ROWS = 1024


@dataclass(frozen=True, slots=True)
class CleanOutputs:
    """The paths of the files of one run."""

    rows: Path
    rejected: Path
    report: Path

    @classmethod
    def beside(cls, rows: Path) -> Self:
        """Name the other files after the first: `clean.rejected.jsonl`, `clean.report.json`."""
        stem = rows.with_suffix("") if rows.suffix.lower() == ".gz" else rows
        return cls(rows, stem.with_suffix(".rejected.jsonl"), stem.with_suffix(".report.json"))

    def check(self, *, overwrite: bool) -> None:
        """Check before any work that all files can be written.

        Raises:
            ConfigError: a file exists and may not be overwritten, or cannot be written.
        """
        for path in (self.rows, self.rejected):
            RowWriter(path, overwrite=overwrite)
        if self.report.exists() and not overwrite:
            raise ConfigError(f"{self.report} exists already", hint="--overwrite")


def write_outputs(
    cleaned: CleanedDataset,
    report: CleanReport,
    outputs: CleanOutputs,
    *,
    overwrite: bool = False,
    progress: ProgressCallback,
) -> None:
    """Write all files. They appear together when the last row is written; none on failure.

    Raises:
        ConfigError: as `CleanOutputs.check`.
    """
    names = list(cleaned.job.settings.rules())
    removed_by = cleaned.index.rows["removed_by"].tolist()
    with (
        RowWriter(outputs.rows, overwrite=overwrite) as rows,
        atomic_path(outputs.report) as report_file,
        RowWriter(outputs.rejected, overwrite=overwrite) as rejected,
    ):
        for number, record in enumerate(cleaned.index.records()):
            if number % _PROGRESS_ROWS == 0:
                progress(Progress("writing rows", number, len(removed_by)))
            code = removed_by[number]
            if code == 0:
                rows.write_raw(record.original if record.cleaned is None else record.cleaned)
                continue
            rule = UNREADABLE if code == UNREADABLE_CODE else names[code - 1]
            rejected.write(
                {
                    "file": record.origin.file,
                    "line": record.origin.line,
                    "row": number + 1,
                    "rule": rule,
                    "detail": cleaned.detail(rule, number)
                    if rule in cleaned.earlier_rows
                    else record.detail,
                    "original": from_json(record.original),
                }
            )
        report_file.write_text(
            json.dumps(report.to_dict(), ensure_ascii=False, indent=2) + "\n",
            encoding="utf-8",
            errors="backslashreplace",  # a path may not be UTF-8
        )
