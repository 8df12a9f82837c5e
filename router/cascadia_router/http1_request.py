"""What the server and those who answer requests have in common: limits, a request, and who hears of what."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from cascadia_router.clients import Client
from cascadia_router.http1_head import header_fields

__all__ = ["Answering", "Application", "InFlight", "Limits", "Request", "Room"]

JSON: Final = b"application/json"


class Limits(NamedTuple):
    """What one connection may ask of this process.

    Attributes:
        header_bytes: Most bytes of a request's names and values of headers, and of its target.
        headers: Most headers of a request.
        body_bytes: Most bytes of a body.
        pipelined: Most requests that wait on a connection while one is being answered.
        connections: Most connections of a port; more are closed at once.
        head_seconds: Longest time in which a request's head must have arrived, wall s.
        receive_seconds: Longest time in which a request must have arrived, wall s.
        send_seconds: Longest time in which a peer that has left more than a socket's buffer unread reads
            nothing, wall s.
        idle_seconds: Longest time between two requests, wall s.
        linger_seconds: How long a refused request's remaining bytes are read and thrown away, so that
            the peer gets to read the refusal, wall s.
    """

    header_bytes: int = 64 * 1024
    headers: int = 100
    body_bytes: int = 8 * 1024 * 1024
    pipelined: int = 256
    connections: int = 8192
    head_seconds: float = 15.0
    receive_seconds: float = 60.0
    send_seconds: float = 60.0
    idle_seconds: float = 300.0
    linger_seconds: float = 2.0


class Room:
    """Memory for the bodies of requests, shared by all connections of a router.

    Attributes:
        most: Bytes in all.
        used: Bytes that are taken.
    """

    __slots__ = ("most", "used")

    def __init__(self, most: int = 64 * 1024 * 1024) -> None:
        self.most = most
        self.used = 0

    def take(self, size: int) -> bool:
        """Take so many bytes; False if there is no room, and nothing is taken then."""
        if self.used + size > self.most:
            return False
        self.used += size
        return True


class Request:
    """One request, complete with its body.

    Attributes:
        method: As sent, upper case by convention of HTTP.
        path: Target without the query.
        query: What follows the question mark, undecoded.
        body: All of it.
        arrived: Machine's monotonic clock at its first byte, s.
        keep_alive: Whether the peer wants the connection kept.
        chunked: Whether the peer understands chunked answers (HTTP/1.1).
        traced: Whether a header that steers it came with it: a request id, a trace context, a bound.
        authorization: Value of that header, the last one's if there are several; empty if there is none.
        client: Whose request it is; None where clients need no key.
    """

    __slots__ = (
        "_headers",
        "_message",
        "arrived",
        "authorization",
        "body",
        "chunked",
        "client",
        "keep_alive",
        "method",
        "path",
        "query",
        "traced",
    )

    def __init__(
        self,
        path: bytes,
        message: bytes,
        body: bytes,
        arrived: float,
        traced: bool,
    ) -> None:
        """Make a POST over HTTP/1.1 whose target is its path, on a connection to be kept.

        Args:
            path: See the class.
            message: The whole request; its headers are read from it when they are asked for.
            body: See the class.
            arrived: See the class.
            traced: See the class.
        """
        self.method = b"POST"
        self.path = path
        self.query = b""
        self._message = message
        self._headers: dict[bytes, bytes] | None = None
        self.body = body
        self.arrived = arrived
        self.keep_alive = True
        self.chunked = True
        self.traced = traced
        self.authorization = b""
        self.client: Client | None = None

    @classmethod
    def parsed(
        cls, method: bytes, target: bytes, headers: dict[bytes, bytes], body: bytes, arrived: float, *, keep_alive: bool
    ) -> Request:
        """Any request, its headers by lower-case name."""
        path, _, query = target.partition(b"?")
        request = cls(path, b"", body, arrived, True)
        request.method = method
        request.query = query
        request.keep_alive = keep_alive
        request._headers = headers
        request.authorization = headers.get(b"authorization", b"")
        return request

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Values by lower-case name; the last of equal names wins."""
        if self._headers is None:
            self._headers = header_fields(self._message)
        return self._headers


class InFlight(Protocol):
    """What a request's handler wants to hear about the peer that waits for the answer."""

    def client_gone(self) -> None:
        """The peer closed the connection: stop all work for it."""

    def client_paused(self) -> None:
        """The peer reads too slowly: stop producing."""

    def client_resumed(self) -> None:
        """The peer has caught up."""


class Answering(Protocol):
    """The connection that a request came in on, as its handler sees it: one answer to send.

    Attributes:
        in_flight: Who hears of the peer while the answer is not complete.
        own_lines: Header lines that go with the answer in hand, whatever it is.
    """

    in_flight: InFlight | None
    own_lines: bytes

    def respond(self, status: int, body: bytes, head: bytes = b"", content_type: bytes = JSON) -> None:
        """Answer with one whole body."""

    def pass_on(self, message: bytes, body: bytes) -> None:
        """Answer with another server's plain 200 answer as it is."""

    def begin(self, status: int, head: bytes, length: int | None) -> None:
        """Begin an answer whose body comes in pieces; the head leaves with the first of them."""

    def send(self, data: bytes) -> None:
        """Send a piece of the body."""

    def end(self, data: bytes = b"") -> None:
        """Send the last piece of the body and be done with this request."""

    def close_after_answer(self) -> None:
        """Close once the answer in hand is sent, whatever its head said."""

    def break_off(self) -> None:
        """Close in the middle of the answer, after what was sent, so that it cannot pass for a whole one."""


class Application(Protocol):
    """What a listener hands its requests to."""

    @property
    def closing(self) -> bool:
        """While True every answer says `Connection: close`."""

    def expects(self, target: bytes, authorization: bytes) -> bool:
        """Whether the body of a request with such a head is worth receiving: False for a stranger's."""

    def turned_away(self, status: int, code: str, given_id: bytes) -> bytes:
        """The server refuses a request by itself, before all of it has arrived; returns lines for the answer's head."""

    def handle(self, connection: Answering, request: Request) -> None:
        """Answer now, or set `connection.in_flight` and answer later."""
