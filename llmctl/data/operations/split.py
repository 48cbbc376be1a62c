"""Split of a source into train and eval files by the hash of the prompt."""

from pathlib import Path

from llmctl.data.digests import is_held_out, prompt_key
from llmctl.data.io.sources import DataSource, refuse_output_in_source
from llmctl.data.io.validating_reader import ReadOptions, ValidatingReader
from llmctl.data.io.writer import RowWriter
from llmctl.data.operations.convert import WriteSummary
from llmctl.data.rows.row_errors import DataError
from llmctl.errors import ConfigError
from llmctl.types import ProgressCallback, ignore_progress


def split_rows(
    source: DataSource,
    train: Path,
    eval: Path,
    *,
    fraction: float,
    seed: int = 0,
    options: ReadOptions,
    overwrite: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> WriteSummary:
    """Write every row, unchanged, to the train or the eval file.

    Args:
        fraction: share of prompts that go to eval, from 0 to 1.

    Raises:
        BadRowsError: rows are invalid and `options.on_error` is `fail`; nothing is written.
        DataError: one side would have no rows.
        ConfigError, DataError: as `read_rows` and `RowWriter`.
    """
    if train == eval:
        raise ConfigError(f"train and eval would both be written to {train}", hint="name two files")
    refuse_output_in_source(source, train, eval)
    reader = ValidatingReader(source, options, progress)
    with (
        RowWriter(train, overwrite=overwrite) as train_rows,
        RowWriter(eval, overwrite=overwrite) as eval_rows,
    ):
        for row in reader:
            held_out = is_held_out(prompt_key(row.example), fraction, seed)
            (eval_rows if held_out else train_rows).write(row.value)
        reader.raise_if_failed()
        if not train_rows.rows or not eval_rows.rows:
            side = "eval" if train_rows.rows else "train"
            total = train_rows.rows + eval_rows.rows
            raise DataError(
                f"none of {total:,} rows goes to {side} with a fraction of {fraction}",
                hint="change --fraction or --seed, or add rows with other prompts",
            )
    files = ((train, train_rows.rows), (eval, eval_rows.rows))
    return WriteSummary(reader.rows, reader.bad_rows, files, reader.log)
