"""Receiving requests: bytes in, complete requests and refusals in a queue out.

Requests that come whole in one read go past all this (`http1_head`); what is here takes them in any
pieces, with llhttp. Everything a peer can make grow has a limit: header bytes and count, body bytes,
bytes on the wire per message (chunk framing, trailers), waiting requests, and the bodies of all connections together.

Stricter than llhttp where a message could be read in two ways: the only transfer coding is `chunked`, once, over
HTTP/1.1; no message both offers an upgrade and is chunked; and only HTTP/1.0 and 1.1 are spoken.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from time import monotonic
from typing import NamedTuple

import httptools

from cascadia_router.http1_request import Limits, Request, Room
from cascadia_router.outbox import Outbox

__all__ = ["Receiving", "Refusal"]


_VERSIONS = frozenset({"1.0", "1.1"})


class Refusal(NamedTuple):
    """A request that broke a limit or the protocol, in its place in the queue.

    Attributes:
        status: HTTP status of the answer.
        message: For its reader.
        code: For programs.
        given_id: The request's `x-request-id`, as far as it was read.
    """

    status: int
    message: str
    code: str
    given_id: bytes


class Receiving(ABC):
    """The receiving half of a connection.

    Raises nothing at bad bytes: they become a `Refusal`, and nothing after that is read as a request.
    """

    __slots__ = (
        "_ambiguous",
        "_body",
        "_body_bytes",
        "_busy",
        "_field_bytes",
        "_field_count",
        "_headers",
        "_headers_done",
        "_limits",
        "_message_bytes",
        "_outbox",
        "_parser",
        "_queue",
        "_raw_missing",
        "_refused",
        "_room",
        "_room_taken",
        "_since",
        "_target",
        "_transport",
    )

    _transport: asyncio.Transport  # from the connection's making on, as the outbox
    _outbox: Outbox

    def __init__(self, limits: Limits, room: Room) -> None:
        self._limits = limits
        self._room = room
        self._room_taken = 0  # by bodies on this connection, from their first byte until they are answered
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[Request | Refusal] = deque()
        self._busy = False  # a request is being answered
        self._refused = False  # nothing that still arrives is read as a request
        self._raw_missing = 0  # body bytes still to come past an ignored Upgrade
        self._since = monotonic()  # of the message's first byte, or of the last answer
        self._start_message()

    def _start_message(self) -> None:
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._field_bytes = 0  # names and values of the head's fields, and after it of the trailers
        self._field_count = 0
        self._ambiguous = False
        self._headers_done = False
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._message_bytes = 0

    def _receive(self, data: bytes) -> None:
        """Take one read.

        Raises:
            HttpParserCallbackError: A fault of ours.
        """
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
                raise
            except httptools.HttpParserError:
                self._refuse(400, "The request is not valid HTTP/1.1.", "malformed_request")
        if self._message_bytes > self._limits.header_bytes and not self._headers_done:
            self._refuse_headers()
        elif self._message_bytes > self._limits.header_bytes + 2 * self._limits.body_bytes:
            self._refuse_body()

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
        self._field_bytes += len(name) + len(value)
        self._field_count += 1
        if self._headers_done:
            if self._field_bytes > self._limits.header_bytes or self._field_count > self._limits.headers:
                self._refuse_headers()
            return
        name = name.lower()
        if name == b"transfer-encoding" and (name in self._headers or value.lower() != b"chunked"):
            self._ambiguous = True
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        """The head is complete: settle what can be settled before the body."""
        self._headers_done = True
        headers, limits = self._headers, self._limits
        if self._field_count > limits.headers or len(self._target) + self._field_bytes > limits.header_bytes:
            self._refuse_headers()
        self._field_count = self._field_bytes = 0
        chunked = b"transfer-encoding" in headers
        if self._ambiguous or (chunked and (b"upgrade" in headers or self._parser.get_http_version() != "1.1")):
            self._refuse(400, "The only transfer coding is `chunked`, once, over HTTP/1.1.", "malformed_request")
        length = int(headers.get(b"content-length", b"0"))
        if length > limits.body_bytes:
            self._refuse_body()
        elif not self._refused and (length or chunked) and not self._expects_body():
            self._refuse(401, "An API key is needed: send it as `Authorization: Bearer KEY`.", "invalid_api_key")
        elif not self._refused and headers.get(b"expect", b"").lower() == b"100-continue" and not self._busy:
            self._outbox.write(self._transport, b"HTTP/1.1 100 Continue\r\n\r\n")

    @abstractmethod
    def _expects_body(self) -> bool:
        """Whether the body of the request is worth receiving, by its head."""

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.body_bytes:
            self._refuse_body()
        elif not self._refused and self._has_room(len(data)):
            self._body.append(data)

    def _has_room(self, size: int) -> bool:
        """Take room for a piece of a body; the request is refused if there is none."""
        if self._room.take(size):
            self._room_taken += size
            return True
        message = f"The router holds {self._room.used} bytes of requests already: try again later."
        self._refuse(429, message, "too_many_requests")
        return False

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
        request = Request.parsed(
            parser.get_method(),
            self._target,
            self._headers,
            body[0] if len(body) == 1 else b"".join(body),
            self._since,
            keep_alive=parser.should_keep_alive(),
        )
        # HTTP/1.0 keeps no connection unasked, and asking for the version costs a formatted string.
        if not (request.keep_alive and b"connection" not in self._headers):
            version = parser.get_http_version()
            if version not in _VERSIONS:
                self._refuse(400, "Only HTTP/1.0 and HTTP/1.1 are spoken here.", "malformed_request")
                return
            request.chunked = version == "1.1"
        self._start_message()
        self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        if len(self._queue) < self._limits.pipelined:
            self._queue.append(request)
        else:
            message = f"Over {self._limits.pipelined} requests wait on this connection: wait for answers."
            self._refuse(429, message, "too_many_requests")

    def _ignore_upgrade(self, rest: bytes) -> None:
        """Serve a request that offers another protocol (Java's client offers h2c) as plain HTTP/1.1."""
        length = int(self._headers.get(b"content-length", b"0"))
        if not length:  # complete, and in the queue; what follows is unknown ground
            if self._queue and isinstance(self._queue[-1], Request):
                self._queue[-1].keep_alive = False
            self._refused = True
            return
        self._raw_missing = length
        self._raw_body(rest)

    def _raw_body(self, data: bytes) -> None:
        data = data[: self._raw_missing]
        if self._refused or not self._has_room(len(data)):
            return
        self._body.append(data)
        self._raw_missing -= len(data)
        if not self._raw_missing:
            method, body = self._parser.get_method(), b"".join(self._body)
            request = Request.parsed(method, self._target, self._headers, body, self._since, keep_alive=False)
            self._start_message()
            self._enqueue(request)
            self._refused = True

    def _free_room(self) -> None:
        """Give back the room of bodies that are neither waiting nor still coming."""
        waiting = sum(len(request.body) for request in self._queue if isinstance(request, Request))
        waiting += sum(map(len, self._body))
        self._room.used -= self._room_taken - waiting
        self._room_taken = waiting

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
            self._queue.append(Refusal(status, message, code, self._headers.get(b"x-request-id", b"")))
