"""A real HTTP server on loopback that answers every completion with the bytes it was told, piece by piece."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.support.clocks import FakeTime
from tests.support.waiting import until_true

Piece = bytes | float | Callable[["Scripted"], Awaitable[None]]  # bytes to send, seconds to wait, or what to wait for


@dataclass
class Scripted:
    """What the server says, and what it has seen."""

    pieces: Sequence[Piece]
    status: str = "200 OK"
    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    num_open: int = 0
    most_open: int = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        self.bodies.append(json.loads(await reader.readexactly(length)))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        writer.write(f"HTTP/1.1 {self.status}\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n".encode())
        for piece in self.pieces:
            if isinstance(piece, bytes):
                writer.write(piece)
                await writer.drain()
            elif callable(piece):
                await piece(self)
            else:
                await asyncio.sleep(piece)
        self.num_open -= 1
        writer.close()


@asynccontextmanager
async def scripted(*pieces: Piece, status: str = "200 OK") -> AsyncIterator[Scripted]:
    """The server, listening until the block ends."""
    script = Scripted(pieces, status)
    server = await asyncio.start_server(script.answer, "127.0.0.1", 0)
    script.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield script


def crowd(size: int) -> Piece:
    """Nobody is answered further before so many have once been answered at a time."""
    return lambda server: until_true(lambda: server.most_open >= size)


def pause(time: FakeTime, seconds: float, *, reads: int) -> Piece:
    """So long a wait on the client's clock, once the client has read it so often: that it has what came before."""

    async def wait(_: Scripted) -> None:
        await until_true(lambda: time.num_reads >= reads)
        time.sleep(seconds)

    return wait


def event(**fields: Any) -> bytes:
    return f"data: {json.dumps(fields, ensure_ascii=False)}\n\n".encode()


def text(piece: str) -> bytes:
    return event(choices=[{"index": 0, "text": piece, "finish_reason": None}], usage=None)


def usage(tokens: int) -> bytes:
    return event(choices=[], usage={"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens})


DONE = b"data: [DONE]\n\n"
