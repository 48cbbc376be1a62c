"""Every option that more than one command has, declared once."""

from pathlib import Path
from typing import Annotated

import typer

from llmctl.config import DEFAULT_MODEL
from llmctl.errors import ConfigError
from llmctl.types import (
    DEFAULT_SAMPLING,
    SAMPLING_RANGES,
    DType,
    ModelSpec,
    Quant,
    SamplingParams,
)

ModelOpt = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="LLMCTL_MODEL",
        help="Catalogue name, hub id (owner/name[@revision]), folder, or .gguf file.",
    ),
]
QuantOpt = Annotated[
    Quant,
    typer.Option(
        "--quant",
        envvar="LLMCTL_QUANT",
        help="Weights in 4 bits (NF4; on a CPU groups of 32) or 8 bits (LLM.int8).",
    ),
]
DeviceOpt = Annotated[
    str,
    typer.Option("--device", envvar="LLMCTL_DEVICE", help="auto, cpu, cuda, cuda:1 or mps."),
]
DTypeOpt = Annotated[DType, typer.Option("--dtype", help="Number type to compute in.")]
AdapterOpt = Annotated[
    str | None, typer.Option("--adapter", help="Folder of a LoRA adapter to put on the model.")
]
TemplateOpt = Annotated[
    Path | None,
    typer.Option("--chat-template", help="Jinja file used in place of the model's chat template."),
]
TrustOpt = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that the model brings along.")
]
PickleOpt = Annotated[
    bool, typer.Option("--allow-pickle", help="Also read .bin weights, which can run code.")
]


def _bounds(name: str) -> dict[str, float]:
    low, high = SAMPLING_RANGES[name]
    return {"min": low, "max": high}


MaxTokensOpt = Annotated[
    int | None,
    typer.Option("--max-tokens", min=1, help="Longest reply.  [default: what the context holds]"),
]
TemperatureOpt = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "-t",
        **_bounds("temperature"),
        help="0 always takes the likeliest token.  "
        f"[default: the model's, else {DEFAULT_SAMPLING.temperature}]",
    ),
]
TopPOpt = Annotated[
    float | None,
    typer.Option("--top-p", **_bounds("top_p"), help="Choose among this share of the likelihood."),
]
TopKOpt = Annotated[
    int | None, typer.Option("--top-k", min=0, help="Choose among so many tokens; 0 is all.")
]
SeedOpt = Annotated[int | None, typer.Option("--seed", help="Same seed, same text.")]
StopOpt = Annotated[
    list[str] | None, typer.Option("--stop", help="Text that ends the reply; may be repeated.")
]
TrackingUriOpt = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        metavar="URI",
        help="Where runs are kept: http://HOST:PORT or sqlite:///FILE.db.  "
        "[default: $MLFLOW_TRACKING_URI, else SQLite in llmctl's folder]",
    ),
]
BaseUrlOpt = Annotated[
    str | None,
    typer.Option(
        "--base-url",
        envvar="LLMCTL_BASE_URL",
        help="Ask this OpenAI-compatible server. --model is then its own name of the model.",
    ),
]
ApiKeyOpt = Annotated[
    str | None,
    typer.Option("--api-key", envvar="LLMCTL_API_KEY", help="Key of the server that is asked."),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

DEFAULT_MODEL_NAME = DEFAULT_MODEL

LOCAL_MODEL_OPTIONS = frozenset(
    {"quant", "device", "dtype", "adapter", "chat_template", "trust_remote_code", "allow_pickle"}
)
"""Options of a model in this process, which a server has chosen for itself."""


def given_options(context: typer.Context) -> frozenset[str]:
    """Return the parameters that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return frozenset(n for n, source in sources.items() if source and source.name == "COMMANDLINE")


def reject_local_options(names: frozenset[str]) -> None:
    """Refuse what only the server could choose, which would be ignored. Raises `ConfigError`."""
    if ours := sorted(names & LOCAL_MODEL_OPTIONS):
        listed = ", ".join("--" + name.replace("_", "-") for name in ours)
        raise ConfigError(f"{listed}: only the server at --base-url can choose that")


def model_spec(
    model: str,
    quant: Quant,
    device: str,
    dtype: DType,
    adapter: str | None,
    chat_template: Path | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> ModelSpec:
    """Gather the model options of a command."""
    return ModelSpec(
        model=model,
        quant=quant,
        device=device,
        dtype=dtype,
        adapter=adapter,
        chat_template=None if chat_template is None else str(chat_template),
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
    )


def sampling_params(
    max_tokens: int | None,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    stop: list[str] | None,
) -> SamplingParams:
    """Gather the sampling options of a command."""
    return SamplingParams(
        max_new_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        stop=tuple(stop) if stop else None,
    )
