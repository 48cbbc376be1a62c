"""The service of `llmctl models merge`: merge an adapter, compare, export, describe."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from llmctl.engine.chat.template import ChatTemplate
from llmctl.engine.loading.load import read_tokenizer
from llmctl.engine.memory.estimate import format_gib
from llmctl.engine.models import adapter_metadata, resolve
from llmctl.engine.models.provenance import (
    BaseModelRef,
    Provenance,
    check_chat_template,
    describe_base_mismatch,
)
from llmctl.engine.models.resolved import ResolvedModel
from llmctl.engine.models.weight_files import model_entries
from llmctl.errors import ConfigError, LlmctlError, ModelLoadError
from llmctl.export.gguf import check_gguf_supported, write_gguf
from llmctl.export.merge import MergeDType, MergedWeights, write_merged_weights
from llmctl.export.ollama import write_modelfile
from llmctl.export.output_folder import check_output_folder, copy_side_files, staged_folder
from llmctl.export.verify import MergeComparison, check_memory, compare_merged_logits
from llmctl.train.card import FinetuneCard
from llmctl.types import ModelSpec, ProgressCallback, ignore_progress

_BYTES: dict[MergeDType, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


class MergeFailedError(LlmctlError):
    """The merged model differs from base and adapter; it is deleted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """Options of `llmctl models merge`."""

    adapter: str
    """Folder of the adapter."""
    output: Path
    base: str | None = None
    """Model to merge into, in place of the one that the adapter names."""
    dtype: MergeDType = "bfloat16"
    verify: bool = True
    gguf: bool = False
    """Also write one GGUF file."""
    ollama: bool = False
    """Also write a Modelfile."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class MergeReport:
    """Result of a merge."""

    folder: Path
    base: str
    merged: MergedWeights
    comparison: MergeComparison | None
    gguf: str | None
    """Name of the GGUF file in the folder."""
    notes: tuple[str, ...]


def merge(options: MergeOptions, progress: ProgressCallback = ignore_progress) -> MergeReport:
    """Merge an adapter into a new model folder, atomically.

    Raises:
        ConfigError: it is not an adapter, the folder must not be written, or the adapter was
            trained on another model or with another chat template.
        ModelNotFoundError, ModelLoadError: the base was found, or its original weights.
        OutOfMemoryError: the model does not fit into memory for the comparison.
        UnsupportedError: the model cannot be written as GGUF.
        MergeFailedError: the merged model differs from base and adapter.
    """
    output = Path(os.path.abspath(options.output))
    check_output_folder(output, overwrite=options.overwrite)
    resolved = _resolve(options, progress)
    base, adapter = resolved.full_model.path, resolved.path
    notes = _check_provenance(options, resolved)
    if options.gguf:
        check_gguf_supported(base)
    if options.verify:
        check_memory(base)
    _check_disk(options, output, base)
    with staged_folder(output, overwrite=options.overwrite) as folder:
        copy_side_files(base, adapter, folder)
        merged = write_merged_weights(base, adapter, folder, options.dtype, progress)
        comparison = None
        if options.verify:
            comparison = compare_merged_logits(base, adapter, folder, options.dtype, progress)
            _require_equal(comparison, options)
        gguf = f"{folder.name}.gguf" if options.gguf else None
        if gguf is not None:
            write_gguf(folder, folder / gguf, progress)
        if options.ollama:
            write_modelfile(folder, gguf)
        _write_provenance_and_card(folder, resolved, comparison)
    return MergeReport(
        folder=output,
        base=resolved.full_model.model_id,
        merged=merged,
        comparison=comparison,
        gguf=gguf,
        notes=notes,
    )


def _resolve(options: MergeOptions, progress: ProgressCallback) -> ResolvedModel:
    """Resolve adapter and base; the base is downloaded if needed.

    Raises:
        ConfigError: the folder is not an adapter.
    """
    folder = Path(options.adapter).expanduser()
    if not folder.is_dir() or not adapter_metadata.is_adapter(folder):
        raise ConfigError(
            f"{options.adapter} is not an adapter folder: "
            f"{adapter_metadata.ADAPTER_CONFIG} is missing",
            hint="name a folder written by `llmctl finetune` or PEFT's save_pretrained()",
        )
    if options.base is None:
        return resolve.resolve_model(options.adapter, progress=progress)
    base = resolve.resolve_model(options.base, progress=progress)
    return ResolvedModel(
        folder.resolve().name, folder.absolute(), None, "local", None, base.full_model
    )


def _check_provenance(options: MergeOptions, resolved: ResolvedModel) -> tuple[str, ...]:
    """Compare base and chat template with those of the training; return notes.

    Raises:
        ConfigError: they differ, and no `--base` was given.
        ModelLoadError: the base is a GGUF file.
    """
    if resolved.full_model.gguf_file is not None:
        raise ModelLoadError(
            f"{resolved.full_model.model_id} is a GGUF file, and merging needs the original "
            "weights",
            hint="name the model it was converted from with --base MODEL",
        )
    provenance = Provenance.read(resolved.path)
    if provenance is None:
        return (
            f"{resolved.model_id} has no llmctl.json: the weights it was trained on are unknown",
        )
    tokenizer = read_tokenizer(ModelSpec(options.adapter), resolved)
    check_chat_template(resolved.path, ChatTemplate.of(tokenizer).fingerprint)
    mismatch = describe_base_mismatch(provenance.base, resolved.full_model, resolved.model_id)
    if mismatch is None:
        return ()
    if options.base is None:
        raise ConfigError(
            mismatch, hint=f"--base {resolved.full_model.model_id} merges into these weights anyway"
        )
    return (mismatch,)


def _check_disk(options: MergeOptions, output: Path, base: Path) -> None:
    count = sum(entry.parameters for entry in model_entries(base).values())
    needed = count * _BYTES[options.dtype] * (2 if options.gguf else 1)
    existing = next(parent for parent in output.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ConfigError(
            f"the merged model needs {format_gib(needed)}, "
            f"and {existing} has {format_gib(free)} free",
            hint="choose a folder on another disk",
        )


def _require_equal(comparison: MergeComparison, options: MergeOptions) -> None:
    if comparison.good:
        return
    precision = ""
    if options.dtype != "float32":
        precision = "; --dtype float32 keeps changes that are too small for fewer bits"
    raise MergeFailedError(
        f"the merged model differs from base and adapter: its logits differ by "
        f"{comparison.relative:.2%} (limit {comparison.limit:.2%}; the adapter changes them by "
        f"{comparison.effect:.2%}), and its loss is {comparison.merged_loss:.4f} instead of "
        f"{comparison.adapter_loss:.4f}; the merged model was deleted",
        hint=f"serve the adapter itself: llmctl serve --model {options.adapter}{precision}",
    )


def _write_provenance_and_card(
    folder: Path, resolved: ResolvedModel, comparison: MergeComparison | None
) -> None:
    """Write `llmctl.json` and the model card."""
    provenance = Provenance.read(resolved.path)
    if provenance is None:
        provenance = Provenance(BaseModelRef.of(resolved.full_model), None, "lora")
    provenance.write(folder)
    metrics = {}
    if comparison is not None:
        metrics = {
            "largest logit difference from base and adapter": comparison.largest,
            "loss on sample texts, merged model": comparison.merged_loss,
            "loss on sample texts, base and adapter": comparison.adapter_loss,
        }
    FinetuneCard(folder.name, "merged", provenance, metrics).write(folder)
