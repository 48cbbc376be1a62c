"""`llmctl models merge`: make an adapter and its model one model."""

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
        typer.Option("--base", help="Merge into this model.  [default: the one it was taught on]"),
    ] = None,
    dtype: Annotated[
        Literal["bfloat16", "float16", "float32"],
        typer.Option("--dtype", help="Number type of the merged weights."),
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
            help="Compare the merged model with base and adapter, and keep it only if they agree.",
        ),
    ] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what llmctl merged there before.")
    ] = False,
    as_json: options.JsonOpt = False,
) -> None:
    """Merge an adapter into its model, for use without the adapter.

    The original weights are read layer by layer, computed in float32 and written anew; then the
    result is compared with base and adapter on a few texts. What is in the way of that is said
    before anything is written, and a merge that went wrong leaves nothing behind.
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
    merged, compared = report.merged, report.comparison
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
    if compared is None:
        return lines
    difference = compared.merged_loss - compared.adapter_loss
    lines["logits"] = (
        f"off by {compared.largest:.3g} at most, {compared.relative:.2%} of their length "
        f"(the adapter moves them by {compared.effect:.1%}; limit {compared.limit:.2%})"
    )
    lines["loss"] = (
        f"{compared.merged_loss:.4f}, and {compared.adapter_loss:.4f} of base and adapter "
        f"(difference {difference:+.4f}), on {compared.tokens} tokens"
    )
    return lines
