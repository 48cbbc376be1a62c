"""The story of `llmctl models merge`: find base and adapter, merge, compare, write it all down."""

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
from llmctl.export.output_folder import check_output_folder, staged_folder
from llmctl.export.side_files import copy_side_files
from llmctl.export.verify import MergeComparison, check_memory, compare_merged_logits
from llmctl.train.card import FinetuneCard
from llmctl.types import ModelSpec, ProgressCallback, ignore_progress

_BYTES: dict[MergeDType, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


class MergeFailedError(LlmctlError):
    """The merged model does not say what base and adapter said; nothing of it is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """What to merge, and into what."""

    adapter: str
    """Its folder."""
    output: Path
    base: str | None = None
    """A model in place of the one that the adapter names."""
    dtype: MergeDType = "bfloat16"
    verify: bool = True
    gguf: bool = False
    """Also write one GGUF file."""
    ollama: bool = False
    """Also write a Modelfile."""
    overwrite: bool = False


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was made, and how true it is."""

    folder: Path
    base: str
    merged: MergedWeights
    comparison: MergeComparison | None
    gguf: str | None
    """Name of the GGUF file in the folder."""
    notes: tuple[str, ...]


def merge(options: MergeOptions, progress: ProgressCallback = ignore_progress) -> MergeReport:
    """Write base and adapter together as a model of its own, whole or not at all.

    Raises:
        ConfigError: it is no adapter, the folder must not be written, the adapter belongs on
            another model or learnt with another chat template.
        ModelNotFoundError, ModelLoadError: the base is not to be had, or not unquantised.
        OutOfMemoryError: the machine cannot hold the model to compare it.
        UnsupportedError: GGUF has no words for this model.
        MergeFailedError: the result says something else than base and adapter.
    """
    output = Path(os.path.abspath(options.output))
    check_output_folder(output, overwrite=options.overwrite)
    found = _find(options, progress)
    base, adapter = found.full_model.path, found.path
    notes = _check(options, found)
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
            _judge(comparison, options)
        gguf = f"{folder.name}.gguf" if options.gguf else None
        if gguf is not None:
            write_gguf(folder, folder / gguf, progress)
        if options.ollama:
            write_modelfile(folder, gguf)
        _describe(folder, found, comparison)
    return MergeReport(
        folder=output,
        base=found.full_model.model_id,
        merged=merged,
        comparison=comparison,
        gguf=gguf,
        notes=notes,
    )


def _find(options: MergeOptions, progress: ProgressCallback) -> ResolvedModel:
    """Find adapter and base; fetch the base if it is not on this machine."""
    folder = Path(options.adapter).expanduser()
    if not folder.is_dir() or not adapter_metadata.is_adapter(folder):
        raise ConfigError(
            f"{options.adapter} is no folder of an adapter: "
            f"it has no {adapter_metadata.ADAPTER_CONFIG}",
            hint="a folder that `llmctl finetune` wrote, or PEFT's save_pretrained()",
        )
    if options.base is None:
        return resolve.resolve_model(options.adapter, progress=progress)
    base = resolve.resolve_model(options.base, progress=progress)
    return ResolvedModel(
        folder.resolve().name, folder.absolute(), None, "local", None, base.full_model
    )


def _check(options: MergeOptions, found: ResolvedModel) -> tuple[str, ...]:
    """Compare base and template with those that the adapter learnt with; return what to know."""
    if found.full_model.gguf_file is not None:
        raise ModelLoadError(
            f"{found.full_model.model_id} is a GGUF file, and merging needs the original weights",
            hint="--base MODEL names the model that it was made from",
        )
    origin = Provenance.read(found.path)
    if origin is None:
        return (f"{found.model_id} has no llmctl.json: on which weights it learnt is not known",)
    tokenizer = read_tokenizer(ModelSpec(options.adapter), found)
    check_chat_template(found.path, ChatTemplate.of(tokenizer).fingerprint)
    differs = describe_base_mismatch(origin.base, found.full_model, found.model_id)
    if differs is None:
        return ()
    if options.base is None:
        raise ConfigError(
            differs, hint=f"--base {found.full_model.model_id} merges into these all the same"
        )
    return (differs,)


def _check_disk(options: MergeOptions, output: Path, base: Path) -> None:
    count = sum(entry.parameters for entry in model_entries(base).values())
    needed = count * _BYTES[options.dtype] * (2 if options.gguf else 1)
    existing = next(parent for parent in output.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ConfigError(
            f"the merged model takes {format_gib(needed)}, "
            f"and {existing} has {format_gib(free)} free",
            hint="choose a folder on another disk",
        )


def _judge(comparison: MergeComparison, options: MergeOptions) -> None:
    if comparison.good:
        return
    wider = ""
    if options.dtype != "float32":
        wider = ": --dtype float32 keeps changes that are too small for fewer bits"
    raise MergeFailedError(
        f"the merged model is not what base and adapter were: its logits are off by "
        f"{comparison.relative:.2%} of their length (limit {comparison.limit:.2%}; the adapter "
        f"itself moves them by {comparison.effect:.2%}), its loss is {comparison.merged_loss:.4f} "
        f"and was {comparison.adapter_loss:.4f}; nothing of it is kept",
        hint=f"the adapter itself serves as it is: llmctl serve --model {options.adapter}{wider}",
    )


def _describe(folder: Path, found: ResolvedModel, comparison: MergeComparison | None) -> None:
    """Write `llmctl.json` and the model card."""
    origin = Provenance.read(found.path) or Provenance(
        BaseModelRef.of(found.full_model), None, "lora"
    )
    origin.write(folder)
    metrics = {}
    if comparison is not None:
        metrics = {
            "largest difference of a logit from base and adapter": comparison.largest,
            "loss on a few texts, merged": comparison.merged_loss,
            "loss on them, base and adapter": comparison.adapter_loss,
        }
    FinetuneCard(folder.name, "merged", origin, metrics).write(folder)
