"""HTTP/1.1 server on `asyncio.Protocol` and llhttp: no task and no future per request.

One `ServerConnection` answers its requests one after the other. Requests that arrive while one is
being answered (pipelining) wait in a queue that one socket read bounds, and reading stops until they
are served. Sending a request and idling have a time limit.

Time-outs here are wall seconds even where the service clock is scaled: a handshake or an upload runs
at the machine's speed, however fast the service's time passes.
"""

from __future__ import annotations

import asyncio
import http
import logging
import select
from time import monotonic
from typing import Final, cast

import httptools

from cascadia_router.http1_head import PLAIN_POST
from cascadia_router.http1_receiving import Receiving, Refusal
from cascadia_router.http1_request import JSON, Application, InFlight, Limits, Request, Room
from cascadia_router.openai_errors import error_body
from cascadia_router.outbox import Outbox

__all__ = ["JSON", "ServerConnection"]

log = logging.getLogger("cascadia.router.http")

_PHRASES: Final = {status.value: status.phrase for status in http.HTTPStatus}
STATUS_LINES: Final = {
    status: f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode() for status in range(100, 600)
}
_REFUSAL_LINES = {401: b"www-authenticate: Bearer\r\n", 429: b"retry-after: 1\r\n"}
_SMALL_BODY: Final = 4096
"""Bodies up to this size are bounded by the number of requests that a router holds: they take no `Room`."""
_CAN_SEE_LEAVING = hasattr(select, "POLLRDHUP")
"""Linux can; elsewhere a client that pipelines requests and leaves is noticed when it is answered."""
_SHORTEST_LINE: Final = len(b"a:\r\n")
_match_plain_post: Final = PLAIN_POST.match


