"""What an HTTP client's caller is told of an answer as it arrives, or of what went wrong."""

from __future__ import annotations

import enum
from typing import Protocol

__all__ = ["Fault", "ResponseSink"]


class Fault(enum.Enum):
    """How a call failed."""

    UNREACHABLE = "unreachable"
    """No connection: the request was not sent."""
    LOST = "lost"
    """The connection was lost before the answer's head: the request may have been worked on."""
    SILENT = "silent"
    """The server accepts connections and does not answer: the request may have been worked on."""
    BROKEN = "broken"
    """The connection was lost within the answer."""
    MALFORMED = "malformed"
    """What came is not HTTP, or not what was asked for."""
    STATUS = "status"
    """The answer says that the server failed: 5xx, or 429 from a peer."""


class ResponseSink(Protocol):
    """Takes one answer as it arrives: whole; or head, pieces of the body, end; or a fault at any point."""

    def response_whole(self, message: bytes, body: bytes) -> None:
        """A whole 200 answer; `http1_head.header_fields` reads its head. Nothing else follows."""

    def response_head(self, status: int, headers: dict[bytes, bytes], length: int | None) -> None:
        """The head: status, headers by lower-case name, and the body's length if it is announced."""

    def response_body(self, data: bytes) -> None:
        """A piece of the body."""

    def response_pump(self) -> None:
        """All of one read has been handed over, the head was before or in it, and the answer goes on."""

    def response_end(self) -> None:
        """The answer is complete."""

    def response_fault(self, fault: Fault) -> None:
        """The call failed; nothing else follows."""
