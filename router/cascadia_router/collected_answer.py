"""An answer that is wanted whole, up to a limit: what takes it as it arrives."""

from __future__ import annotations

from abc import ABC, abstractmethod

from cascadia_router.response_sink import Fault

__all__ = ["CollectedAnswer"]


class CollectedAnswer(ABC):
    """A `ResponseSink` that is told of an answer once it is there.

    Args:
        most: Longest body, B; of a longer one no more is kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._status = 0
        self._parts: list[bytes] = []
        self._size = 0

    @abstractmethod
    def answered(self, status: int, body: bytes) -> None:
        """The answer is complete."""

    @abstractmethod
    def too_long(self, *, complete: bool) -> None:
        """The answer is over the limit; where it is not complete, more is on its way."""

    def response_whole(self, message: bytes, body: bytes) -> None:  # noqa: ARG002
        """See `ResponseSink`."""
        self._status = 200
        self.response_body(body)
        self.response_end()

    def response_head(self, status: int, headers: dict[bytes, bytes], length: int | None) -> None:  # noqa: ARG002
        """See `ResponseSink`."""
        self._status = status

    def response_body(self, data: bytes) -> None:
        """See `ResponseSink`."""
        self._size += len(data)
        if self._size <= self._most:
            self._parts.append(data)

    def response_pump(self) -> None:
        """See `ResponseSink`."""
        if self._size > self._most:
            self.too_long(complete=False)

    def response_end(self) -> None:
        """See `ResponseSink`."""
        if self._size > self._most:
            self.too_long(complete=True)
        else:
            self.answered(self._status, b"".join(self._parts))

    @abstractmethod
    def response_fault(self, fault: Fault) -> None:
        """See `ResponseSink`."""
