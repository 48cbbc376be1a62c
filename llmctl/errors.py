"""The exception hierarchy of llmctl, shown by the command line and returned by the server.

Each class has the exit code of a command (`exit_code`) and the HTTP response of a request
(`http_status`, and `code` and `error_type` of OpenAI's error object). A message names the value,
the limit and what is wrong; the hint names a solution.
"""

from typing import ClassVar


class LlmctlError(Exception):
    """An expected error, shown to the user without a traceback.

    Args:
        message: what is wrong.
        hint: what to do about it.
        param: the field of the API request at fault.
    """

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    error_type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.param = param


class ConfigError(LlmctlError):
    """An invalid value in an option, a variable or a file."""

    exit_code = 2
    http_status = 400
    error_type = "invalid_request_error"
    code: ClassVar[str | None] = "invalid_value"


class MissingDependencyError(ConfigError):
    """A feature needs a package that is not installed."""

    http_status = 500
    error_type = "server_error"
    code = None

    def __init__(self, feature: str, package: str, extra: str | None = None) -> None:
        """Name the missing package.

        Args:
            extra: the extra of llmctl that installs it; `None` if it is always a dependency.
        """
        requirement = "llmctl" if extra is None else f"llmctl[{extra}]"
        super().__init__(
            f"{feature} needs the package {package}, which is not installed",
            hint=f"pip install '{requirement}'",
        )


class ModelNotFoundError(LlmctlError):
    """No source has the model, or the server does not serve it."""

    http_status = 404
    error_type = "invalid_request_error"
    code = "model_not_found"


class ModelLoadError(LlmctlError):
    """The files of the model cannot be used."""


class UnsafeModelError(ModelLoadError):
    """The files of the model could run code: pickle weights or remote code."""


class OutOfMemoryError(LlmctlError):
    """The model or a request needs more memory than is available."""

    http_status = 503


class RequestError(LlmctlError):
    """An invalid request; sending it again does not help."""

    exit_code = 2
    http_status = 400
    error_type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthError(RequestError):
    """The prompt is longer than the context of the model."""

    code = "context_length_exceeded"


class TemplateError(RequestError):
    """The chat template is missing or raises an error for this conversation."""


class UnsupportedError(RequestError):
    """The engine or server does not support the requested feature."""

    code = "unsupported_parameter"


class AuthenticationError(RequestError):
    """The request has no API key, or a wrong one."""

    http_status = 401
    code = "invalid_api_key"


class RequestTimeoutError(LlmctlError):
    """The reply took longer than the time limit of the server."""

    http_status = 504
    code = "timeout"


class EngineBusyError(LlmctlError):
    """The queue of the engine is full; the request can be sent again."""

    http_status = 429
    error_type = "rate_limit_error"
    code = "rate_limit_exceeded"


class EngineStoppedError(LlmctlError):
    """The engine is closed or closing and accepts no request."""

    http_status = 503


class EngineFailedError(LlmctlError):
    """An internal error while a request ran; the cause is chained."""
