"""`llmctl bench`: how fast is the engine, or a server, or one server beside another?"""

from pathlib import Path
from random import SystemRandom
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmctl.bench.config import BenchConfig, BenchEngine, BenchServer
from llmctl.bench.prompts import PROMPT_SETS, PromptSet
from llmctl.cli import options, render
from llmctl.errors import ConfigError, LlmctlError

if TYPE_CHECKING:
    from llmctl.bench.report import BenchReport
    from llmctl.bench.stats import LevelResult

DEFAULT = BenchConfig()
ROUNDS_OF_TWO = 3
"""Rounds when two servers are compared: the median of three is not the one that was disturbed."""


def bench(
    context: typer.Context,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", help="Measure this OpenAI-compatible server, over HTTP."),
    ] = None,
    vs: Annotated[
        str | None, typer.Option("--vs", help="Measure this server too, in turns with the first.")
    ] = None,
    model: options.ModelOpt = options.DEFAULT_MODEL_NAME,
    vs_model: Annotated[
        str | None, typer.Option("--vs-model", help="The model's name at --vs.")
    ] = None,
    prompts: Annotated[
        Literal[PromptSet, "all"],
        typer.Option(
            "--prompts",
            help="short chat; long: 1,000 words and more; shared: long, all with the same "
            "beginning; multiturn: a second turn after a long first.",
        ),
    ] = "short",
    concurrency: Annotated[
        str, typer.Option("--concurrency", "-c", help="Streams at a time, level after level.")
    ] = ",".join(map(str, DEFAULT.concurrency)),
    requests: Annotated[
        int, typer.Option("--requests", min=1, help="Conversations per stream at each level.")
    ] = DEFAULT.requests,
    warmup: Annotated[
        int, typer.Option("--warmup", min=0, help="Conversations first that are not measured.")
    ] = DEFAULT.warmup,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            min=1,
            help="Measure everything so often, and show medians.  "
            f"[default: {DEFAULT.rounds}, with --vs {ROUNDS_OF_TWO}]",
        ),
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, help="Tokens of every reply.")
    ] = DEFAULT.max_tokens,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", min=0, help="0 takes the likeliest token.")
    ] = DEFAULT.temperature,
    ignore_eos: Annotated[
        bool,
        typer.Option(
            "--ignore-eos/--no-ignore-eos",
            help="Ask for replies of equal length. OpenAI's own servers refuse the field.",
        ),
    ] = DEFAULT.ignore_eos,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            help="Same seed, same prompts; a server that has seen them may remember.  "
            "[default: a new one]",
        ),
    ] = None,
    api_key: options.ApiKeyOpt = None,
    pid: Annotated[
        list[int] | None,
        typer.Option("--pid", help="Process of the server, to watch its memory; then of --vs."),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="What to call the first side; repeated, the second."),
    ] = None,
    as_json: options.JsonOpt = False,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the figures into this PNG file.")
    ] = None,
    quant: options.QuantOpt = "none",
    device: options.DeviceOpt = "auto",
    dtype: options.DTypeOpt = "auto",
    adapter: options.AdapterOpt = None,
    chat_template: options.TemplateOpt = None,
    trust_remote_code: options.TrustOpt = False,
    allow_pickle: options.PickleOpt = False,
) -> None:
    """Measure how fast a model answers one and many at a time.

    Without --base-url the model is loaded here and asked without HTTP. With it, --model is the
    server's own name of the model: by default the first one that the server lists.

    ttft is the time to the first token, itl the time between tokens, in milliseconds; each and
    sum are output tokens per second of one stream and of all; prefill is prompt tokens per second.
    """
    plan = BenchConfig(
        prompts=PROMPT_SETS if prompts == "all" else (prompts,),
        concurrency=_levels(concurrency),
        requests=requests,
        warmup=warmup,
        rounds=rounds if rounds is not None else ROUNDS_OF_TWO if vs else DEFAULT.rounds,
        max_tokens=max_tokens,
        temperature=temperature,
        ignore_eos=ignore_eos,
        seed=seed if seed is not None else SystemRandom().randrange(10**6),
    )
    given = options.given_options(context)
    urls = [base_url] if vs is None else [base_url, vs]
    _check(urls, given, pids=pid or [], labels=label or [], plot=plot)
    labels = [*(label or []), *map(_host, urls[len(label or []) :])]
    pids = iter(pid or [])
    sides: list[BenchServer | BenchEngine] = []
    if base_url is None:
        spec = options.model_spec(
            model, quant, device, dtype, adapter, chat_template, trust_remote_code, allow_pickle
        )
        sides.append(BenchEngine(spec, labels[0]))
    else:
        name = model if "model" in given else None
        sides.append(BenchServer(base_url, labels[0], name, api_key, next(pids, None)))
    if vs is not None:
        sides.append(BenchServer(vs, labels[1], vs_model, api_key, next(pids, None)))

    from llmctl.services import bench as service  # openai begins here, and torch without a URL

    with render.show_progress() as progress:
        session = service.open_session(plan, sides, progress)
    with session:
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
            # After Ctrl-C or a failure too: what was measured was measured.
            report = session.report(levels, complete=complete)
            if levels:
                _show(report, as_json, plot)
    if silent := report.failed_sides():
        raise LlmctlError(f"{' and '.join(side.label for side in silent)} answered no request")


def _show(report: "BenchReport", as_json: bool, plot: Path | None) -> None:
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
        render.print_note(f"drawn: {plot}")


def _check(
    urls: list[str | None],
    given: frozenset[str],
    *,
    pids: list[int],
    labels: list[str],
    plot: Path | None,
) -> None:
    """Refuse what would be ignored, and what would fail only after everything was measured."""
    servers = [url for url in urls if url is not None]
    if len({_host(url) for url in urls}) < len(urls):
        raise ConfigError(
            "--vs is the same server as --base-url, which would remember the first side's prompts",
            hint="start a second one on another port",
        )
    if urls[0] is not None:
        options.reject_local_options(given)
    if "api_key" in given and not servers:
        raise ConfigError("--api-key without a server", hint="add --base-url or --vs")
    if "vs_model" in given and len(urls) < 2:
        raise ConfigError("--vs-model without --vs")
    if len(pids) > len(servers):
        raise ConfigError(f"{len(pids)} times --pid for {len(servers)} servers")
    if len(labels) > len(urls):
        raise ConfigError(f"{len(labels)} times --label for {len(urls)} sides", hint="see --vs")
    if plot is not None and (plot.suffix.lower() != ".png" or not plot.parent.is_dir()):
        raise ConfigError(f"--plot {plot} is no .png file in a folder that exists")


def _levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ConfigError(f"--concurrency is {text!r}", hint="such as --concurrency 1,2,4") from (
            None
        )


def _host(url: str | None) -> str:
    """Name a side by where it is."""
    if url is None:
        return "llmctl"
    return url.rstrip("/").removesuffix("/v1").removeprefix("http://").removeprefix("https://")
