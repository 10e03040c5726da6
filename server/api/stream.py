"""Server-sent events of one generation: routing, then tokens, then done, or an error. Knows no engine.

Nothing is sent before the decision is there, so that whatever is refused until then gets an ordinary status.
"""

import json
from collections.abc import Awaitable, Callable

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server.api.body import until_disconnected
from server.api.errors import ApiError, translate
from server.api.views import done_event, routing_model
from server.routing.base import Decision
from server.service import Answer, Listener

log = structlog.get_logger()

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream(Response):
    """Runs the generation while the response is sent, and cancels it when the client leaves.

    Written out instead of using StreamingResponse, so that it holds whatever ASGI version the server speaks.
    `on_error` is told the code of an error that comes too late for a status.
    """

    media_type = "text/event-stream"

    def __init__(self, generate: Callable[[Listener], Awaitable[Answer]], *, on_error: Callable[[str], None]) -> None:
        super().__init__()
        self._generate = generate
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        events = EventSender(send)
        try:
            await until_disconnected(receive, self._run(events))
        except ClientDisconnect:
            log.debug("client_left_stream")

    async def _run(self, events: "EventSender") -> None:
        try:
            answer = await self._generate(events)
        except Exception as error:
            if not events.started:
                raise
            await events.send("error", json.dumps(self._late(error).body))
        else:
            await events.send("done", done_event(answer).model_dump_json())
        await events.end()

    def _late(self, error: Exception) -> ApiError:
        api_error = translate(error)
        self._on_error(api_error.kind.code)
        if api_error.kind.status >= 500:
            log.error("stream_failed", exc_info=error)
        return api_error


class EventSender:
    """The service's listener that turns what it hears into events."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def on_decision(self, request_id: str, decision: Decision) -> None:  # noqa: ARG002
        await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        self.started = True
        await self.send("routing", routing_model(decision).model_dump_json())

    async def on_text(self, text: str) -> None:
        await self.send("token", json.dumps({"text": text}, ensure_ascii=False))

    async def send(self, event: str, data: str) -> None:
        """One event; `data` is JSON on one line."""
        body = f"event: {event}\ndata: {data}\n\n".encode()
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})
