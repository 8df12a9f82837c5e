"""Requests for which there is no room yet: a bounded queue, first come, first served.

A router holds so many requests at once (`maxInFlight`). More wait here, up to `maxQueued` of them and for so
long as their deadline and the queue's own limit allow; the rest is refused at once with 429, and told in
`Retry-After` when a place should be free, by the rate at which requests have ended of late.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from typing import ClassVar

from cascadia_router.http1_request import Answering, Request

__all__ = ["DrainRate", "Waiting", "WaitingRoom"]

log = logging.getLogger("cascadia.router")

MAX_BYTES = 64 * 1024 * 1024
"""Bodies that wait, all together."""


class DrainRate:
    """How many requests ended per service second, over the last seconds."""

    SECONDS: ClassVar = 10.0

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def observe(self, now: float, ended: int) -> None:
        """So many have ended since the start, at service time `now`, s."""
        self._seen.append((now, ended))
        while len(self._seen) > 1 and self._seen[1][0] <= now - self.SECONDS:
            self._seen.popleft()

    def per_second(self) -> float:
        """Requests per service second; 0 where nothing is known."""
        if len(self._seen) < 2:
            return 0.0
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        return (after - before) / (last - first) if last > first else 0.0


class Waiting:
    """One request that waits; hears of its client as `InFlight` does."""

    __slots__ = ("_room", "connection", "deadline", "request")

    def __init__(self, room: WaitingRoom, connection: Answering, request: Request, deadline: float) -> None:
        self._room = room
        self.connection = connection
        self.request = request
        self.deadline = deadline
        connection.in_flight = self

    def client_gone(self) -> None:
        """See `InFlight`."""
        self._room.leave(self)

    def client_paused(self) -> None:
        """See `InFlight`: nothing is being sent."""

    def client_resumed(self) -> None:
        """See `InFlight`."""


class WaitingRoom:
    """The queue of one router.

    Args:
        begin: Begins a request that has waited.
        refuse: Refuses one that has waited too long.

    Attributes:
        waiting: Requests that wait, in order of arrival.
        rate: At which requests end.
    """

    LEAST_RETRY_SECONDS: ClassVar = 1
    LONGEST_RETRY_SECONDS: ClassVar = 60

    def __init__(
        self, begin: Callable[[Answering, Request], None], refuse: Callable[[Answering, Request], None]
    ) -> None:
        self._begin = begin
        self._refuse = refuse
        self._bytes = 0
        self._waking = False
        self.waiting: deque[Waiting] = deque()
        self.rate = DrainRate()

    def has_room(self, request: Request, most: int) -> bool:
        """Whether the request may wait, where `most` may."""
        return len(self.waiting) < most and self._bytes + len(request.body) <= MAX_BYTES

    def enter(self, connection: Answering, request: Request, deadline: float) -> None:
        """Let a request wait until service time `deadline`, s."""
        self.waiting.append(Waiting(self, connection, request, deadline))
        self._bytes += len(request.body)

    def leave(self, waiting: Waiting) -> None:
        """A request waits no more."""
        self.waiting.remove(waiting)
        self._bytes -= len(waiting.request.body)

    def wake(self, room: Callable[[], bool]) -> None:
        """A request has ended: begin others in the loop's next turn, while there is room."""
        if not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._let_in, room)

    def _let_in(self, room: Callable[[], bool]) -> None:
        self._waking = False
        while self.waiting and room():
            first = self.waiting[0]
            self.leave(first)
            self._hand_over(first, self._begin)

    @staticmethod
    def _hand_over(waiting: Waiting, to: Callable[[Answering, Request], None]) -> None:
        waiting.connection.in_flight = None
        try:
            to(waiting.connection, waiting.request)
        except Exception:
            log.exception("a request that waited could not begin")
            waiting.connection.break_off()

    def tick(self, now: float, ended: int) -> None:
        """Look at the time.

        Args:
            now: Service time, s.
            ended: Requests that have ended since the router's start.
        """
        self.rate.observe(now, ended)
        for waiting in [each for each in self.waiting if now >= each.deadline]:
            self.leave(waiting)
            self._hand_over(waiting, self._refuse)

    def retry_seconds(self, scale: float) -> int:
        """When a client should try again, wall s: by then as many have ended as wait now.

        Args:
            scale: Service seconds per wall second.
        """
        rate = self.rate.per_second()
        seconds = (len(self.waiting) + 1) / rate / scale if rate > 0 else float(self.LONGEST_RETRY_SECONDS)
        return min(max(math.ceil(seconds), self.LEAST_RETRY_SECONDS), self.LONGEST_RETRY_SECONDS)
