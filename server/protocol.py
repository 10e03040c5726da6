"""HTTP/1.1 on a connection: uvicorn's fast protocol, made safe for strangers. Knows no routes.

Its parser is compiled, where the slow one spends on ten megabytes of upload what four decode steps take. But it keeps a
header until it is complete, however long it gets; where a client offers to go on in another protocol (Java's does, and
`curl --http2`) it loses the body of the request; and where one hangs up with a second request sent already, it goes on
answering the first.
"""

from typing import Any

import httptools
from typing_extensions import override
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 64 * 1024


class BoundedProtocol(HttpToolsProtocol):
    """Refuses, with 400, a request of which about MAX_HEAD_BYTES have come without anything to hand on: an endless
    head, chunk extension or trailer. Takes up no offer of another protocol, WebSocket included."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._held_bytes = 0
        self._running: RequestResponseCycle | None = None

    @override
    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Tells the request that is being answered, which is not the newest where a client has sent more behind it."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._held_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self.logger.warning(f"invalid HTTP request: {error}")
            self.send_400_response("This is not HTTP/1.1.")
        if self._held_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"More than {MAX_HEAD_BYTES} bytes of headers.")

    def _parse(self, data: bytes) -> None:
        """The parser stops behind a head that makes an offer; it is read again without."""
        while True:
            try:
                return self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self.parser.get_method() == b"CONNECT":
                    raise httptools.HttpParserError("CONNECT is for proxies") from offer
                data = self._head_without_offer() + data[offer.args[0] :]
                self.parser = httptools.HttpRequestParser(self)

    def _head_without_offer(self) -> bytes:
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    @override
    def on_headers_complete(self) -> None:
        self._held_bytes = 0
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    @override
    def on_body(self, body: bytes) -> None:
        self._held_bytes = 0
        super().on_body(body)

    @override
    def on_message_complete(self) -> None:
        self._held_bytes = 0
        if not self.parser.should_upgrade():
            super().on_message_complete()