class ServerConnection(Receiving):
    """One peer's connection, an `asyncio.Protocol` by its methods.

    `respond`, or `begin`, `send` and `end`, answer the request in hand.
    """

    __slots__ = (
        "_application",
        "_choked_since",
        "_chunked",
        "_connections",
        "_fresh",
        "_head",
        "_keep_alive",
        "_lingering",
        "_no_body",
        "_paused",
        "in_flight",
        "own_lines",
    )

    def __init__(
        self, application: Application, limits: Limits, connections: set[ServerConnection], room: Room
    ) -> None:
        super().__init__(limits, room)
        self._application = application
        self._connections = connections  # the listener's, this one among them while it is open
        self.in_flight: InFlight | None = None
        self.own_lines = b""
        self._fresh = True  # what comes next is the first of a request, and nothing else is under way
        self._paused = False
        self._choked_since = 0.0  # when the peer last left too much unread; 0: it has caught up
        self._lingering = False
        self._head = b""
        self._keep_alive = True
        self._chunked = False
        self._no_body = False

    # -- the transport's side ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        self._outbox = Outbox.of_running_loop()
        if len(self._connections) >= self._limits.connections:
            self._refused = True
            self._transport.abort()
        else:
            self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See `asyncio.Protocol`."""
        self._connections.discard(self)
        self._refused = True
        self._queue.clear()
        self._body.clear()
        self._free_room()
        in_flight, self.in_flight = self.in_flight, None
        if in_flight is not None:
            in_flight.client_gone()

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._choked_since = monotonic()
        if self.in_flight is not None:
            self.in_flight.client_paused()
        elif not self._busy:
            self._hold()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._choked_since = 0.0
        if self.in_flight is not None:
            self.in_flight.client_resumed()
        elif not self._busy:
            self._go_on()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._fresh:
            limits = self._limits
            head = _match_plain_post(data) if len(data) <= limits.header_bytes else None
            if head is not None:
                target, traced, credentials, length, traced_too, credentials_too = head.groups()
                end = head.end()
                size = len(data) - end
                if (
                    size == int(length) <= limits.body_bytes
                    and (end < _SHORTEST_LINE * limits.headers or data.count(b"\n", 0, end) <= limits.headers + 2)
                    and (size <= _SMALL_BODY or self._room.take(size))
                ):
                    if size > _SMALL_BODY:
                        self._room_taken += size
                    request = Request(target, data, data[end:], monotonic(), bool(traced or traced_too))
                    request.authorization = (credentials if credentials_too is None else credentials_too) or b""
                    self._fresh = self._no_body = False
                    self._busy = self._chunked = True
                    self._hand_on(request)
                    return
            self._fresh = False
        if self._refused:
            return
        try:
            self._receive(data)
        except httptools.HttpParserCallbackError:
            log.exception("taking a request failed")
            self.abort()
            return
        if self._queue and not self._busy:
            self._dispatch()
        if self._busy and (self._queue or self._message_bytes):
            self._hold()

    def _expects_body(self) -> bool:
        return self._application.expects(self._target, self._headers.get(b"authorization", b""))

    def _hold(self) -> None:
        """Read no further for now."""
        if not (self._paused or self._transport.is_closing()):
            self._fresh = False
            self._paused = True
            self._transport.pause_reading()

    # -- answering --------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self._busy or not self._queue or self._choked_since or self._transport.is_closing():
            return
        request = self._queue.popleft()
        if isinstance(request, Refusal):
            self._busy = True
            self._no_body = False
            self._keep_alive = False
            self._lingering = True
            head = _REFUSAL_LINES.get(request.status, b"")
            head += self._application.turned_away(request.status, request.code, request.given_id)
            self.respond(request.status, error_body(request.status, request.message, code=request.code), head)
            return
        self._take(request)

    def _take(self, request: Request) -> None:
        self._fresh = False
        self._busy = True
        self._keep_alive = request.keep_alive
        self._chunked = request.chunked
        self._no_body = request.method == b"HEAD"
        self._hand_on(request)

    def _hand_on(self, request: Request) -> None:
        try:
            self._application.handle(self, request)
        except Exception:
            log.exception("a request's handler failed")
            self.abort()

    def respond(self, status: int, body: bytes, head: bytes = b"", content_type: bytes = JSON) -> None:
        """Answer with one whole body.

        Args:
            status: HTTP status.
            body: All of it.
            head: Further header lines, each ending in CRLF.
            content_type: Of the body.
        """
        closing = self._connection_line() if self._application.closing or not self._keep_alive else b""
        self._outbox.write(
            self._transport,
            b"%scontent-type: %s\r\n%s%scontent-length: %d\r\n%s\r\n%s"
            % (
                STATUS_LINES[status],
                content_type,
                head,
                self.own_lines,
                len(body),
                closing,
                b"" if self._no_body else body,
            ),
        )
        self._answered()

    def pass_on(self, message: bytes, body: bytes) -> None:
        """Answer with another server's plain 200 answer as it is.

        Args:
            message: All of it; its head asks for no closing (`http1_head.PLAIN_ANSWER`).
            body: Its body.
        """
        closing = self._connection_line()
        if self._no_body:
            message = message[: len(message) - len(body)]
        if self.own_lines or closing:
            lines = message.index(b"\n") + 1
            message = b"%s%s%s%s" % (message[:lines], self.own_lines, closing, message[lines:])
        self._write(message)
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
        lines = (STATUS_LINES[status], head, self.own_lines, framing, self._connection_line())
        self._head = b"%s%s%s%s%s\r\n" % lines

    def send(self, data: bytes) -> None:
        """Send a piece of the body."""
        if self._chunked and data and not (self._head or self._no_body):
            self._outbox.write(self._transport, b"%x\r\n%s\r\n" % (len(data), data))
            return
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
        self._outbox.write(self._transport, data)

    def close_after_answer(self) -> None:
        """Close once the answer in hand is sent, whatever its head said."""
        self._keep_alive = False

    def break_off(self) -> None:
        """Close in the middle of the answer, after what was sent, so that it cannot pass for a whole one."""
        self.in_flight = None
        self.close()

    def _connection_line(self) -> bytes:
        if self._application.closing:
            self._keep_alive = False
        return b"" if self._keep_alive else b"connection: close\r\n"

    def _answered(self) -> None:
        self.in_flight = None
        self.own_lines = b""
        self._busy = False
        self._since = monotonic()
        if self._room_taken:
            self._free_room()
        if self._keep_alive and not (self._paused or self._queue or self._message_bytes or self._choked_since):
            self._fresh = not self._refused
            return
        if self._lingering:
            self._outbox.flush()
            if self._transport.can_write_eof():
                self._transport.write_eof()
        elif not self._keep_alive:
            self.close()
        if self._choked_since:
            self._hold()  # no more requests from whoever reads no answers
        else:
            self._go_on()

    def _go_on(self) -> None:
        """Take the next request, or read on if none waits."""
        if self._transport.is_closing():
            return
        if self._queue:
            asyncio.get_running_loop().call_soon(self._dispatch)
        elif self._paused:
            self._paused = False
            self._fresh = not (self._refused or self._message_bytes)
            self._transport.resume_reading()

    # -- the listener's side ----------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        return not (self._busy or self._queue or self._message_bytes)

    def close(self) -> None:
        """Close once what was written is sent; a peer that does not read it is waited for as `expire` says."""
        self._outbox.flush()
        self._since = monotonic()
        self._transport.close()

    def abort(self) -> None:
        """Close at once, so that the peer cannot take a cut answer for a whole one."""
        self._transport.abort()

    def expire(self, now: float) -> None:
        """Close if the peer takes too long to send or to read, or has been idle too long."""
        age = now - self._since
        limits = self._limits
        if self._choked_since and now - self._choked_since > limits.send_seconds:
            self.abort()
        elif self._transport.is_closing():
            if age > limits.send_seconds:
                self.abort()
        elif self._lingering:
            if not self._busy and age > limits.linger_seconds:
                self.abort()
        elif self._busy or self._queue:
            if self._paused and self._peer_has_left():
                self.abort()
        elif self._message_bytes:
            longest = limits.receive_seconds if self._headers_done else min(limits.head_seconds, limits.receive_seconds)
            if age > longest:
                self._refuse(408, f"The request took over {longest:g} s to arrive.", "timeout")
                self._dispatch()
        elif age > limits.idle_seconds:
            self.close()

    def _peer_has_left(self) -> bool:
        """Whether the peer has closed its side, which nobody tells while reading is paused: it has sent ahead."""
        if not _CAN_SEE_LEAVING:
            return False
        poller = select.poll()
        poller.register(self._transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return bool(poller.poll(0))
