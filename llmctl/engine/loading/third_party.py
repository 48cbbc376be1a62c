"""Error translation and output control for third-party libraries while they load a model."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llmctl.engine.error_translation import is_out_of_memory
from llmctl.errors import LlmctlError, ModelLoadError, OutOfMemoryError, UnsafeModelError
from llmctl.types import ModelSpec


@contextmanager
def library_errors(path: Path, spec: ModelSpec) -> Iterator[None]:
    """Translate exceptions of the libraries during loading to `LlmctlError`s with hints.

    Raises:
        OutOfMemoryError: memory ran out.
        UnsafeModelError: the model needs code of its own.
        ModelLoadError: its files cannot be used.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except LlmctlError:
        raise
    except (
        OSError,
        ValueError,
        KeyError,
        RuntimeError,
        MemoryError,
        ImportError,
        SafetensorError,
        StrictDataclassError,  # a config with invalid values
    ) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"memory ran out while {spec.model} was loading",
                hint="try --quant 4bit, or a smaller model",
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            raise UnsafeModelError(
                f"{spec.model} contains Python code, which is not run by default",
                hint="add --trust-remote-code if you trust it",
            ) from error
        package = re.search(r"`?(pip install [\w\[\]-]+)`?", str(error))
        if isinstance(error, ImportError) and package is not None:
            raise ModelLoadError(
                f"cannot load {path}: it needs a package that is not installed: "
                f"{reason.split(' but it was not found')[0]}",
                hint=f"`{package[1]}` installs it",
            ) from error
        raise ModelLoadError(
            f"cannot load {path}: {reason}",
            hint="LLMCTL_TRACEBACK=1 shows details; `llmctl models rm` and `pull` download anew",
        ) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress the progress bars and warnings of the libraries, and read GGUF metadata fast."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    from llmctl.engine.loading.gguf.reader import FastGGUFReader

    # On a CPU it warns at import about an optional package, and at every call of an 8-bit layer.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # No setting disables this bar (transformers 5.23).
    loader: Any = modeling_gguf_pytorch_utils
    bar = loader.tqdm
    loader.tqdm = lambda items, **_: items
    # Transformers reads the whole file for its config, and again for the weights.
    package: Any = gguf
    reader = package.GGUFReader
    package.GGUFReader = FastGGUFReader
    try:
        with warnings.catch_warnings():
            # For developers: about tied embeddings and names that will change.
            for library in ("peft", "transformers"):
                warnings.filterwarnings("ignore", module=rf"{library}\b")
            yield
    finally:
        loader.tqdm = bar
        package.GGUFReader = reader
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
