"""Drives an ASGI application in the test's own event loop: whole requests, broken ones, and clients that leave."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI


@dataclass
class Reply:
    """What came back so far."""

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[tuple[str, Any]]:
        """The server-sent events of the body."""
        blocks = [block for block in self.body.decode().split("\n\n") if block]
        pairs = [block.split("\n") for block in blocks]
        return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in pairs]


class Exchange:
    """One request under way. `leave()` is the client hanging up."""

    def __init__(self, app: FastAPI, scope: dict[str, Any], chunks: list[bytes]) -> None:
        self.reply = Reply()
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        for index, chunk in enumerate(chunks):
            self._messages.put_nowait({"type": "http.request", "body": chunk, "more_body": index < len(chunks) - 1})
        self._task = asyncio.create_task(app(scope, self._messages.get, self._send))

    def send(self, chunk: bytes, *, last: bool = False) -> None:
        """One more piece of the body, of a request begun without any."""
        self._messages.put_nowait({"type": "http.request", "body": chunk, "more_body": not last})

    @property
    def is_waited_for(self) -> bool:
        """Whether the application has all that was sent, and waits for more."""
        return bool(self._messages._getters)  # type: ignore[attr-defined]

    def leave(self) -> None:
        self._messages.put_nowait({"type": "http.disconnect"})

    async def finish(self) -> Reply:
        """Waits for the application; what it raises is raised."""
        await asyncio.wait_for(self._task, timeout=20)
        return self.reply

    async def until(self, text: bytes) -> None:
        """Waits until the body holds `text`."""
        async with asyncio.timeout(20):
            while text not in self.reply.body:
                await asyncio.sleep(0.001)

    async def _send(self, message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.reply.status = message["status"]
            self.reply.headers = {key.decode(): value.decode() for key, value in message["headers"]}
        else:
            self.reply.body += message.get("body", b"")
            self.reply.complete = not message.get("more_body", False)


def begin(
    app: FastAPI,
    method: str,
    path: str,
    *,
    json_body: Any = None,
    chunks: list[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Exchange:
    """Sends a request and returns at once."""
    if json_body is not None:
        chunks, headers = [json.dumps(json_body).encode()], {"content-type": "application/json", **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(key.lower().encode(), value.encode()) for key, value in (headers or {}).items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
        "app": app,
    }
    return Exchange(app, scope, chunks if chunks is not None else [b""])


async def ask(app: FastAPI, method: str, path: str, **content: Any) -> Reply:
    """A whole request."""
    return await begin(app, method, path, **content).finish()


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[FastAPI]:
    """The application between its startup and its shutdown."""
    async with app.router.lifespan_context(app):
        yield app
