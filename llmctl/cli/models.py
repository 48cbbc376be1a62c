"""The `llmctl models` commands: list, show, download, delete and merge models."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmctl.cli import models_merge, options, render

if TYPE_CHECKING:
    from llmctl.engine.models.adapter_metadata import AdapterMetadata
    from llmctl.engine.models.inventory import ModelInfo

app = typer.Typer(no_args_is_help=False, rich_markup_mode=None)

NameArg = Annotated[
    str, typer.Argument(help="Catalogue name, hub id (owner/name[@revision]), folder or file.")
]


@app.callback(invoke_without_command=True)
def models(context: typer.Context) -> None:
    """Manage models: list, show, pull, rm, merge."""
    if context.invoked_subcommand is None:
        render.print_help(context)


@app.command("list")
def list_(
    folder: Annotated[
        Path | None, typer.Argument(help="List the models and adapters in this folder instead.")
    ] = None,
    as_json: options.JsonOpt = False,
) -> None:
    """List the models of the catalogue, and all other models on this machine."""
    from llmctl.services import models as service

    cards = service.list_models(folder)
    if as_json:
        render.print_json([_to_dict(card) for card in cards])
        return
    render.print_table(
        ("NAME", "DOWNLOADED", "SIZE", "PARAMETERS", "NOTE"),
        [
            (
                card.model_id,
                {"downloaded": "yes", "partial": "partly", "available": "no"}[card.state],
                _size(card.disk_bytes),
                _parameters(card.parameters),
                card.note or card.repo or "-",
            )
            for card in cards
        ],
    )


@app.command()
def show(name: NameArg, as_json: options.JsonOpt = False) -> None:
    """Show a model or an adapter, and the memory of its weights for each --quant."""
    from llmctl.services import models as service

    card = service.show(name)
    if as_json:
        render.print_json(_to_dict(card))
        return
    properties = {
        "name": card.model_id,
        "state": card.state,
        **_adapter(card.adapter),
        "hub id": card.repo,
        "source": card.source,
        "revision": card.revision,
        "path": None if card.path is None else str(card.path),
        "size": _size(card.disk_bytes),
        "architecture": card.architecture,
        "parameters": _parameters(card.parameters),
        "context": None if card.context_length is None else f"{card.context_length:,} tokens",
        "vocabulary": None if card.vocab_size is None else f"{card.vocab_size:,} tokens",
        "dtype": card.dtype,
        "chat template": {True: "yes", False: "no", None: None}[card.has_chat_template],
        "responses": str(card.response_formats) if card.response_formats else None,
        "licence": card.licence,
        "note": card.note,
        "recommended sampling": ", ".join(f"{n} {v}" for n, v in card.sampling.items()),
        "runs": _execution(card),
        "weights in memory": ", ".join(
            f"{render.format_bytes(count)} ({quant})"
            for quant, count in (card.weight_memory or {}).items()
        ),
    }
    render.print_fields(
        {label: value for label, value in properties.items() if value and value != "-"}
    )


@app.command()
def pull(name: NameArg, allow_pickle: options.PickleOpt = False) -> None:
    """Download a model."""
    from llmctl.services import models as service

    with render.show_progress() as progress:
        card = service.pull(name, progress, allow_pickle=allow_pickle)
    render.print_note(f"{card.model_id} is downloaded: {card.path} ({_size(card.disk_bytes)})")


@app.command()
def rm(name: NameArg) -> None:
    """Delete a downloaded model."""
    from llmctl.services import models as service

    removed = service.remove(name)
    for path in removed.paths:
        render.print_note(f"deleted {path}")
    render.print_note(
        f"{removed.model_id} is deleted; {render.format_bytes(removed.freed_bytes)} freed"
    )


app.command()(models_merge.merge)


def _execution(card: "ModelInfo") -> str | None:
    if card.execution_path is None:
        return card.execution_reason or None
    return f"{card.execution_path} ({card.execution_reason})"


def _adapter(metadata: "AdapterMetadata | None") -> dict[str, str | None]:
    if metadata is None:
        return {}
    return {
        "adapter": f"{metadata.kind}, rank {metadata.rank}, alpha {metadata.alpha}",
        "base model": metadata.base,
        "target modules": ", ".join(metadata.targets),
        "trainable": _parameters(metadata.parameters),
        "method": metadata.method,
        "data": metadata.data,
        "created": metadata.created,
        "run": metadata.run_id,
        "template": metadata.template,
    }


def _to_dict(card: "ModelInfo") -> dict[str, Any]:
    """Return a model card as JSON values."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(card).items()
    }


def _size(count: int | None) -> str:
    return "-" if count is None else render.format_bytes(count)


def _parameters(count: int | None) -> str:
    if count is None:
        return "-"
    return f"{count / 1e9:.1f} B" if count >= 1e9 else f"{count / 1e6:.0f} M"
