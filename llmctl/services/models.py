"""Service of `llmctl models`: list, show, download and delete models, without loading weights."""

import logging
from dataclasses import replace
from pathlib import Path

from llmctl.engine.models import inventory, resolve, store
from llmctl.engine.models.inventory import ModelInfo, Removal
from llmctl.errors import ModelNotFoundError
from llmctl.types import ModelSpec, ProgressCallback, ResponseFormats, ignore_progress

_log = logging.getLogger(__name__)


def list_models(folder: Path | None = None) -> list[ModelInfo]:
    """Return the catalogue, smallest model first, then every other model on this machine.

    Reads small files only and does not use the network.

    Args:
        folder: list the models and adapters in this folder instead.

    Raises:
        ModelNotFoundError: the folder does not exist.
    """
    return inventory.list_models() if folder is None else inventory.list_folder(folder)


def show(name: str) -> ModelInfo:
    """Describe one model: the memory of its weights at each `--quant`, and how it would run.

    Args:
        name: catalogue name, hub id with or without `@revision`, folder of a model or an adapter,
            or `.gguf` file. Nothing is downloaded: a model that is not on this machine is described
            from the catalogue.

    Raises:
        ModelNotFoundError: it is neither on this machine nor in the catalogue.
        ModelLoadError: the model at this path is incomplete.
    """
    from llmctl.engine.loading.load import path_from_files

    info = inventory.show(name)
    path, reason = path_from_files(name)
    formats = _response_formats(name) if info.has_chat_template else None
    return replace(info, execution_path=path, execution_reason=reason, response_formats=formats)


def _response_formats(model: str) -> ResponseFormats | None:
    """Return how the calls and the reasoning of a model are read, from its chat template.

    Returns:
        `None` if the model is not on this machine, has no chat template, or cannot be read, which
        is logged.
    """
    from llmctl.engine.chat.response_parser import ResponseParserFactory
    from llmctl.engine.chat.template import ChatTemplate
    from llmctl.engine.loading.load import read_tokenizer
    from llmctl.engine.loading.third_party import library_errors, quiet_libraries

    spec = ModelSpec(model, allow_pickle=True)
    try:
        resolved = resolve.resolve_local(model, allow_pickle=True)
        with library_errors(resolved.path, spec), quiet_libraries():
            tokenizer = read_tokenizer(spec, resolved)
            template = ChatTemplate.of(tokenizer)
            return ResponseParserFactory(tokenizer, template).names if template else None
    except ModelNotFoundError:
        return None
    except Exception as error:  # a damaged file must not hide what else is known of a model
        _log.info("the tokenizer of %s cannot be read", model, exc_info=error)
        return None


def pull(
    name: str,
    progress: ProgressCallback = ignore_progress,
    *,
    revision: str | None = None,
    allow_pickle: bool = False,
) -> ModelInfo:
    """Download a model unless it is on this machine already.

    A local copy is not compared with the hub's: `remove` it first to download it again. Leftover
    files of interrupted downloads are deleted.

    Args:
        name: as for `show`.
        progress: called from this thread. Stages of unknown length have no `total`.
        revision: branch, tag or commit on the hub.
        allow_pickle: also accept weights that exist only as pickle.

    Raises:
        ModelNotFoundError: no source has it; the message has a line per source.
        UnsafeModelError: its weights exist only as pickle, without `allow_pickle`.
        ModelLoadError: it is an adapter, has only GGUF files, or is incomplete.
        ConfigError: the revision is invalid.
    """
    store.clean_staging()
    model = resolve.resolve_model(
        name, revision=revision, allow_pickle=allow_pickle, progress=progress
    )
    return inventory.describe(model)


def remove(name: str) -> Removal:
    """Delete a model from the store and from the shared Hugging Face cache.

    Args:
        name: catalogue name or hub id. `@revision` (a branch, a commit or its first seven digits)
            limits this to one revision in the cache; without it all revisions are deleted.

    Raises:
        ModelNotFoundError: it is not on this machine.
        ConfigError: it is a path outside the store, which is never deleted.
    """
    return inventory.remove(name)
