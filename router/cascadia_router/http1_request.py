"""What the server and those who answer requests have in common: limits, a request, and who hears of what."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from cascadia_router.http1_server import ServerConnection

__all__ = ["Application", "InFlight", "Limits", "Request"]


class Limits(NamedTuple):
    """What one connection may ask of this process.

    Attributes:
        header_bytes: Most bytes of a request's names and values of headers, and of its target.
        headers: Most headers of a request.
        body_bytes: Most bytes of a body.
        receive_seconds: Longest time in which a request must have arrived, wall s.
        idle_seconds: Longest time between two requests, wall s.
        linger_seconds: How long a refused request's remaining bytes are read and thrown away, so that
            the peer gets to read the refusal, wall s.
    """

    header_bytes: int = 64 * 1024
    headers: int = 100
    body_bytes: int = 8 * 1024 * 1024
    receive_seconds: float = 60.0
    idle_seconds: float = 300.0
    linger_seconds: float = 2.0


class Request:
    """One request, complete with its body.

    Attributes:
        method: As sent, upper case by convention of HTTP.
        path: Target without the query.
        query: What follows the question mark, undecoded.
        headers: Lower-case names; the last of equal names wins.
        body: All of it.
        arrived: Machine's monotonic clock at its first byte, s.
        keep_alive: Whether the peer wants the connection kept.
        chunked: Whether the peer understands chunked answers (HTTP/1.1).
    """

    __slots__ = ("arrived", "body", "chunked", "headers", "keep_alive", "method", "path", "query")

    def __init__(self, method: bytes, target: bytes, headers: dict[bytes, bytes], body: bytes, arrived: float) -> None:
        self.method = method
        self.path, _, self.query = target.partition(b"?")
        self.headers = headers
        self.body = body
        self.arrived = arrived
        self.keep_alive = True
        self.chunked = True


class InFlight(Protocol):
    """What a request's handler wants to hear about the peer that waits for the answer."""

    def client_gone(self) -> None:
        """The peer closed the connection: stop all work for it."""

    def client_paused(self) -> None:
        """The peer reads too slowly: stop producing."""

    def client_resumed(self) -> None:
        """The peer has caught up."""


class Application(Protocol):
    """What a listener hands its requests to."""

    @property
    def closing(self) -> bool:
        """While True every answer says `Connection: close`."""

    def handle(self, connection: ServerConnection, request: Request) -> None:
        """Answer now, or set `connection.in_flight` and answer later."""
