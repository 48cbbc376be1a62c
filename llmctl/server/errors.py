"""Error responses: every failure answered with OpenAI's envelope, with all four keys."""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ExceptionHandler

from llmctl.errors import EngineBusyError, LlmctlError, RequestError
from llmctl.server.request_log import RequestRecord
from llmctl.server.schemas.base import ErrorBody, ErrorResponse
from llmctl.server.schemas.validation_errors import first_validation_error

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1
"""`Retry-After` of a request that the full queue refused."""

INTERNAL_ERROR = ErrorBody(
    message="The server had an error while processing your request.",
    type=LlmctlError.error_type,
    param=None,
    code=None,
)
"""Answer to an unexpected exception; its details go only to the log."""


def error_body(error: LlmctlError) -> ErrorBody:
    """Return the envelope's content; the hint is part of the message."""
    return ErrorBody(
        message=f"{error} ({error.hint})" if error.hint else str(error),
        type=error.error_type,
        param=error.param,
        code=error.code,
    )


def log_failure(request_id: str, error: Exception) -> None:
    """Log an error of the server. Errors of the client are only answered, not logged."""
    if not isinstance(error, LlmctlError) or error.http_status == LlmctlError.http_status:
        logger.error("request %s failed", request_id, exc_info=error)


def error_response(
    status: int, body: ErrorBody, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a response with the envelope."""
    return Response(
        ErrorResponse(error=body).model_dump_json(),
        status_code=status,
        headers=headers,
        media_type="application/json",
    )


def install_error_handlers(app: FastAPI) -> None:
    """Answer every expected exception with the envelope.

    `RequestContextMiddleware` answers the unexpected ones.
    """
    handlers: dict[type[Exception], ExceptionHandler] = {
        LlmctlError: _on_llmctl_error,
        RequestValidationError: _on_invalid_request,
        HTTPException: _on_http_error,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _answer(
    request: Request, status: int, body: ErrorBody, headers: Mapping[str, str] | None = None
) -> Response:
    request.state.record.error = body.code or body.type
    return error_response(status, body, headers)


async def _on_llmctl_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, LlmctlError)
    log_failure(request.state.request_id, error)
    busy = isinstance(error, EngineBusyError)
    headers = {"Retry-After": str(RETRY_AFTER_S)} if busy else None
    return _answer(request, error.http_status, error_body(error), headers)


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return _answer(request, RequestError.http_status, first_validation_error(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    """Answer an error that the framework raised: an unknown route or a wrong method."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    match error.status_code:
        case 404:
            error.detail = f"Invalid URL ({request.method} {path})"
        case 405:
            error.detail = f"Not allowed to {request.method} on {path}."
    return http_error_response(error, request.state.record)


_HTTP_CODES = {
    403: "host_not_allowed",
    405: "method_not_supported",
    408: "request_timeout",
    413: "request_too_large",
}


def http_error_response(error: HTTPException, record: RequestRecord) -> Response:
    """Return the envelope of an `HTTPException`, and note its code in the record."""
    body = ErrorBody(
        message=error.detail,
        type=RequestError.error_type,
        param=None,
        code=_HTTP_CODES.get(error.status_code),
    )
    record.error = body.code or body.type
    return error_response(error.status_code, body, error.headers)
