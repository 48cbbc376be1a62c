"""`llmctl models`: what is here, what could be, fetch it, delete it. Holds no tensors."""

from pathlib import Path

from llmctl.engine.models import inventory, resolve, store
from llmctl.engine.models.inventory import ModelInfo, Removal
from llmctl.types import ProgressCallback, ignore_progress


def list_models(folder: Path | None = None) -> list[ModelInfo]:
    """Return the catalogue, smallest model first, then every other model on this machine.

    Reads small files only; never asks the network.

    Args:
        folder: list the models and adapters in it, and nothing else.

    Raises:
        ModelNotFoundError: there is no such folder.
    """
    return inventory.list_models() if folder is None else inventory.list_folder(folder)


def show(name: str) -> ModelInfo:
    """Describe one model, with the memory its weights need at each `--quant`.

    Args:
        name: catalogue name, hub id with or without `@revision`, folder of a model or an adapter,
            or `.gguf` file. Nothing is fetched: a catalogue model that is not here is described
            from the catalogue.

    Raises:
        ModelNotFoundError: it is neither here nor in the catalogue.
        ModelLoadError: the path given is no whole model.
    """
    return inventory.show(name)


def pull(
    name: str,
    progress: ProgressCallback = ignore_progress,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> ModelInfo:
    """Have a model on this machine: fetch it, or find that it is here already.

    A copy that is here is not compared with the hub's; `remove` it first to fetch it anew. What
    interrupted runs left behind is swept.

    Args:
        name: as for `show`.
        progress: called from this thread. Stages without `total` say only that work goes on.
        revision: branch, tag or commit on the hub.
        allow_pickle: also accept weights that exist only as pickle.

    Raises:
        ModelNotFoundError: no source has it; several lines say of each source why.
        UnsafeModelError: its weights exist only as pickle, which was not allowed.
        ModelLoadError: what was named is an adapter, GGUF files alone, or not whole.
        ConfigError: the revision makes no sense.
    """
    store.clean_staging()
    found = resolve.resolve_model(
        name, revision=revision, allow_pickle=allow_pickle, progress=progress
    )
    return inventory.describe(found)


def remove(name: str) -> Removal:
    """Delete a model from the store and from the shared Hugging Face cache.

    Args:
        name: catalogue name or hub id. `@revision` (a branch, a commit or its first seven digits)
            confines it to one revision in the cache; without it all revisions go.

    Raises:
        ModelNotFoundError: it is not here.
        ConfigError: it is a path of the person's own, which is never deleted.
    """
    return inventory.remove(name)
