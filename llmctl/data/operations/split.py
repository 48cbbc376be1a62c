"""On which side of train and eval does an example fall?"""

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
    """Write every row, as it is, to one of two files.

    Raises:
        BadRowsError: there are problems and `options.on_error` is `fail`; nothing is written.
        DataError: one side would have no row.
        ConfigError, DataError: as `read_training_data` and `RowWriter`.
    """
    if train == eval:
        raise ConfigError(f"both sides would be written to {train}", hint="name two files")
    refuse_output_in_source(source, train, eval)
    intake = ValidatingReader(source, options, progress)
    with (
        RowWriter(train, overwrite=overwrite) as train_rows,
        RowWriter(eval, overwrite=overwrite) as eval_rows,
    ):
        for row in intake:
            kept = is_held_out(prompt_key(row.example), fraction, seed)
            (eval_rows if kept else train_rows).write(row.value)
        intake.raise_if_failed()
        if not train_rows.rows or not eval_rows.rows:
            side = "eval" if train_rows.rows else "train"
            whole = train_rows.rows + eval_rows.rows
            raise DataError(
                f"of {whole:,} rows none falls to {side} at a fraction of {fraction}",
                hint="another --fraction, another --seed, or more rows with different prompts",
            )
    files = ((train, train_rows.rows), (eval, eval_rows.rows))
    return WriteSummary(intake.rows, intake.bad_rows, files, intake.log)
