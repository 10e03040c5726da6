"""The one table from exceptions to HTTP statuses, and OpenAI's shape for every error answer. Knows no routes."""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.staticfiles import StaticFiles

from expert_store import errors as store_errors
from server import errors as relay_errors
from server.api.serving import try_serving

STARTUP_RETRY_SECONDS = 2
MAX_SHOWN_INTEGER = 10**30  # printing a huge one takes long, and Python refuses beyond 4,300 digits
_SHOWN_CHARS = 200


class MalformedBody(relay_errors.RelayError):
    """The body cannot be read as what its content type says."""


class UnsupportedBody(relay_errors.RelayError):
    """The content type is not one this route reads."""

    def __init__(self, given: str, wanted: str) -> None:
        super().__init__(f"content type {given[:_SHOWN_CHARS]!r} is not read here: send {wanted}")


class BodyTooLarge(relay_errors.RelayError):
    """The body, or a part of it, has more bytes than the server takes."""

    def __init__(self, what: str, *, limit_bytes: int, way_out: str, param: str | None = None) -> None:
        super().__init__(f"{what} is larger than {limit_bytes} bytes: {way_out}", param=param)


class InvalidField(relay_errors.RelayError):
    """A form field is doubled or not what it should be."""


class UnknownField(relay_errors.RelayError):
    """The form has no such field."""


@dataclass(frozen=True)
class ErrorKind:
    """How one exception class is told to clients."""

    status: int
    type: str
    code: str


_INVALID, _RATE, _SERVER = "invalid_request_error", "rate_limit_error", "server_error"

ERROR_TABLE: Mapping[type[Exception], ErrorKind] = {
    relay_errors.RelayError: ErrorKind(500, _SERVER, "internal_error"),
    relay_errors.InvalidRequest: ErrorKind(422, _INVALID, "invalid_request"),
    relay_errors.PromptTooLong: ErrorKind(422, _INVALID, "context_length_exceeded"),
    relay_errors.RequestTooLarge: ErrorKind(422, _INVALID, "request_too_large"),
    relay_errors.ExpertTooLarge: ErrorKind(422, _INVALID, "expert_too_large"),
    relay_errors.InvocationMissing: ErrorKind(422, _INVALID, "invocation_missing"),
    relay_errors.NonFiniteLogits: ErrorKind(422, _INVALID, "non_finite_logits"),
    relay_errors.NonFiniteGradient: ErrorKind(422, _INVALID, "non_finite_gradient"),
    relay_errors.RouterNotReady: ErrorKind(409, _INVALID, "router_not_ready"),
    relay_errors.NotSelfSelecting: ErrorKind(422, _INVALID, "not_self_selecting"),
    relay_errors.UnusableIndicators: ErrorKind(422, _INVALID, "unusable_indicators"),
    relay_errors.BaseModelError: ErrorKind(500, _SERVER, "base_model_error"),
    relay_errors.SettingsError: ErrorKind(500, _SERVER, "settings_error"),
    relay_errors.ForeignStore: ErrorKind(500, _SERVER, "foreign_store"),
    relay_errors.TooBusy: ErrorKind(429, _RATE, "too_busy"),
    relay_errors.RegistrationsBusy: ErrorKind(429, _RATE, "registrations_busy"),
    relay_errors.NotReady: ErrorKind(503, _SERVER, "not_ready"),
    relay_errors.EngineStopped: ErrorKind(503, _SERVER, "engine_stopped"),
    MalformedBody: ErrorKind(400, _INVALID, "malformed_body"),
    UnsupportedBody: ErrorKind(415, _INVALID, "unsupported_media_type"),
    BodyTooLarge: ErrorKind(413, _INVALID, "body_too_large"),
    InvalidField: ErrorKind(422, _INVALID, "invalid_field"),
    UnknownField: ErrorKind(422, _INVALID, "unknown_field"),
    store_errors.StoreError: ErrorKind(500, _SERVER, "store_error"),
    store_errors.InvalidAdapter: ErrorKind(422, _INVALID, "invalid_adapter"),
    store_errors.InvalidManifest: ErrorKind(422, _INVALID, "invalid_manifest"),
    store_errors.InvalidRouter: ErrorKind(422, _INVALID, "invalid_router"),
    store_errors.InvalidName: ErrorKind(422, _INVALID, "invalid_name"),
    store_errors.InvalidChain: ErrorKind(422, _INVALID, "invalid_chain"),
    store_errors.InvalidFallback: ErrorKind(422, _INVALID, "invalid_fallback"),
    store_errors.UnknownExpert: ErrorKind(404, _INVALID, "unknown_expert"),
    store_errors.UnknownVersion: ErrorKind(404, _INVALID, "unknown_version"),
    store_errors.UnknownAlias: ErrorKind(404, _INVALID, "unknown_alias"),
    store_errors.VersionInUse: ErrorKind(409, _INVALID, "version_in_use"),
    store_errors.GenerationConflict: ErrorKind(409, _INVALID, "generation_conflict"),
    store_errors.StoreBusy: ErrorKind(503, _SERVER, "store_busy"),
    store_errors.CorruptStore: ErrorKind(500, _SERVER, "corrupt_store"),
}

# What the web framework itself raises, and bodies that do not fit a schema.
INVALID_BODY = ErrorKind(422, _INVALID, "invalid_field")
UNKNOWN_FIELD = ErrorKind(422, _INVALID, "unknown_field")
INVALID_JSON = ErrorKind(400, _INVALID, "invalid_json")
INTERNAL = ErrorKind(500, _SERVER, "internal_error")
STORAGE_FULL = ErrorKind(507, _SERVER, "storage_full")
FRAMEWORK_ERRORS: Mapping[int, ErrorKind] = {
    400: ErrorKind(400, _INVALID, "malformed_body"),
    404: ErrorKind(404, _INVALID, "unknown_route"),
    405: ErrorKind(405, _INVALID, "method_not_allowed"),
}
_PLAINER = {"extra_forbidden": "there is no such field here: see /docs"}
_VALIDATION_CODES = {"json_invalid": INVALID_JSON, "extra_forbidden": UNKNOWN_FIELD}


