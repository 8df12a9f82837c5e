"""What one turn of the event loop writes, sent together at its end.

A write wakes whoever waits for it on another core, which costs more than the write itself. While the
answers and requests of a turn are still being worked out the woken side runs dry and sleeps again; sent
together, they wake it once. A turn is as long as what had arrived: with one request under way, nothing waits.
"""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

__all__ = ["Outbox"]


class Outbox:
    """The writes of one event loop's turn, in order."""

    __slots__ = ("_writes",)

    def __init__(self) -> None:
        self._writes: list[tuple[asyncio.WriteTransport, bytes]] = []

    @classmethod
    def of_running_loop(cls) -> Outbox:
        """The one outbox of the loop that is running."""
        loop = asyncio.get_running_loop()
        found = _of_loop.get(loop)
        if found is None:
            found = _of_loop[loop] = cls()
        return found

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Write at the end of this turn, unless the transport is closing by then."""
        writes = self._writes
        if not writes:
            asyncio.get_running_loop().call_soon(self.flush)
        writes.append((transport, data))

    def flush(self) -> None:
        """Write now: to be called before a transport is closed that may have something here."""
        writes, self._writes = self._writes, []
        for transport, data in writes:
            if not transport.is_closing():  # uvloop's transports refuse to write then
                transport.write(data)


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = WeakKeyDictionary()
