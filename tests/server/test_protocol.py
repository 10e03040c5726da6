"""The protocol under uvicorn on a real socket: what it reads, and what it refuses to keep."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from server.protocol import MAX_HEAD_BYTES, BoundedProtocol

POST = b"POST / HTTP/1.1\r\nHost: here\r\n"
TUNNEL = b"CONNECT here:80 HTTP/1.1\r\nHost: here\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server that answers with the size of the body."""
    config = uvicorn.Config(_count, http=BoundedProtocol, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        deadline = time.monotonic() + 10
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


left: list[str] = []  # what those were told who streamed


async def _count(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/stream":
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        left.append((await receive())["type"])
        return
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    answer = f"{size} bytes".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})


def talk(port: int, *pieces: bytes, until: bytes = b"bytes", times: int = 1) -> bytes:
    """What the server says until it has said `until` so many times or hung up."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
        said = b""
        while said.count(until) < times and (more := connection.recv(1 << 16)):
            said += more
        return said


def endless(port: int, beginning: bytes, piece: bytes) -> tuple[bytes, int]:
    """Sends the piece until the server hangs up, 16 MiB at most; what it said, and how much was sent."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(beginning)
        try:
            while sent < 1 << 24:
                connection.sendall(piece)
                sent += len(piece)
            said = connection.recv(1 << 16)
        except (BrokenPipeError, ConnectionResetError):
            said = b""
    return said, sent


@pytest.mark.parametrize(
    ("beginning", "piece"),
    [
        (b"GET /", b"a" * 4096),
        (POST + b"X-Long: ", b"a" * 4096),
        (POST, b"X-Many: a\r\n" * 400),
        (CHUNKED[:-10] + b"5;", b"a" * 4096),
        (CHUNKED + b"0\r\nX-Long: ", b"a" * 4096),
        (CHUNKED + b"0\r\n", b"X-Many: a\r\n" * 400),
    ],
    ids=["url", "header", "headers", "chunk extension", "trailer", "trailers"],
)
def test_what_never_ends_is_cut_off(port: int, beginning: bytes, piece: bytes) -> None:
    _, sent = endless(port, beginning, piece)
    assert sent < 1 << 24  # by which time socket buffers are full, and nobody would take more


def test_a_head_that_is_too_long_is_refused_in_words(port: int) -> None:
    said = talk(port, POST + b"X-Long: " + b"a" * (MAX_HEAD_BYTES + 1))
    assert said.startswith(b"HTTP/1.1 400 ")
    assert str(MAX_HEAD_BYTES).encode() in said


def test_a_long_head_a_long_body_and_small_pieces_are_read(port: int) -> None:
    head = POST + b"X-Long: " + b"a" * (MAX_HEAD_BYTES - 200) + b"\r\nContent-Length: 300000\r\n\r\n"
    assert talk(port, head, b"b" * 300_000).endswith(b"300000 bytes")
    small = (POST + b"Content-Length: 3\r\n\r\nabc") * 2000  # more than one head may have, in 2,000 requests
    assert talk(port, small, times=2000).count(b"3 bytes") == 2000


def test_chunks_trailers_and_expect_are_read(port: int) -> None:
    assert talk(port, CHUNKED, b"0\r\nX-Sum: 1\r\n\r\n").endswith(b"5 bytes")
    expecting = POST + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    assert talk(port, expecting, b"abc").startswith(b"HTTP/1.1 100 Continue")


@pytest.mark.parametrize("times", [1, 500])
def test_an_offer_of_another_protocol_is_passed_over(port: int, times: int) -> None:
    """As Java's client and `curl --http2` make it; the body must not get lost."""
    offer = POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n"
    assert talk(port, (offer + b"Content-Length: 3\r\n\r\nabc") * times, times=times).count(b"3 bytes") == times
    chunked = offer + CHUNKED.removeprefix(POST) + b"0\r\n\r\n"
    assert talk(port, chunked, until=b"5 bytes").endswith(b"5 bytes")
    websocket = b"GET / HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert talk(port, *[websocket[i : i + 9] for i in range(0, len(websocket), 9)]).endswith(b"0 bytes")


def test_who_hangs_up_behind_a_second_request_is_gone_for_the_first(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /stream HTTP/1.1\r\nHost: here\r\n\r\n" + b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    deadline = time.monotonic() + 10
    while not left and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == ["http.disconnect"]


@pytest.mark.parametrize(
    "rubbish", [b"\x16\x03\x01\x02\x00\x01\x00", b"rubbish\r\n\r\n", POST + b"a b: c\r\n\r\n", TUNNEL]
)
def test_what_is_no_http_is_refused(port: int, rubbish: bytes) -> None:
    assert talk(port, rubbish).startswith(b"HTTP/1.1 400 ")
