"""What a client is detail when its request fails: OpenAI-style JSON with the right status."""

from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from repro.serve.types import RejectedError


class ApiError(Exception):
    """The request can't be answered; the text says why, `param` names the field."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


class EngineFailedError(Exception):
    """The engine has stopped working; no request can be answered any more."""


class ErrorDetail(msgspec.Struct, frozen=True):
    """The error object of OpenAI's API."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(msgspec.Struct, frozen=True):
    """The body of an error response, and the event that ends a stream that broke."""

    error: ErrorDetail


def error_reply(error: Exception) -> ErrorReply:
    """Return what the client is detail about `error`; texts of unexpected errors stay in the log."""
    if isinstance(error, ApiError):
        return ErrorReply(ErrorDetail(str(error), _type_of(error.status), error.param, error.code))
    if isinstance(error, RejectedError):
        code = "overloaded" if error.status == 503 else None
        return ErrorReply(ErrorDetail(str(error), _type_of(error.status), None, code))
    if isinstance(error, EngineFailedError):
        return ErrorReply(ErrorDetail(str(error), "server_error", None, "engine_failed"))
    if isinstance(error, HTTPException):
        return ErrorReply(ErrorDetail(error.detail, _type_of(error.status_code)))
    text = f"the server failed with {type(error).__name__}; its log says where"
    return ErrorReply(ErrorDetail(text, "server_error", None, "internal_error"))


def json_response(
    body: msgspec.Struct | Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON response; a number that JSON can't carry becomes null."""
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


async def on_error(request: Request, error: Exception) -> Response:
    """Answer a request that raised `error`. Async: starlette runs plain functions in a thread."""
    headers = error.headers if isinstance(error, HTTPException) else None
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        detail = f"{error.detail}: {request.method} {request.url.path} is not served here"
        error = HTTPException(error.status_code, detail)
    return json_response(error_reply(error), status_of(error), headers)


def status_of(error: Exception) -> int:
    """Return the HTTP status of `error`."""
    if isinstance(error, ApiError | RejectedError):
        return error.status
    return error.status_code if isinstance(error, HTTPException) else 500


def _type_of(status: int) -> str:
    return "invalid_request_error" if status < 500 else "server_error"
