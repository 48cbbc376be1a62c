"""The models on this machine and in the catalogue, with their metadata."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from llmctl.engine.models import adapter_metadata, hub, model_folder, resolve, store
from llmctl.engine.models.adapter_metadata import AdapterMetadata
from llmctl.engine.models.catalog import CATALOG, CatalogEntry, find_entry
from llmctl.engine.models.hub import Hub
from llmctl.engine.models.resolved import ModelSource, ResolvedModel
from llmctl.errors import ConfigError, LlmctlError, ModelLoadError, ModelNotFoundError
from llmctl.types import ExecutionPath, Quant, ResponseFormats

ModelState = Literal["downloaded", "partial", "available"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Metadata of a model; `None` is unknown, often because the model is not on this machine."""

    model_id: str
    state: ModelState
    """`partial`: incompletely downloaded; `available`: not downloaded."""
    repo: str | None = None
    source: ModelSource | None = None
    """Source of the files on this machine."""
    revision: str | None = None
    path: Path | None = None
    disk_bytes: int | None = None
    parameters: int | None = None
    linear_parameters: int | None = None
    """Parameters that quantisation makes smaller."""
    architecture: str | None = None
    context_length: int | None = None
    """Tokens."""
    vocab_size: int | None = None
    dtype: str | None = None
    has_chat_template: bool | None = None
    licence: str | None = None
    note: str = ""
    weight_memory: Mapping[Quant, int] | None = None
    """Estimated bytes of the loaded weights; only `show` computes it."""
    stored_bytes: int | None = None
    """Size of weights that are quantised as published."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Values that the model card recommends."""
    execution_path: ExecutionPath | None = None
    """How the model is expected to run; only `show` computes it."""
    execution_reason: str = ""
    response_formats: ResponseFormats | None = None
    """How calls and reasoning are read; only `show` finds it out."""
    adapter: AdapterMetadata | None = None
    """Metadata of an adapter. The other fields are then those of its base model, if that is on
    this machine, except for the path and the size on disk."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What `remove` has deleted."""

    model_id: str
    paths: tuple[Path, ...]
    freed_bytes: int


def list_models() -> list[ModelInfo]:
    """Return the catalogue, then the other models in the store and in the Hugging Face cache.

    Of the other models in the cache, only causal language models are listed.
    """
    hub_cache = Hub.from_environment()
    cached = {r.repo: r for r in hub_cache.cached_repos()}
    models = [_describe_entry(entry, hub_cache) for entry in CATALOG]
    for name in store.names():
        if find_entry(name) is None:
            models.append(_describe_local(name, store.models_folder() / name))
    listed = {entry.repo for entry in CATALOG}
    for repo, held in cached.items():
        info = _describe_folder(repo, held.path, "hub", repo=repo, revision=held.revision)
        if repo not in listed and model_folder.is_causal_lm(info.architecture):
            models.append(info)
    return models


