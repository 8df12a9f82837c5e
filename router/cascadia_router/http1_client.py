"""HTTP/1.1 client on `asyncio.Protocol` and llhttp: keep-alive connections, callbacks, no futures.

An `Upstream` is one ``host:port`` with its idle connections. `Upstream.send` takes a request's bytes and
a `ResponseSink` whose methods are called as the answer arrives. Only making a new connection costs a
task; kept connections make that rare.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from time import monotonic
from typing import Final, cast

import httptools

from cascadia_router.http1_head import PLAIN_ANSWER
from cascadia_router.outbox import Outbox
from cascadia_router.response_sink import Fault, ResponseSink

__all__ = ["Call", "Upstream"]

log = logging.getLogger("cascadia.router.http")

CONNECT_SECONDS = 5.0
"""Longest time to make a connection, wall s (a handshake runs at the machine's speed)."""
IDLE_SECONDS: Final = 4.0
"""Longest idle time after which a connection is used again, wall s: uvicorn, which SGLang runs on,
closes after 5, and a request that meets the closing is lost."""
MAX_IDLE: Final = 256
MAX_HEAD_BYTES: Final = 64 * 1024
_match_plain_answer: Final = PLAIN_ANSWER.match


class Upstream:
    """One server with its kept connections.

    Attributes:
        address: ``host:port``.
        host_line: The `Host` header's line for requests to it.
        heard: Times that something has come from it.
        idle: Connections whose call is complete and that can carry another, the last used last.
        tls: How connections are encrypted; None: they are not.
    """

    def __init__(self, address: str, tls: ssl.SSLContext | None = None) -> None:
        self.address = address
        self.tls = tls
        host, _, port = address.rpartition(":")
        self.host = host.strip("[]")
        self.port = int(port)
        self.host_line = b"host: " + address.encode("idna" if not address.isascii() else "ascii") + b"\r\n"
        self.heard = 0
        self.idle: list[Call] = []
        self._plain = (b"", b"")  # the head of the last plain answer before and after the digits of its length
        self._connecting: set[asyncio.Task[None]] = set()
        self._open: set[Call] = set()

    def plain_body(self, data: bytes) -> int:
        """Length of the body if this is a whole plain answer with a body (`http1_head`); 0 if it is not.

        Answers of one second mostly differ in no other line of their heads than in Content-Length: a head that was
        matched is remembered around it, so that the next is compared, for a third of what it costs to match one.
        """
        before, after = self._plain
        start = len(before)
        if start and data.startswith(before):
            end = data.find(b"\r", start, start + 10)
            digits = data[start:end]
            if end > 0 and digits.isdigit() and data.startswith(after, end):
                length = int(digits)
                return length if end + len(after) + length == len(data) else 0
        head = _match_plain_answer(data)
        if head is None:
            return 0
        start, end = head.span(1)
        self._plain = (data[:start], data[end : head.end()])
        length = int(head[1])
        return length if head.end() + length == len(data) else 0

    def send(self, request: bytes, sink: ResponseSink, *, fresh: bool = False) -> Call:
        """Send a request; its answer goes to `sink`.

        Args:
            request: Head and body, ready for the wire.
            sink: Takes the answer. Never called before this method has returned.
            fresh: Whether to insist on a new connection.

        Returns:
            The call, to pause, resume or abort.
        """
        oldest = monotonic() - IDLE_SECONDS
        idle = self.idle
        while idle and not fresh:
            call = idle.pop()
            if call.kept_since >= oldest and call.reuse(request, sink):
                return call
            call.close()
        call = Call(self, request, sink)
        task = asyncio.get_running_loop().create_task(self._connect(call))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)
        return call

    async def _connect(self, call: Call) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().create_connection(
                    lambda: cast("asyncio.Protocol", call),
                    self.host,
                    self.port,
                    ssl=self.tls,
                    server_hostname=self.host if self.tls else None,
                )
        except OSError:  # TimeoutError and socket.gaierror included
            call.unreachable()

    def opened(self, call: Call) -> None:
        """A call's connection was made."""
        self._open.add(call)

    def closed(self, call: Call) -> None:
        """A call's connection is gone."""
        self._open.discard(call)
        if call in self.idle:
            self.idle.remove(call)

    def sweep(self) -> None:
        """Close the connections that are too old to be used again."""
        oldest = monotonic() - IDLE_SECONDS
        while self.idle and self.idle[0].kept_since < oldest:
            self.idle.pop(0).close()

    def lose(self) -> None:
        """The server is silent: fail the calls under way, and keep no connection."""
        for call in list(self._open):
            call.lose()

    def close(self) -> None:
        """Close all connections; calls under way are dropped without a word to their sinks."""
        self.idle.clear()
        for task in self._connecting:
            task.cancel()
        for call in list(self._open):
            call.abort()


