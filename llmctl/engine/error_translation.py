"""What an exception inside the engine means to whoever asked."""

import torch

from llmctl.errors import EngineFailedError, LlmctlError, OutOfMemoryError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. For a CPU torch has no exception of its own, only this text."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def translate_error(error: BaseException) -> LlmctlError:
    """Wrap what broke in the engine thread, with its cause."""
    if isinstance(error, LlmctlError):
        return error
    wrapped: LlmctlError
    if is_out_of_memory(error):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        wrapped = OutOfMemoryError(
            "memory ran out while this request ran", hint="shorten the prompt or the reply"
        )
    else:
        wrapped = EngineFailedError(f"the engine failed on this request: {error}")
    wrapped.__cause__ = error
    return wrapped
