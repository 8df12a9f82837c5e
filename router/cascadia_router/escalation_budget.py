"""How many requests scorer errors may escalate: a share of the stage's requests over a sliding window.

A scorer that breaks for everything would otherwise send all traffic to the next, larger stage.
"""

from __future__ import annotations

from collections import deque

__all__ = ["EscalationBudget"]


class EscalationBudget:
    """Counts requests and escalated errors in slices of time."""

    WINDOW_SECONDS = 60.0
    SLICES = 6

    def __init__(self) -> None:
        self._slices: deque[list[float]] = deque()  # [start, requests, escalated]

    def _slice(self, now: float) -> list[float]:
        if not self._slices or now - self._slices[-1][0] >= self.WINDOW_SECONDS / self.SLICES:
            self._slices.append([now, 0, 0])
            while self._slices[0][0] <= now - self.WINDOW_SECONDS:
                self._slices.popleft()
        return self._slices[-1]

    def count(self, now: float, requests: int = 1) -> None:
        """Requests' answers are being judged at service time `now`, s."""
        self._slice(now)[1] += requests

    def spend(self, now: float, share: float) -> bool:
        """Whether an unscorable answer may escalate, and count it if so.

        A positive share allows at least one in the window, so that a quiet stage is not refused.
        """
        newest = self._slice(now)
        requests = sum(piece[1] for piece in self._slices)
        escalated = sum(piece[2] for piece in self._slices)
        if share <= 0 or escalated + 1 > max(1.0, share * requests):
            return False
        newest[2] += 1
        return True
