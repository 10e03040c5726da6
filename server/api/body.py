"""Request bodies: size limits while they arrive, JSON into models, and clients that leave. Knows no routes."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import BodyTooLarge, UnsupportedBody

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")
UPLOAD_ROUTES = frozenset({("POST", "/experts"), ("POST", "/routers/learned")})


class BodyLimit:
    """ASGI middleware: raises BodyTooLarge where the body is read, by its declared and by its counted size."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_upload_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = self._limited(scope, receive)
        await self._app(scope, receive, send)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        is_upload = (scope["method"], scope["path"]) in UPLOAD_ROUTES
        limit = self._max_upload_bytes if is_upload else self._max_body_bytes
        flag = "--max-upload-bytes" if is_upload else "--max-body-bytes"
        too_large = BodyTooLarge(
            "the body", limit_bytes=limit, way_out=f"send less, or start the server with a larger {flag}"
        )
        declared = _declared_bytes(scope)
        received = 0

        async def limited() -> Message:
            nonlocal received
            if declared > limit:
                raise too_large
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            return message

        return limited


def read_json(model: type[Model]) -> Callable[[Request], Awaitable[Model]]:
    """A dependency that reads the body as this model. It raises UnsupportedBody, BodyTooLarge or ValidationError.

    pydantic's own JSON reader bounds nesting and refuses lone surrogates, which the standard library's does not.
    """

    async def read(request: Request) -> Model:
        content_type = request.headers.get("content-type", "application/json")
        if content_type.partition(";")[0].strip().lower() != "application/json":
            raise UnsupportedBody(content_type, "application/json")
        return model.model_validate_json(await request.body())

    return read


async def until_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; it is cancelled, and ClientDisconnect raised, when the client leaves first.

    The request's body must have been read.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _declared_bytes(scope: Scope) -> int:
    declared = Headers(scope=scope).get("content-length", "")
    return int(declared) if declared.isascii() and declared.isdigit() and len(declared) < 20 else 0