class Call:
    """One connection to an upstream, an `asyncio.Protocol` by its methods, and the call that it carries now.

    Attributes:
        reused: Whether the connection had carried a call before this one.
        kept_since: When it became idle, machine's monotonic s.
    """

    __slots__ = (
        "_complete",
        "_head_bytes",
        "_head_done",
        "_headers",
        "_outbox",
        "_parser",
        "_paused",
        "_payload",
        "_received",
        "_sink",
        "_spoilt",
        "_transport",
        "_until_close",
        "_upstream",
        "kept_since",
        "reused",
    )

    def __init__(self, upstream: Upstream, request: bytes, sink: ResponseSink) -> None:
        self._upstream = upstream
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._sink: ResponseSink | None = sink
        self._payload = request
        self.reused = False
        self.kept_since = 0.0
        self._paused = False
        self._spoilt = False  # the connection must not be used again
        self._start_response()

    def _start_response(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._head_done = False
        self._until_close = False
        self._complete = False
        self._received = False  # anything of the answer, in the parser's hands since

    def reuse(self, request: bytes, sink: ResponseSink) -> bool:
        """Carry another call on the kept connection; False if it has closed."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        self.reused = True
        self._sink = sink
        if self._received:
            self._start_response()
        self._outbox.write(transport, request)
        return True

    def hand_to(self, sink: ResponseSink) -> None:
        """Let another sink take what is still to come; nothing is if the answer is complete or has failed."""
        if self._sink is not None:
            self._sink = sink

    # -- the caller's side ------------------------------------------------------------------------

    def pause(self) -> None:
        """Read no further until `resume`."""
        if self._transport is not None and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Drop the call: the server sees its connection closed, and the sink hears nothing more."""
        self._sink = None
        self._spoilt = True
        if self._transport is not None:
            self._transport.abort()

    def lose(self) -> None:
        """Fail the call under way: the server is silent."""
        self._fail(Fault.BROKEN if self._head_done else Fault.SILENT)

    def close(self) -> None:
        """Close a connection that carries no call."""
        self._spoilt = True
        if self._transport is not None:
            self._transport.close()

    # -- the transport's side ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast("asyncio.Transport", transport)
        if self._sink is None:  # aborted while connecting
            self._transport.abort()
            return
        self._outbox = Outbox.of_running_loop()
        self._upstream.opened(self)
        self._transport.write(self._payload)
        self._payload = b""

    def unreachable(self) -> None:
        """The connection could not be made."""
        self._fail(Fault.UNREACHABLE)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """See `asyncio.Protocol`."""
        self._upstream.closed(self)
        self._spoilt = True
        if self._sink is None:
            return
        if self._head_done and self._until_close:
            self._finish()
        else:
            self._fail(Fault.BROKEN if self._head_done else Fault.LOST)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._upstream.heard += 1
        sink = self._sink
        if sink is None:  # nobody asked: not a connection to trust with another call
            self.close()
            return
        if not self._received:
            length = self._upstream.plain_body(data)
            if length:
                self._sink = None
                self._keep()
                sink.response_whole(data, data[-length:])
                return
            self._received = True
        if not self._head_done:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            log.exception("taking an answer from %s failed", self._upstream.address)
            self._fail(Fault.MALFORMED)
            return
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._spoilt = True
            if not self._complete:
                self._fail(Fault.MALFORMED)
                return
        if self._complete:
            self._finish()
        elif not self._head_done and self._head_bytes > MAX_HEAD_BYTES:
            self._fail(Fault.MALFORMED)
        elif self._head_done and self._sink is not None:
            self._sink.response_pump()

    # -- the parser's side ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins; a second one to the same request spoils the connection."""
        if self._complete:
            self._spoilt = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; trailers are dropped."""
        if not self._head_done:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """The head is complete."""
        status = self._parser.get_status_code()
        if not 100 <= status < 600:  # no status that HTTP has
            status = 502
        if status < 200 or self._complete or self._sink is None:
            return
        self._head_done = True
        headers = self._headers
        length = headers.get(b"content-length")
        self._until_close = length is None and b"transfer-encoding" not in headers and status not in {204, 304}
        self._sink.response_head(status, headers, None if length is None else int(length))

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if self._sink is not None and not self._complete:
            self._sink.response_body(data)

    def on_message_complete(self) -> None:
        """The answer is complete, unless it was an interim one (1xx)."""
        if self._head_done:
            self._complete = True
            if not self._parser.should_keep_alive():
                self._spoilt = True
        else:
            self._headers.clear()

    def _finish(self) -> None:
        sink, self._sink = self._sink, None
        if self._spoilt:
            if self._transport is not None:
                self._transport.close()
        else:
            self._keep()
        if sink is not None:
            sink.response_end()

    def _keep(self) -> None:
        if self._paused:
            self.resume()
        self.kept_since = monotonic()
        idle = self._upstream.idle
        if len(idle) < MAX_IDLE:
            idle.append(self)
        else:
            self.close()

    def _fail(self, fault: Fault) -> None:
        sink, self._sink = self._sink, None
        self._spoilt = True
        if self._transport is not None:
            self._transport.abort()
        if sink is not None:
            sink.response_fault(fault)
