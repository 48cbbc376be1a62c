"""Which models are on this machine, which could be, and what is each like?"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from llmctl.engine.models import adapter_metadata, hub, model_folder, resolve, store
from llmctl.engine.models.adapter_metadata import AdapterMetadata
from llmctl.engine.models.catalog import CATALOG, CatalogEntry, find_entry
from llmctl.engine.models.hub import Hub
from llmctl.engine.models.resolve import ModelSource, ResolvedModel
from llmctl.errors import ConfigError, LlmctlError, ModelLoadError, ModelNotFoundError
from llmctl.types import Quant

ModelState = Literal["downloaded", "partial", "available"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of one model; `None` is unknown, often because it is not on this machine."""

    model_id: str
    state: ModelState
    """`partial`: begun in the Hugging Face cache, not finished; `available`: to be fetched."""
    repo: str | None = None
    source: ModelSource | None = None
    """Where the files on this machine came from."""
    revision: str | None = None
    path: Path | None = None
    disk_bytes: int | None = None
    parameters: int | None = None
    linear_parameters: int | None = None
    """Those that quantisation makes smaller."""
    architecture: str | None = None
    context_length: int | None = None
    """Tokens."""
    vocab_size: int | None = None
    dtype: str | None = None
    has_chat_template: bool | None = None
    licence: str | None = None
    note: str = ""
    weight_memory: Mapping[Quant, int] | None = None
    """Bytes that the weights alone need once loaded, estimated; only `show` works it out."""
    adapter: AdapterMetadata | None = None
    """Where the model is an adapter; what else is said here is then of its base, if that is here,
    but for the path and the size on disk."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What `remove` deleted."""

    model_id: str
    paths: tuple[Path, ...]
    freed_bytes: int


def list_models() -> list[ModelInfo]:
    """Return the whole catalogue, then what else the store and the Hugging Face cache hold.

    Of the cache's other models only causal language models are listed.
    """
    here = Hub.from_environment()
    cached = {held.repo: held for held in here.cached_repos()}
    cards = [_entry_card(entry, here) for entry in CATALOG]
    for name in store.names():
        if find_entry(name) is None:
            cards.append(_local_card(name, store.models_folder() / name))
    listed = {entry.repo for entry in CATALOG}
    for repo, held in cached.items():
        card = _folder_card(repo, held.path, "hub", repo=repo, revision=held.revision)
        if repo not in listed and model_folder.is_causal_lm(card.architecture):
            cards.append(card)
    return cards


