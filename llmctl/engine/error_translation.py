"""Translation of exceptions inside the engine to `LlmctlError`s."""

import torch

from llmctl.errors import EngineFailedError, LlmctlError, OutOfMemoryError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. On a CPU torch raises a `RuntimeError` that only its text tells."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def translate_error(error: BaseException) -> LlmctlError:
    """Return the `LlmctlError` for an exception in the engine thread, with it as the cause."""
    if isinstance(error, LlmctlError):
        return error
    translated: LlmctlError
    if is_out_of_memory(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        translated = OutOfMemoryError(
            "memory ran out while this request ran", hint="shorten the prompt or the reply"
        )
    else:
        translated = EngineFailedError(f"the engine failed on this request: {error}")
    translated.__cause__ = error
    return translated
