"""HTTP/1.1 on an asyncio protocol: no task and no future per request.

A connection serves its requests one after the other. A handler answers at once or later, from a
timer's callback; it is told when the client goes away before that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol, cast

import httptools
import msgspec

__all__ = ["Connection", "Handler", "OpenConnections", "error_body"]

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_HEADER_BYTES = 64 * 1024
MAX_PIPELINED = 16
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_JSON = b"content-type: application/json\r\n"
_EVENT_STREAM = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"


def error_body(status: int, message: str, kind: str = "") -> bytes:
    """Return an error in SGLang's shape (OpenAI's fields at the top level)."""
    kind = kind or HTTPStatus(status).phrase
    return msgspec.json.encode({"object": "error", "message": message, "type": kind, "param": None, "code": status})


class Handler(Protocol):
    """Answers requests."""

    def handle(self, connection: Connection, method: bytes, path: bytes, body: bytes) -> Callable[[], None] | None:
        """Answer a request, or return what to call if the client goes away before it is answered."""


class OpenConnections:
    """The connections of a server, for its end."""

    def __init__(self) -> None:
        self._connections: set[Connection] = set()
        self._none = asyncio.Event()

    def add(self, connection: Connection) -> None:
        """A connection was made."""
        self._connections.add(connection)

    def discard(self, connection: Connection) -> None:
        """A connection was lost."""
        self._connections.discard(connection)
        if not self._connections:
            self._none.set()

    async def close(self) -> None:
        """Close all connections that have no request in progress, and wait until their clients have read everything."""
        self._none.clear()
        for connection in list(self._connections):
            connection.close_if_idle()
        if self._connections:
            await self._none.wait()


class Connection(asyncio.Protocol):
    """One client connection.

    Args:
        handler: Answers its requests.
        open_connections: The server's, where it lists itself.
    """

    def __init__(self, handler: Handler, open_connections: OpenConnections) -> None:
        self._handler = handler
        self._open = open_connections
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._abandon: Callable[[], None] | None = None
        self._busy = self._chunked = False
        self._keep_alive = True
        self._waiting: deque[tuple[bytes, bytes, bytes, bool, bool]] = deque()
        self._url = b""
        self._body: list[bytes] = []
        self._body_bytes = self._header_bytes = 0
        self._refused = False
        self.writable = True

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start serving."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass
        self._open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the handler of a request not yet answered."""
        del exc
        self._transport = None
        self._open.discard(self)
        self._waiting.clear()
        abandon, self._abandon = self._abandon, None
        if abandon is not None:
            abandon()

    def pause_writing(self) -> None:
        """The client reads too slowly: streams skip chunks until it has caught up."""
        self.writable = False

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.writable = True

    def data_received(self, data: bytes) -> None:
        """Feed the parser; anything that is not HTTP is refused and the connection closed."""
        if self._refused:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "upgrading the connection is not supported")
        except httptools.HttpParserCallbackError:
            if not self._refused:  # not the client's fault: let the loop's exception handler report it
                self._close()
                raise
        except httptools.HttpParserError as error:
            if not self._refused:
                self._refuse(400, f"malformed HTTP request: {error}")

    # httptools callbacks

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._body = []
        self._body_bytes = self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """Part of the request target."""
        self._url += url
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header field."""
        self._count_header(len(name) + len(value))
        if name.lower() == b"expect" and value.lower() == b"100-continue" and self._transport is not None:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """Part of the body."""
        self._body_bytes += len(body)
        if self._body_bytes > MAX_BODY_BYTES:
            self._refuse(413, f"the body is over {MAX_BODY_BYTES} bytes")
            raise ValueError("body too large")
        self._body.append(body)

    def on_message_complete(self) -> None:
        """A whole request is there: serve it now, or after the one in progress."""
        path = self._url.partition(b"?")[0]
        chunked = self._parser.get_http_version() != "1.0"
        request = (self._parser.get_method(), path, b"".join(self._body), self._parser.should_keep_alive(), chunked)
        self._body = []
        self._waiting.append(request)
        if len(self._waiting) == MAX_PIPELINED and self._transport is not None:
            self._transport.pause_reading()
        if not self._busy:
            self._next()

    def _count_header(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEADER_BYTES:
            self._refuse(431, f"the request's header is over {MAX_HEADER_BYTES} bytes")
            raise ValueError("header too large")

    # answering

    def _next(self) -> None:
        while self._waiting and not self._busy and self._transport is not None:
            method, path, body, self._keep_alive, self._chunked = self._waiting.popleft()
            if len(self._waiting) == MAX_PIPELINED - 1:
                self._transport.resume_reading()
            self._busy = True
            abandon = self._handler.handle(self, method, path, body)
            self._abandon = abandon if self._busy else None

    def _refuse(self, status: int, message: str) -> None:
        self._refused = True
        self._keep_alive = False
        self._waiting.clear()
        if self._busy:  # an answer is under way: it cannot be followed by anything sensible
            self._close()
            return
        self._busy = True
        self.respond(status, error_body(status, message))

    def respond(self, status: int, body: bytes, content_type: bytes = _JSON) -> None:
        """Answer the current request with a whole body."""
        if self._transport is not None:
            head = b"%s%scontent-length: %d\r\n" % (_STATUS_LINES[status], content_type, len(body))
            self._transport.write(head + (b"\r\n" if self._keep_alive else b"connection: close\r\n\r\n") + body)
        self._answered()

    def start_stream(self, events: bytes) -> None:
        """Begin a stream of server-sent events as the answer to the current request."""
        if self._transport is None:
            return
        if not self._chunked:
            self._keep_alive = False
        head = _STATUS_LINES[200] + _EVENT_STREAM
        head += b"" if self._keep_alive else b"connection: close\r\n"
        head += b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"
        self._transport.write(head + self._framed(events))

    def send(self, events: bytes) -> None:
        """Send a part of the stream."""
        if self._transport is not None:
            self._transport.write(self._framed(events))

    def end_stream(self, events: bytes) -> None:
        """Send the last part of the stream."""
        if self._transport is not None:
            self._transport.write(self._framed(events) + (b"0\r\n\r\n" if self._chunked else b""))
        self._answered()

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%s\r\n" % (len(data), data) if self._chunked and data else data

    def _answered(self) -> None:
        was_late = self._abandon is not None
        self._busy, self._abandon = False, None
        if not self._keep_alive:
            self._close()
        elif was_late:
            self._next()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def close_if_idle(self) -> None:
        """Close a connection that has no request in progress (shutdown)."""
        if not self._busy:
            self._close()