def list_folder(folder: Path) -> list[ModelInfo]:
    """Return the models and adapters in a folder of a person's own, up to three levels down.

    Raises:
        ModelNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"there is no folder {folder.absolute()}")
    names = ("config.json", adapter_metadata.ADAPTER_CONFIG)
    levels = ("", "*", "*/*", "*/*/*")
    found = {
        path.parent
        for level in levels
        for name in names
        for path in folder.glob(f"{level}/{name}" if level else name)
    }
    return [
        _local_card(str(path), path)
        for path in sorted(found)
        if adapter_metadata.is_adapter(path) or model_folder.missing_part(path) is None
    ]


def show(model: str) -> ModelInfo:
    """Describe a model: from its files if they are here, else from the catalogue.

    Raises:
        ModelNotFoundError: it is neither here nor in the catalogue.
        ModelLoadError: the path given is no whole model.
    """
    path = Path(model).expanduser()
    if path.is_dir() and adapter_metadata.is_adapter(path):
        card = _adapter_card(path.resolve().name, path.absolute())
        return replace(card, weight_memory=_weight_memory(card))
    try:
        card = describe(resolve.resolve_local(model, allow_pickle=True))
    except ModelNotFoundError as error:
        name = model.partition("@")[0]
        if (entry := find_entry(name)) is not None:
            card = _entry_card(entry, Hub.from_environment())
        elif hub.is_repo_id(name):
            raise ModelNotFoundError(
                f"{model} is not on this machine: {error}",
                hint=f"`llmctl models pull {model}` fetches it",
            ) from error
        else:
            raise
    return replace(card, weight_memory=_weight_memory(card))


def describe(model: ResolvedModel) -> ModelInfo:
    """Return the card of a model whose files are here."""
    entry = find_entry(model.model_id) if model.source != "local" else None
    if model.base is not None:
        return _adapter_card(model.model_id, model.path)
    if model.gguf_file is not None:
        file = model.path / model.gguf_file
        size = file.stat().st_size
        return ModelInfo(model.model_id, "downloaded", None, "local", None, file, size)
    repo = model.model_id if model.source == "hub" else None
    card = _folder_card(
        model.model_id, model.path, model.source, repo=repo, revision=model.revision
    )
    return _with_entry(card, entry) if entry else card


def remove(model: str) -> Removal:
    """Delete what the store and the Hugging Face cache hold of a model.

    `@revision` confines it to one revision in the cache. A folder of the person's own is refused.

    Raises:
        ModelNotFoundError: neither place holds it.
        ConfigError: it is a path.
    """
    name, at, written = model.partition("@")
    revision = written if at else None
    entry = find_entry(name)
    model_id, repo = (entry.name, entry.repo) if entry else (name, name)
    here = Hub.from_environment()
    paths: tuple[Path, ...] = ()
    freed = 0
    if revision is None and model_id in store.names():
        freed = store.remove(model_id)
        paths = (store.models_folder() / model_id,)
    if repo in {held.repo for held in here.cached_repos()}:
        snapshots, more = here.remove(repo, revision)
        paths, freed = paths + snapshots, freed + more
    if paths:
        return Removal(model_id, paths, freed)
    if Path(model).expanduser().exists():
        raise ConfigError(
            f"{model} is a path of yours; only what llmctl fetched is removed",
            hint="delete it yourself if you mean it",
        )
    raise ModelNotFoundError(
        f"{model} is neither in {store.models_folder()} nor in {here.cache}",
        hint="`llmctl models list` shows what is here",
    )


def _entry_card(entry: CatalogEntry, here: Hub) -> ModelInfo:
    """Describe a catalogue model, wherever it is."""
    try:
        return describe(resolve.resolve_local_entry(entry, here))
    except ModelNotFoundError:
        card = ModelInfo(entry.name, "available")
    for held in here.cached_repos():
        if held.repo == entry.repo:
            card = _folder_card(entry.name, held.path, "hub", revision=held.revision)
    return _with_entry(card, entry)


def _with_entry(card: ModelInfo, entry: CatalogEntry) -> ModelInfo:
    """Add what only the catalogue knows, and what the files could not tell."""
    return replace(
        card,
        repo=entry.repo,
        licence=entry.licence,
        note=entry.note,
        parameters=card.parameters or entry.parameters,
        linear_parameters=card.linear_parameters or entry.linear_parameters,
    )


def _local_card(model_id: str, path: Path) -> ModelInfo:
    if not adapter_metadata.is_adapter(path):
        return _folder_card(model_id, path, "local")
    try:
        return _adapter_card(model_id, path)
    except ModelLoadError as error:  # one damaged file must not break a list
        return ModelInfo(model_id, "partial", path=path, note=str(error))


def _adapter_card(model_id: str, folder: Path) -> ModelInfo:
    """Describe an adapter, and its base model as far as that is here."""
    facts = adapter_metadata.read_adapter_metadata(folder)
    try:
        base = describe(resolve.resolve_local(str(folder), allow_pickle=True).whole)
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
        adapter=facts,
    )


def _folder_card(
    model_id: str,
    path: Path,
    source: ModelSource,
    *,
    repo: str | None = None,
    revision: str | None = None,
) -> ModelInfo:
    facts = model_folder.read_folder_metadata(path)
    whole = model_folder.missing_part(path, allow_pickle=True) is None
    return ModelInfo(
        model_id=model_id,
        state="downloaded" if whole else "partial",
        repo=repo,
        source=source,
        revision=revision,
        path=path,
        disk_bytes=model_folder.disk_bytes(path),
        parameters=facts.parameters,
        linear_parameters=facts.linear_parameters,
        architecture=facts.architecture,
        context_length=facts.context_length,
        vocab_size=facts.vocab_size,
        dtype=facts.dtype,
        has_chat_template=facts.has_chat_template,
    )


def _weight_memory(card: ModelInfo) -> Mapping[Quant, int] | None:
    if card.parameters is None or card.linear_parameters is None:
        return None
    import torch

    from llmctl.engine.memory.estimate import estimate_weight_bytes

    linear, other = card.linear_parameters, card.parameters - card.linear_parameters
    return {
        quant: estimate_weight_bytes(linear, other, torch.bfloat16, quant)
        for quant in get_args(Quant)
    }
