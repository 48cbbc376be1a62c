"""The `llmctl models merge` command: merge an adapter into its base model."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from llmctl.cli import options, render

if TYPE_CHECKING:
    from llmctl.services.merge import MergeReport


def merge(
    adapter: Annotated[str, typer.Argument(help="Folder of the adapter.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the merged model.")],
    base: Annotated[
        str | None,
        typer.Option(
            "--base", help="Merge into this model.  [default: the model it was trained on]"
        ),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        typer.Option("--dtype", help="Data type of the merged weights."),
    ] = "bfloat16",
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Also write one GGUF file, for llama.cpp and Ollama.")
    ] = False,
    ollama: Annotated[
        bool, typer.Option("--ollama", help="Also write a Modelfile for `ollama create`.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare the merged model with base and adapter; delete it if they differ.",
        ),
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier merge in --output.")
    ] = False,
    as_json: options.JsonOpt = False,
) -> None:
    """Merge an adapter into its base model, for use without the adapter.

    The weights are merged layer by layer in float32; then the logits of the merged model are
    comparison with those of base and adapter on a few texts. Errors are reported before anything is
    written, and a failed merge leaves no files.
    """
    from llmctl.services import merge as service  # torch begins here

    chosen = service.MergeOptions(
        adapter=adapter,
        output=output,
        base=base,
        dtype=dtype,
        verify=verify,
        gguf=gguf,
        ollama=ollama,
        overwrite=overwrite,
    )
    with render.show_progress() as progress:
        report = service.merge(chosen, progress)
    for note in report.notes:
        render.print_note(f"note: {note}")
    if as_json:
        render.print_json(asdict(report) | {"folder": str(report.folder)})
        return
    render.print_fields(_lines(report))


def _lines(report: "MergeReport") -> dict[str, str]:
    merged, comparison = report.merged, report.comparison
    lines = {
        "merged": f"{report.folder} ({render.format_bytes(merged.bytes)})",
        "base": report.base,
    }
    if merged.layers:
        lines["layers"] = f"{merged.layers:,} changed"
    if merged.whole:
        lines["replaced"] = ", ".join(merged.whole)
    if report.gguf is not None:
        lines["GGUF"] = report.gguf
    if comparison is None:
        return lines
    difference = comparison.merged_loss - comparison.adapter_loss
    lines["logits"] = (
        f"largest difference {comparison.largest:.3g}, {comparison.relative:.2%} of their norm "
        f"(the adapter changes them by {comparison.effect:.1%}; limit {comparison.limit:.2%})"
    )
    lines["loss"] = (
        f"{comparison.merged_loss:.4f}, and {comparison.adapter_loss:.4f} for base and adapter "
        f"(difference {difference:+.4f}), on {comparison.tokens} tokens"
    )
    return lines
