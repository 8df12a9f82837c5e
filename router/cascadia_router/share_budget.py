"""How many requests may cost a second call: a share of all requests over a sliding window.

A scorer that breaks for everything would otherwise send all traffic to the next, larger stage, and replicas
that fail under load would get that load twice.
"""

from __future__ import annotations

from collections import deque
from typing import ClassVar

__all__ = ["ShareBudget"]


class ShareBudget:
    """Counts requests, and those that cost a second call, in slices of time.

    Args:
        seconds: Length of the window, service s.
        least: So many are allowed in a window, however few requests there were.
    """

    SLICES: ClassVar = 6

    def __init__(self, seconds: float = 60.0, least: float = 1.0) -> None:
        self.seconds = seconds
        self._least = least
        self._slices: deque[list[float]] = deque()  # [start, requests, spent]

    def _slice(self, now: float) -> list[float]:
        if not self._slices or now - self._slices[-1][0] >= self.seconds / self.SLICES:
            self._slices.append([now, 0, 0])
            while self._slices[0][0] <= now - self.seconds:
                self._slices.popleft()
        return self._slices[-1]

    def count(self, now: float, requests: int = 1) -> None:
        """There were requests at service time `now`, s."""
        self._slice(now)[1] += requests

    def spend(self, now: float, share: float) -> bool:
        """Whether one may cost a second call, and count it if so; none where the share is 0."""
        newest = self._slice(now)
        requests = sum(piece[1] for piece in self._slices)
        spent = sum(piece[2] for piece in self._slices)
        if share <= 0 or spent + 1 > max(self._least, share * requests):
            return False
        newest[2] += 1
        return True
