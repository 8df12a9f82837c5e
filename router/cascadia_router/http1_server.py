"""HTTP/1.1 server on `asyncio.Protocol` and llhttp: no task and no future per request.

One `ServerConnection` answers its requests one after the other. Requests that arrive while one is
being answered (pipelining) wait in a queue that one socket read bounds, and reading stops until they
are served. Everything a peer can make grow has a limit: header bytes and count, body bytes, bytes on
the wire per message (chunk framing, trailers), time to send a request, idle time.

Time-outs here are wall seconds even where the service clock is scaled: a handshake or an upload runs
at the machine's speed, however fast the service's time passes.
"""

from __future__ import annotations

import asyncio
import http
import logging
from collections import deque
from time import monotonic
from typing import NamedTuple, cast

import httptools

from cascadia_router.http1_request import Application, InFlight, Limits, Request
from cascadia_router.openai_errors import error_body

__all__ = ["JSON", "ServerConnection"]

log = logging.getLogger("cascadia.router.http")

STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in http.HTTPStatus}
JSON = b"application/json"


class _Refusal(NamedTuple):
    """A request that broke a limit or the protocol, in its place in the queue."""

    status: int
    message: str
    code: str


class ServerConnection(asyncio.Protocol):
    """One peer's connection. `respond`, or `begin`, `send` and `end`, answer the request in hand."""

    __slots__ = (
        "_application",
        "_body",
        "_body_bytes",
        "_busy",
        "_chunked",
        "_close_after",
        "_connections",
        "_head",
        "_headers",
        "_headers_done",
        "_keep_alive",
        "_limits",
        "_lingering",
        "_message_bytes",
        "_no_body",
        "_parser",
        "_paused",
        "_queue",
        "_raw_missing",
        "_refused",
        "_since",
        "_target",
        "_transport",
        "in_flight",
    )

    def __init__(self, application: Application, limits: Limits, connections: set[ServerConnection]) -> None:
        self._application = application
        self._limits = limits
        self._connections = connections  # the listener's, this one among them while it is open
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request | _Refusal] = deque()
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self.in_flight: InFlight | None = None
        self._busy = False  # a request is being answered
        self._paused = False
        self._refused = False  # nothing that still arrives is read as a request
        self._lingering = False
        self._close_after = False
        self._raw_missing = 0  # body bytes still to come past an ignored Upgrade
        self._since = monotonic()  # of the message's first byte, or of the last answer
        self._head = b""
        self._keep_alive = True
        self._chunked = False
        self._no_body = False
        self._start_message()

    def _start_message(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._headers_done = False
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._message_bytes = 0

    # -- the transport's side ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See `asyncio.Protocol`."""
        self._connections.discard(self)
        self._refused = True
        self._queue.clear()
        in_flight, self.in_flight = self.in_flight, None
        if in_flight is not None:
            in_flight.client_gone()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        if self.in_flight is not None:
            self.in_flight.client_paused()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        if self.in_flight is not None:
            self.in_flight.client_resumed()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._refused:
            return
        if self._message_bytes == 0:
            self._since = monotonic()
        self._message_bytes += len(data)
        if self._raw_missing:
            self._raw_body(data)
        else:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                self._ignore_upgrade(data[upgrade.args[0] :])
            except httptools.HttpParserCallbackError:
                log.exception("taking a request failed")
                self.abort()
                return
            except httptools.HttpParserError:
                self._refuse(400, "The request is not valid HTTP/1.1.", "malformed_request")
        if self._message_bytes > self._limits.header_bytes and not self._headers_done:
            self._refuse_headers()
        elif self._message_bytes > self._limits.header_bytes + 2 * self._limits.body_bytes:
            self._refuse_body()
        if self._queue and not self._busy:
            self._dispatch()
        if self._busy and (self._queue or self._message_bytes) and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    # -- the parser's side ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins, maybe in the middle of a read."""
        self._message_bytes = self._message_bytes or 1

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._target += url
        if len(self._target) > self._limits.header_bytes:
            self._refuse_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is dropped."""
        if not self._headers_done:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The head is complete: settle what can be settled before the body."""
        self._headers_done = True
        headers, limits = self._headers, self._limits
        if len(headers) > limits.headers or self._head_is_over(limits.header_bytes):
            self._refuse_headers()
        length = headers.get(b"content-length")
        if length is not None and int(length) > limits.body_bytes:
            self._refuse_body()
        elif not self._refused and headers.get(b"expect", b"").lower() == b"100-continue" and not self._busy:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _head_is_over(self, limit: int) -> bool:
        if self._message_bytes <= limit:
            return False
        return len(self._target) + sum(len(name) + len(value) for name, value in self._headers.items()) > limit

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.body_bytes:
            self._refuse_body()
        elif not self._refused:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if self._refused:
            return
        parser = self._parser
        if (
            b"upgrade" in self._headers
            and parser.should_upgrade()
            and self._headers.get(b"content-length", b"0") != b"0"
        ):
            return  # llhttp leaves the body to the new protocol, which we do not speak: see _ignore_upgrade
        body = self._body
        request = Request(
            parser.get_method(),
            self._target,
            self._headers,
            body[0] if len(body) == 1 else b"".join(body),
            self._since,
        )
        request.keep_alive = parser.should_keep_alive()
        # HTTP/1.0 keeps no connection unasked, and asking for the version costs a formatted string.
        request.chunked = (
            request.keep_alive and b"connection" not in self._headers
        ) or parser.get_http_version() != "1.0"
        self._start_message()
        self._queue.append(request)

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Serve a request that offers another protocol (Java's client offers h2c) as plain HTTP/1.1."""
        length = int(self._headers.get(b"content-length", b"0"))
        if not length:  # complete, and in the queue; what follows is unknown ground
            self._close_after = True
            return
        if b"transfer-encoding" in self._headers:
            self._refuse(400, "A chunked body cannot go with Upgrade.", "malformed_request")
            return
        self._raw_missing = length
        self._raw_body(rest)

    def _raw_body(self, data: bytes) -> None:
        if self._refused:
            return
        self._body.append(data[: self._raw_missing])
        self._raw_missing -= len(self._body[-1])
        if not self._raw_missing:
            request = Request(self._parser.get_method(), self._target, self._headers, b"".join(self._body), self._since)
            request.keep_alive = False
            self._start_message()
            self._queue.append(request)
            self._close_after = True

    # -- refusing ---------------------------------------------------------------------------------

    def _refuse_headers(self) -> None:
        limits = self._limits
        message = f"The headers are over {limits.header_bytes} bytes or {limits.headers} lines."
        self._refuse(431, message, "headers_too_large")

    def _refuse_body(self) -> None:
        message = f"The body is over {self._limits.body_bytes} bytes: shorten the request."
        self._refuse(413, message, "request_too_large")

    def _refuse(self, status: int, message: str, code: str) -> None:
        if not self._refused:
            self._refused = True
            self._body.clear()
            self._queue.append(_Refusal(status, message, code))

    # -- answering --------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self._busy or not self._queue or self._transport.is_closing():
            return
        request = self._queue.popleft()
        self._busy = True
        self._no_body = False
        if isinstance(request, _Refusal):
            self._keep_alive = False
            self._lingering = True
            self.respond(request.status, error_body(request.status, request.message, code=request.code))
            return
        self._keep_alive = request.keep_alive and not self._close_after
        self._chunked = request.chunked
        self._no_body = request.method == b"HEAD"
        try:
            self._application.handle(self, request)
        except Exception:
            log.exception("a request's handler failed")
            self.abort()

    def respond(self, status: int, body: bytes, *, head: bytes = b"", content_type: bytes = JSON) -> None:
        """Answer with one whole body.

        Args:
            status: HTTP status.
            body: All of it.
            head: Further header lines, each ending in CRLF.
            content_type: Of the body.
        """
        self._write(
            b"%scontent-type: %s\r\n%scontent-length: %d\r\n%s\r\n%s"
            % (STATUS_LINES[status], content_type, head, len(body), self._connection_line(), self._body_of(body))
        )
        self._answered()

    def begin(self, status: int, head: bytes, length: int | None) -> None:
        """Begin an answer whose body comes in pieces; the head leaves with the first of them.

        Args:
            status: HTTP status.
            head: Header lines, each ending in CRLF, content type included.
            length: Bytes of the body; None if unknown.
        """
        if length is not None:
            framing = b"content-length: %d\r\n" % length
            self._chunked = False
        elif self._chunked:
            framing = b"transfer-encoding: chunked\r\n"
        else:
            framing = b""
            self._keep_alive = False
        self._head = b"%s%s%s%s\r\n" % (STATUS_LINES[status], head, framing, self._connection_line())

    def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        head, self._head = self._head, b""
        if self._no_body:
            self._write(head)
        elif self._chunked and data:
            self._write(b"%s%x\r\n%s\r\n" % (head, len(data), data))
        else:
            self._write(head + data)

    def end(self, data: bytes = b"") -> None:
        """Send the last piece of the body and be done with this request."""
        head, self._head = self._head, b""
        if self._no_body:
            self._write(head)
        elif self._chunked:
            piece = b"%x\r\n%s\r\n" % (len(data), data) if data else b""
            self._write(b"%s%s0\r\n\r\n" % (head, piece))
        else:
            self._write(head + data)
        self._answered()

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():  # uvloop's transports refuse to write then
            self._transport.write(data)

    def close_after_answer(self) -> None:
        """Close once the answer in hand is sent, whatever its head said."""
        self._keep_alive = False

    def break_off(self) -> None:
        """Close in the middle of the answer, after what was sent, so that it cannot pass for a whole one."""
        self.in_flight = None
        self._transport.close()

    def _connection_line(self) -> bytes:
        if self._application.closing:
            self._keep_alive = False
        return b"" if self._keep_alive else b"connection: close\r\n"

    def _body_of(self, body: bytes) -> bytes:
        return b"" if self._no_body else body

    def _answered(self) -> None:
        self.in_flight = None
        self._busy = False
        self._since = monotonic()
        if self._lingering:
            if self._transport.can_write_eof():
                self._transport.write_eof()
        elif not self._keep_alive:
            self._transport.close()
        elif self._queue:
            asyncio.get_running_loop().call_soon(self._dispatch)
        if self._paused and not self._transport.is_closing() and not self._queue:
            self._paused = False
            self._transport.resume_reading()

    # -- the listener's side ----------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        return not (self._busy or self._queue or self._message_bytes)

    def close(self) -> None:
        """Close once what was written is sent."""
        self._transport.close()

    def abort(self) -> None:
        """Close at once, so that the peer cannot take a cut answer for a whole one."""
        self._transport.abort()

    def expire(self, now: float) -> None:
        """Close if the peer takes too long to send, or has been idle too long."""
        age = now - self._since
        if self._lingering:
            if not self._busy and age > self._limits.linger_seconds:
                self.abort()
        elif self._busy or self._queue:
            return
        elif self._message_bytes:
            if age > self._limits.receive_seconds:
                self._refuse(408, f"The request took over {self._limits.receive_seconds:g} s to arrive.", "timeout")
                self._dispatch()
        elif age > self._limits.idle_seconds:
            self.close()
