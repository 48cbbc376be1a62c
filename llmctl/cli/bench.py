"""The `llmctl bench` command: measure the speed of a model or of servers."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from llmctl.cli import options, render
from llmctl.cli.config_options import given_fields, resolve_config, with_config_options
from llmctl.config.bench import BenchConfig, BenchEngine, BenchServer
from llmctl.config.settings import ResolvedConfig
from llmctl.errors import ConfigError, LlmctlError
from llmctl.types import ApiEndpoint

if TYPE_CHECKING:
    from llmctl.bench.report import BenchReport
    from llmctl.bench.stats import LevelResult


@with_config_options(BenchConfig)
def bench(
    context: typer.Context,
    *,
    config: options.LongConfigFileOpt = None,
    as_json: options.JsonOpt = False,
    **values: Any,
) -> None:
    """Measure the latency and throughput of a model at several concurrencies.

    Without --base-url the model is loaded in this process and measured without HTTP. With it,
    --model is the name of the model on the server: by default the first one that it lists.

    ttft is the time to first token and itl the inter-token latency, in milliseconds; each and sum
    are output tokens per second of one stream and of all; prefill is prompt tokens per second.
    """
    resolved = resolve_config(BenchConfig, context, values, config)
    chosen = resolved.values
    _check(resolved)
    sides = _sides(resolved)
    plot = None if chosen.plot is None else Path(chosen.plot)

    from llmctl.services import bench as service  # openai begins here, and torch without a URL

    with render.show_progress() as progress:
        session = service.open_session(chosen, sides, progress)
    with closing(session):
        for side in session.sides:
            render.print_note(f"{side.label}: {side.model}, {side.where}{side.details}")
        levels: list[LevelResult] = []
        complete = False
        try:
            with render.show_progress() as progress:
                for level in session.levels(progress):
                    levels.append(level)
            complete = True
        finally:
            # Show the completed levels after Ctrl-C or a failure too.
            report = session.report(levels, complete=complete)
            if levels:
                _print_report(report, as_json, plot)
    if failed := report.failed_sides():
        raise LlmctlError(f"{' and '.join(side.label for side in failed)} answered no request")


def _sides(resolved: ResolvedConfig[BenchConfig]) -> list[BenchServer | BenchEngine]:
    chosen = resolved.values
    urls = [chosen.base_url] if chosen.vs is None else [chosen.base_url, chosen.vs]
    labels = [*chosen.label, *map(_host, urls[len(chosen.label) :])]
    pids = iter(chosen.pid)
    sides: list[BenchServer | BenchEngine] = []
    if chosen.base_url is None:
        sides.append(BenchEngine(chosen.model_spec(), labels[0]))
    else:
        name = chosen.model if "model" in given_fields(resolved) else None
        sides.append(
            BenchServer(
                ApiEndpoint(chosen.base_url, name, chosen.api_key), labels[0], next(pids, None)
            )
        )
    if chosen.vs is not None:
        sides.append(
            BenchServer(
                ApiEndpoint(chosen.vs, chosen.vs_model, chosen.api_key), labels[1], next(pids, None)
            )
        )
    return sides


def _print_report(report: "BenchReport", as_json: bool, plot: Path | None) -> None:
    from llmctl.bench.table import summary_table

    if as_json:
        render.print_json(report.to_dict())
    else:
        render.print_table(*summary_table(report))
    for line in report.notes():
        render.print_note(f"note: {line}")
    if plot is not None:
        from llmctl.bench.plot import draw_report

        draw_report(report, plot)
        render.print_note(f"written: {plot}")


def _check(resolved: ResolvedConfig[BenchConfig]) -> None:
    """Reject options that would be ignored, or would fail only after the measurement.

    Raises:
        ConfigError: an option contradicts another one.
    """
    chosen, given = resolved.values, given_fields(resolved)
    urls = [chosen.base_url] if chosen.vs is None else [chosen.base_url, chosen.vs]
    servers = [url for url in urls if url is not None]
    if len({_host(url) for url in urls}) < len(urls):
        raise ConfigError(
            "--vs is the same server as --base-url, which would cache the prompts",
            hint="start a second one on another port",
        )
    if chosen.base_url is not None:
        options.reject_load_options(resolved)
    if "api_key" in given and not servers:
        raise ConfigError("--api-key without a server", hint="add --base-url or --vs")
    if "vs_model" in given and chosen.vs is None:
        raise ConfigError("--vs-model without --vs")
    if len(chosen.pid) > len(servers):
        raise ConfigError(f"{len(chosen.pid)} times --pid for {len(servers)} servers")
    if len(chosen.label) > len(urls):
        raise ConfigError(
            f"{len(chosen.label)} times --label for {len(urls)} sides", hint="see --vs"
        )
    if chosen.plot is not None:
        plot = Path(chosen.plot)
        if plot.suffix.lower() != ".png" or not plot.parent.is_dir():
            raise ConfigError(f"--plot {plot} is not a .png file in an existing folder")


def _host(url: str | None) -> str:
    """Return the default label of a side."""
    if url is None:
        return "llmctl"
    return url.rstrip("/").removesuffix("/v1").removeprefix("http://").removeprefix("https://")
