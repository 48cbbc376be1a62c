"""Service of `llmctl data clean`: read the settings, apply the rules, write the results."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from llmctl.config.model import ModelConfig
from llmctl.config.settings import ConfigSource
from llmctl.data.cleaner import clean_dataset
from llmctl.data.cleaning.pipeline.chunk import CleanJob
from llmctl.data.cleaning.pipeline.corpus_rules import CleanedDataset
from llmctl.data.cleaning.report.outputs import CleanOutputs, write_outputs
from llmctl.data.cleaning.report.report import CleanReport, RowExplanation
from llmctl.data.cleaning.report.summarize import build_report as report_on
from llmctl.data.cleaning.report.summarize import explain_row
from llmctl.data.cleaning.rule_config import RuleOptions, resolve_rules
from llmctl.data.cleaning.rules.language import check_codes
from llmctl.data.cleaning.rules.lengths import TemplateTokenCounter, TokenCounter
from llmctl.data.cleaning.settings import CleanSettings
from llmctl.data.digests import dataset_ref
from llmctl.data.io.sources import refuse_output_in_source
from llmctl.data.io.validating_reader import ReadOptions
from llmctl.monitor import Tracker, open_tracker, tracked
from llmctl.types import ModelSpec, ProgressCallback, RunStart, ignore_progress


@dataclass(frozen=True, slots=True)
class CleanRequest:
    """The files to clean, and the settings."""

    files: Sequence[str]
    settings: CleanSettings
    options: ReadOptions
    spec: ModelSpec | None = None
    """The model whose tokens are counted; `None` takes the default model if a rule needs one."""
    workers: int | None = None
    """Processes; `None` takes one per core, and a single one for a small dataset."""


def read_settings(choices: RuleOptions, file: ConfigSource | None = None) -> CleanSettings:
    """Merge the settings of a file with the options.

    Raises:
        ConfigError: one message with all errors.
    """
    settings = resolve_rules(choices, file)
    if settings.language.is_on:
        check_codes(settings.language.keep)
    return settings


def clean(
    request: CleanRequest,
    output: Path,
    *,
    overwrite: bool = False,
    track: bool = False,
    warn: Callable[[str], None],
    progress: ProgressCallback = ignore_progress,
) -> tuple[CleanReport, CleanOutputs]:
    """Clean files into one; write the report and the removed rows beside it.

    Args:
        track: record the run; loading MLflow takes a few seconds.
        warn: called with a line when the tracking store fails.

    Raises:
        ConfigError: an option, a file or a column cannot be used; nothing is written.
        BadRowsError: rows cannot be read and must not be skipped.
        ModelNotFoundError: no source has the model whose tokens are counted.
    """
    outputs = CleanOutputs.beside(output.expanduser())
    refuse_output_in_source(request.files, outputs.rows)
    outputs.check(overwrite=overwrite)
    settings = request.settings.model_dump(mode="json", by_alias=True)
    start = RunStart("clean", model=request.spec.model if request.spec else "", params=settings)
    with (
        tracked(open_tracker(start, enabled=track, warn=warn, progress=progress)) as tracker,
        _cleaned(request, outputs.rows.parent, progress) as (dataset, counter),
    ):
        report = report_on(dataset, _source_name(request), str(output), counter)
        write_outputs(dataset, report, outputs, overwrite=overwrite, progress=progress)
        if track:
            _log_run(tracker, request, report, outputs)
    return report, outputs


def preview(request: CleanRequest, progress: ProgressCallback = ignore_progress) -> CleanReport:
    """Return the report of `clean` without writing anything.

    Raises:
        ConfigError, BadRowsError, ModelNotFoundError: as `clean`.
    """
    with _cleaned(request, None, progress) as (dataset, counter):
        return report_on(dataset, _source_name(request), None, counter)


def explain(
    request: CleanRequest, line: int, progress: ProgressCallback = ignore_progress
) -> RowExplanation:
    """Return the verdict of every rule on one row; nothing is written.

    Raises:
        ConfigError, BadRowsError, ModelNotFoundError: as `clean`; or there is no row at that line.
    """
    with _cleaned(request, None, progress) as (dataset, counter):
        return explain_row(dataset, line, counter)


def load_token_counter(spec: ModelSpec) -> TokenCounter:
    """Load the token counter of a model. Every process that counts calls this once.

    Raises:
        ModelNotFoundError: no source has the model.
    """
    from llmctl.engine.chat.template import ChatTemplate
    from llmctl.engine.loading import load
    from llmctl.engine.models import resolve

    found = resolve.resolve_model(
        spec.model, revision=spec.revision, allow_pickle=spec.allow_pickle
    )
    return TemplateTokenCounter(
        ChatTemplate.of(load.read_tokenizer(spec, found), spec.chat_template)
    )


@contextmanager
def _cleaned(
    request: CleanRequest, folder: Path | None, progress: ProgressCallback
) -> Iterator[tuple[CleanedDataset, TokenCounter | None]]:
    spec = request.spec
    if spec is None and request.settings.length.is_on:
        spec = ModelConfig().model_spec()
    # First in this process: errors of other processes are reported less clearly.
    counter = None if spec is None else load_token_counter(spec)
    job = CleanJob(
        request.settings,
        request.options.columns,
        request.options.format,
        None if spec is None else partial(load_token_counter, spec),
    )
    with clean_dataset(
        request.files,
        job,
        on_error=request.options.on_error,
        max_kept_errors=request.options.max_kept_errors,
        folder=folder,
        workers=request.workers,
        progress=progress,
    ) as dataset:
        yield dataset, counter


def _source_name(request: CleanRequest) -> str:
    return ", ".join(request.files)


def _log_run(
    tracker: Tracker, request: CleanRequest, report: CleanReport, outputs: CleanOutputs
) -> None:
    source = dataset_ref(request.files, report.digest_before, report.before.rows, report.formats)
    output = dataset_ref(outputs.rows, report.digest_after, report.after.rows, report.formats)
    tracker.log_dataset(source, "source")
    tracker.log_dataset(output, "output")
    tracker.log_metrics(
        {
            "rows/before": report.before.rows,
            "rows/after": report.after.rows,
            "rows/changed": report.changed,
            "rows/removed": report.removed,
            "rows/unreadable": report.unreadable,
            **{f"hits/{rule.name}": rule.hits for rule in report.rules},
        }
    )
    tracker.log_artifact(outputs.report)
