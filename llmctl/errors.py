"""The one error tree. Services raise it; the command line and the server each show it their way.

Every class says how it ends a command (`exit_code`) and how it answers a request (`http_status`,
`code`, `error_type`: the OpenAI error envelope). A message names the value, the limit and what is
wrong; the hint names the way out.
"""

from typing import ClassVar


class LlmctlError(Exception):
    """An expected failure, shown to a person without a traceback."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    error_type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint
        self.param = param


class ConfigError(LlmctlError):
    """What a person wrote in an option, a variable or a file cannot be used."""

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
    """The model was found but its files cannot be used."""


class UnsafeModelError(ModelLoadError):
    """The model's files could run code of their own: pickle weights or remote code."""


class OutOfMemoryError(LlmctlError):
    """The model or a request needs more memory than there is."""

    http_status = 503


class RequestError(LlmctlError):
    """A request that is wrong in itself and will be wrong again."""

    exit_code = 2
    http_status = 400
    error_type = "invalid_request_error"
    code = "invalid_value"


class ContextLengthError(RequestError):
    """The prompt does not fit the model's context."""

    code = "context_length_exceeded"


class TemplateError(RequestError):
    """The chat template is missing or refuses this conversation."""


class UnsupportedError(RequestError):
    """This engine or server does not know the feature that was asked for."""

    code = "unsupported_parameter"


class AuthenticationError(RequestError):
    """The request has no API key, or a wrong one."""

    http_status = 401
    code = "invalid_api_key"


class RequestTimeoutError(LlmctlError):
    """The reply took longer than the server allows."""

    http_status = 504
    code = "timeout"


class EngineBusyError(LlmctlError):
    """More requests wait than the engine admits; try again."""

    http_status = 429
    error_type = "rate_limit_error"
    code = "rate_limit_exceeded"


class EngineStoppedError(LlmctlError):
    """The engine is closing or closed and takes no request."""

    http_status = 503


class EngineFailedError(LlmctlError):
    """Something of ours broke while a request ran; the cause is chained."""
