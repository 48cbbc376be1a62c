"""How do the libraries behave while they read a model? As we do: our errors, our progress."""

import logging
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
    """Turn what the libraries raise while they read a model into errors that say what to do."""
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
        StrictDataclassError,  # a config with values that no model can have
    ) as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(
                f"memory ran out while {spec.model} was loading",
                hint="try --quant 4bit, or a smaller model",
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "trust_remote_code" in str(error):
            raise UnsafeModelError(
                f"{spec.model} brings Python code of its own, which is not run unless asked for",
                hint="add --trust-remote-code if you trust it",
            ) from error
        raise ModelLoadError(
            f"cannot load {path}: {reason}",
            hint="LLMCTL_TRACEBACK=1 shows more; `llmctl models rm` and `pull` fetch it anew",
        ) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep the libraries' own bars and warnings off the terminal: we report the loading."""
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    # Warns at every import on a CPU about an optional package, then at every 8-bit layer call.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # This bar heeds no switch (transformers 5.23).
    gguf: Any = modeling_gguf_pytorch_utils
    gguf_bar = gguf.tqdm
    gguf.tqdm = lambda items, **_: items
    try:
        with warnings.catch_warnings():
            # For programmers: about tied embeddings, names that change in a later release.
            for library in ("peft", "transformers"):
                warnings.filterwarnings("ignore", module=rf"{library}\b")
            yield
    finally:
        gguf.tqdm = gguf_bar
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