@dataclass(frozen=True)
class ApiError:
    """One error answer: what is in the table, and what is said about this case."""

    kind: ErrorKind
    message: str
    param: str | None = None
    retry_after_seconds: int | None = None

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error object."""
        return {"error": {"message": self.message, "type": self.kind.type, "param": self.param, "code": self.kind.code}}


def error_codes() -> frozenset[str]:
    """Every code a client can meet."""
    others = (INVALID_BODY, UNKNOWN_FIELD, INVALID_JSON, INTERNAL, STORAGE_FULL)
    kinds = [*ERROR_TABLE.values(), *FRAMEWORK_ERRORS.values(), *others]
    return frozenset(kind.code for kind in kinds)


def translate(error: Exception) -> ApiError:
    """The answer to any exception; what is not in the table is the server's fault and says nothing of its insides."""
    if isinstance(error, ValidationError):
        return _first_problem(error.errors(include_url=False))
    if isinstance(error, RequestValidationError):
        return _first_problem(error.errors(), where_parts=1)
    if isinstance(error, HTTPException):
        kind = FRAMEWORK_ERRORS.get(error.status_code) or ErrorKind(error.status_code, _INVALID, "http_error")
        return ApiError(kind, str(error.detail))
    if _is_full_disk(error):
        return ApiError(
            STORAGE_FULL, "the server's disk is full: free some space, look what is there, then send it again"
        )
    kind = next((ERROR_TABLE[cls] for cls in type(error).__mro__ if cls in ERROR_TABLE), INTERNAL)
    if isinstance(error, relay_errors.RelayError):
        return ApiError(kind, error.message, error.param, _retry_after_seconds(error))
    if isinstance(error, store_errors.StoreError):
        return ApiError(kind, error.message, error.field, _retry_after_seconds(error))
    return ApiError(INTERNAL, "the server failed to handle this request: its log says why")


def install_error_handlers(app: FastAPI) -> None:
    """Every error answer of the app goes through `translate` and is counted by its code."""

    async def answer(request: Request, error: Exception) -> Response:
        api_error = translate(error)
        if isinstance(error, HTTPException) and error.status_code in (404, 405):
            api_error = replace(api_error, message=_not_served(request))
        headers = getattr(error, "headers", None)
        if api_error.kind.status == 405:
            headers = {"Allow": ", ".join(_served_methods(request))}
        serving = try_serving(request)
        if serving is not None:
            serving.metrics.on_error(api_error.kind.code)
        return error_response(api_error, headers=headers)

    async def answer_full_disk(request: Request, error: Exception) -> Response:
        if not _is_full_disk(error):
            raise error
        return await answer(request, error)

    async def answer_nobody(_: Request, __: Exception) -> Response:
        return Response(status_code=400)  # the client has gone; nobody reads this

    for kind in (relay_errors.RelayError, store_errors.StoreError, ValidationError, RequestValidationError):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, answer)
    app.add_exception_handler(OSError, answer_full_disk)
    app.add_exception_handler(Exception, answer)
    app.add_exception_handler(ClientDisconnect, answer_nobody)


def error_response(error: ApiError, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The HTTP answer, with Retry-After where trying again helps."""
    retry = {} if error.retry_after_seconds is None else {"Retry-After": str(error.retry_after_seconds)}
    return JSONResponse(error.body, status_code=error.kind.status, headers={**(headers or {}), **retry})


def _not_served(request: Request) -> str:
    return f"{request.method} {request.scope['path'][:_SHOWN_CHARS]} is not served here: see /docs"


def _served_methods(request: Request) -> list[str]:
    """Those of the request's path. Starlette names those of the first route alone."""
    routes = request.app.routes
    if isinstance(request.scope.get("endpoint"), StaticFiles):
        return ["GET", "HEAD"]
    return [
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        if any(route.matches({**request.scope, "method": method})[0] == Match.FULL for route in routes)
    ]


def _first_problem(problems: Sequence[Any], *, where_parts: int = 0) -> ApiError:
    """The first thing pydantic found, with the field's path as `param`.

    `where_parts` of FastAPI's paths say before it where the field was sent: in the URL's path, its query, the body.
    """
    problem = problems[0]
    path = [str(part) for part in problem["loc"][where_parts:]]
    message = _PLAINER.get(problem["type"]) or str(problem["msg"]).removeprefix("Value error, ")
    param = ".".join(path) or str(problem.get("ctx", {}).get("param", "")) or None
    text = f"{param}: {message}{_given(problem.get('input'))}" if path else message
    return ApiError(_VALIDATION_CODES.get(problem["type"], INVALID_BODY), text, param)


def _given(value: object) -> str:
    """The value at fault, where it is short enough to be repeated."""
    if not isinstance(value, str | int | float) or (isinstance(value, int) and abs(value) > MAX_SHOWN_INTEGER):
        return ""
    text = repr(value)
    return f" (given: {text})" if len(text) <= _SHOWN_CHARS else ""


def _is_full_disk(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _retry_after_seconds(error: Exception) -> int | None:
    if isinstance(error, relay_errors.TooBusy | relay_errors.RegistrationsBusy):
        return error.retry_after_seconds
    if isinstance(error, relay_errors.NotReady | store_errors.StoreBusy):
        return STARTUP_RETRY_SECONDS
    return None
