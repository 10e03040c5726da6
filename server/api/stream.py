"""Server-sent events of one generation, whatever their format. Knows no engine.

Nothing is sent before the decision is there, so that whatever is refused until then gets an ordinary status.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.body import until_disconnected
from server.api.errors import ApiError, translate
from server.service import Answer, Listener

log = structlog.get_logger()

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Events(Listener, Protocol):
    """One format of events: the service's listener, which starts the stream and also hears how it ended."""

    async def on_answer(self, answer: Answer) -> None: ...

    async def on_error(self, error: ApiError) -> None: ...


class EventStream(Response):
    """Runs the generation while the response is sent, and cancels it when the client leaves.

    Written out instead of using StreamingResponse, so that it holds whatever ASGI version the server speaks.
    `on_error` is told the code of an error that comes too late for a status.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generate: Callable[[Listener], Awaitable[Answer]],
        events: "Callable[[EventSender], Events]",
        *,
        on_error: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._generate = generate
        self._events = events
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        try:
            await until_disconnected(receive, self._run(EventSender(send)))
        except ClientDisconnect:
            log.debug("client_left_stream")

    async def _run(self, sender: "EventSender") -> None:
        events = self._events(sender)
        try:
            answer = await self._generate(events)
        except Exception as error:
            if not sender.started:
                raise
            await events.on_error(self._late(error))
        else:
            await events.on_answer(answer)
        await sender.end()

    def _late(self, error: Exception) -> ApiError:
        api_error = translate(error)
        self._on_error(api_error.kind.code)
        if api_error.kind.status >= 500:
            log.error("stream_failed", exc_info=error)
        return api_error


class EventSender:
    """Events as bytes, in a response that begins with `start` and is over with `end`."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def start(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        self.started = True

    async def send(self, data: str, *, event: str | None = None) -> None:
        """One event; `data` is one line."""
        name = "" if event is None else f"event: {event}\n"
        body = f"{name}data: {data}\n\n".encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