def list_folder(folder: Path) -> list[ModelInfo]:
    """Return the models and adapters in a folder, up to three levels deep.

    Raises:
        ModelNotFoundError: the folder does not exist.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"the folder {folder.absolute()} does not exist")
    names = ("config.json", adapter_metadata.ADAPTER_CONFIG)
    levels = ("", "*", "*/*", "*/*/*")
    folders = {
        path.parent
        for level in levels
        for name in names
        for path in folder.glob(f"{level}/{name}" if level else name)
    }
    return [
        _describe_local(str(path), path)
        for path in sorted(folders)
        if adapter_metadata.is_adapter(path) or model_folder.missing_part(path) is None
    ]


def show(model: str) -> ModelInfo:
    """Describe a model from its files on this machine, otherwise from the catalogue.

    Raises:
        ModelNotFoundError: it is neither on this machine nor in the catalogue.
        ModelLoadError: the path is not a complete model.
    """
    path = Path(model).expanduser()
    if path.is_dir() and adapter_metadata.is_adapter(path):
        info = _describe_adapter(path.resolve().name, path.absolute())
        return replace(info, weight_memory=_weight_memory(info))
    try:
        info = describe(resolve.resolve_local(model, allow_pickle=True))
    except ModelNotFoundError as error:
        name = model.partition("@")[0]
        if (entry := find_entry(name)) is not None:
            info = _describe_entry(entry, Hub.from_environment())
        elif hub.is_repo_id(name):
            raise ModelNotFoundError(
                f"{model} is not on this machine: {error}",
                hint=f"`llmctl models pull {model}` downloads it",
            ) from error
        else:
            raise
    return replace(info, weight_memory=_weight_memory(info))


def describe(model: ResolvedModel) -> ModelInfo:
    """Return the metadata of a model whose files are on this machine."""
    entry = find_entry(model.model_id) if model.source != "local" else None
    if model.base is not None:
        return _describe_adapter(model.model_id, model.path)
    if model.gguf_file is not None:
        file = model.path / model.gguf_file
        size = file.stat().st_size
        return ModelInfo(model.model_id, "downloaded", None, "local", None, file, size)
    repo = model.model_id if model.source == "hub" else None
    info = _describe_folder(
        model.model_id, model.path, model.source, repo=repo, revision=model.revision
    )
    return _with_catalog_data(info, entry) if entry else info


def remove(model: str) -> Removal:
    """Delete a model from the store and the Hugging Face cache.

    With `@revision`, only that revision is deleted from the cache.

    Raises:
        ModelNotFoundError: neither has the model.
        ConfigError: it is a path.
    """
    name, at, given = model.partition("@")
    revision = given if at else None
    entry = find_entry(name)
    model_id, repo = (entry.name, entry.repo) if entry else (name, name)
    hub_cache = Hub.from_environment()
    paths: tuple[Path, ...] = ()
    freed = 0
    if revision is None and model_id in store.names():
        freed = store.remove(model_id)
        paths = (store.models_folder() / model_id,)
    if repo in {r.repo for r in hub_cache.cached_repos()}:
        snapshots, cache_bytes = hub_cache.remove(repo, revision)
        paths, freed = paths + snapshots, freed + cache_bytes
    if paths:
        return Removal(model_id, paths, freed)
    if Path(model).expanduser().exists():
        raise ConfigError(
            f"{model} is a path; only downloaded models are removed",
            hint="delete the folder yourself if you want it removed",
        )
    raise ModelNotFoundError(
        f"{model} is neither in {store.models_folder()} nor in {hub_cache.cache}",
        hint="`llmctl models list` shows the downloaded models",
    )


def _describe_entry(entry: CatalogEntry, hub_cache: Hub) -> ModelInfo:
    """Describe a catalogue model, downloaded or not."""
    try:
        return describe(resolve.resolve_local_entry(entry, hub_cache))
    except ModelNotFoundError:
        info = ModelInfo(entry.name, "available")
    for held in hub_cache.cached_repos():
        if held.repo == entry.repo:
            info = _describe_folder(entry.name, held.path, "hub", revision=held.revision)
    return _with_catalog_data(info, entry)


def _with_catalog_data(info: ModelInfo, entry: CatalogEntry) -> ModelInfo:
    """Add the catalogue's metadata, and fill in what the files do not have."""
    return replace(
        info,
        repo=entry.repo,
        licence=entry.licence,
        note=entry.note,
        parameters=info.parameters or entry.parameters,
        linear_parameters=info.linear_parameters or entry.linear_parameters,
        context_length=info.context_length or entry.context_length,
        stored_bytes=entry.stored_bytes,
        sampling={n: v for n, v in asdict(entry.sampling).items() if v is not None},
    )


def _describe_local(model_id: str, path: Path) -> ModelInfo:
    if not adapter_metadata.is_adapter(path):
        return _describe_folder(model_id, path, "local")
    try:
        return _describe_adapter(model_id, path)
    except ModelLoadError as error:  # one damaged file must not break the list
        return ModelInfo(model_id, "partial", path=path, note=str(error))


def _describe_adapter(model_id: str, folder: Path) -> ModelInfo:
    """Describe an adapter, with the metadata of its base model if that is on this machine."""
    metadata = adapter_metadata.read_adapter_metadata(folder)
    try:
        base = describe(resolve.resolve_local(str(folder), allow_pickle=True).full_model)
    except LlmctlError as error:
        base = ModelInfo(model_id, "downloaded", note=str(error).splitlines()[0])
    else:
        base = replace(base, note=f"adapter of {base.model_id}")
    return replace(
        base,
        model_id=model_id,
        state="downloaded",
        source="local",
        revision=None,
        path=folder,
        disk_bytes=model_folder.disk_bytes(folder),
        adapter=metadata,
    )


def _describe_folder(
    model_id: str,
    path: Path,
    source: ModelSource,
    *,
    repo: str | None = None,
    revision: str | None = None,
) -> ModelInfo:
    metadata = model_folder.read_folder_metadata(path)
    complete = model_folder.missing_part(path, allow_pickle=True) is None
    return ModelInfo(
        model_id=model_id,
        state="downloaded" if complete else "partial",
        repo=repo,
        source=source,
        revision=revision,
        path=path,
        disk_bytes=model_folder.disk_bytes(path),
        parameters=metadata.parameters,
        linear_parameters=metadata.linear_parameters,
        architecture=metadata.architecture,
        context_length=metadata.context_length,
        vocab_size=metadata.vocab_size,
        dtype=metadata.dtype,
        has_chat_template=metadata.has_chat_template,
    )


def _weight_memory(info: ModelInfo) -> Mapping[Quant, int] | None:
    if info.stored_bytes is not None:
        return {"none": info.stored_bytes}
    if info.parameters is None or info.linear_parameters is None:
        return None

    from llmctl.engine.memory.estimate import estimate_weight_bytes

    linear, other = info.linear_parameters, info.parameters - info.linear_parameters
    return {quant: estimate_weight_bytes(linear, other, 2, quant) for quant in get_args(Quant)}
