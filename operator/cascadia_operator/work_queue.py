"""A keyed work queue: each key once, never twice at the same time, again later after a failure.

Several events about a key that waits are one piece of work. An event about a key that is being worked on
makes it wait again afterwards. A failure puts it back with a delay that doubles up to a bound.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from cascadia_operator.metrics import QUEUED, RECONCILE_SECONDS, RECONCILES

__all__ = ["WorkQueue"]

log = logging.getLogger("cascadia.operator.queue")

K = TypeVar("K", bound=Hashable)

_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 60.0


class WorkQueue(Generic[K]):
    """Runs one coroutine function on the keys that are added.

    Args:
        work: Does the work for a key. Returns after how many seconds to do it again at the latest: 0 for at once,
            infinity for never, None for the usual time.
        resync_seconds: The usual time.
        timeout_seconds: For one piece of work.
    """

    def __init__(
        self, work: Callable[[K], Awaitable[float | None]], *, resync_seconds: float, timeout_seconds: float = 120.0
    ) -> None:
        self._work = work
        self._resync = resync_seconds
        self._timeout = timeout_seconds
        self._waiting: deque[K] = deque()
        self._queued: set[K] = set()
        self._running: dict[K, float] = {}
        self._again: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Event()

    def add(self, key: K) -> None:
        """Have the work done for a key as soon as a worker is free."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        if key in self._running:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._waiting.append(key)
            QUEUED.set(len(self._queued))
            self._wake.set()

    def add_later(self, key: K, seconds: float) -> None:
        """Have the work done after a while, or earlier if it was to be done earlier."""
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        timer = self._timers.get(key)
        if key in self._queued or (timer is not None and timer.when() <= when):
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_at(when, self.add, key)

    def longest_running_seconds(self) -> float:
        """How long the oldest piece of work under way has taken, s."""
        now = asyncio.get_running_loop().time()
        return max((now - started for started in self._running.values()), default=0.0)

    async def run(self, workers: int) -> None:
        """Work until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(workers):
                    group.create_task(self._worker())
        finally:
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()

    async def _worker(self) -> None:
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            key = self._waiting.popleft()
            self._queued.discard(key)
            QUEUED.set(len(self._queued))
            self._running[key] = asyncio.get_running_loop().time()
            try:
                await self._do(key)
            finally:
                del self._running[key]
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    async def _do(self, key: K) -> None:
        try:
            with RECONCILE_SECONDS.time():
                async with asyncio.timeout(self._timeout):
                    again = await self._work(key)
        except Exception as error:  # whatever it was, the other keys go on
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            wait = min(_FIRST_RETRY_SECONDS * 2 ** (failures - 1), _LONGEST_RETRY_SECONDS)
            RECONCILES.labels("error").inc()
            log.warning("%s failed %d times, again in %.0f s: %r", key, failures, wait, error, exc_info=failures == 3)
            self.add_later(key, wait * random.uniform(0.8, 1.2))  # noqa: S311 - spreads retries, no secret
        else:
            self._failures.pop(key, None)
            RECONCILES.labels("ok").inc()
            if again == 0:
                self._again.add(key)
            elif again != math.inf:
                # Spread, so that a restart with many keys does not make them come back together for ever.
                usual = self._resync * random.uniform(0.8, 1.2)  # noqa: S311
                self.add_later(key, usual if again is None else min(again, usual))
