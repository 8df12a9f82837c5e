"""How long other routers' answers took of late: what says whether an escalation can still finish."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import ClassVar

__all__ = ["AnswerTimes"]


class AnswerTimes:
    """Times to complete answers of one stage, or of a later one that it passed requests on to.

    Only what this router has seen itself, and lately: where it knows too little, it does not guess.
    """

    KEPT: ClassVar = 64
    FEWEST: ClassVar = 8
    """With fewer there is no estimate."""
    SECONDS: ClassVar = 60.0
    """How long a time counts, service s: skipping everything would otherwise never end, for want of news."""
    EVERY_SECONDS: ClassVar = 1.0
    """How long an estimate is used, service s."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, float]] = deque(maxlen=self.KEPT)
        self._typical: float | None = None
        self._until = float("-inf")

    def observe(self, now: float, seconds: float) -> None:
        """An answer was complete at service time `now` after so many service seconds."""
        self._seen.append((now, seconds))

    def typical(self, now: float) -> float | None:
        """Median, service s; None where too few answers are known."""
        if now >= self._until:
            self._until = now + self.EVERY_SECONDS
            recent = [seconds for when, seconds in self._seen if when >= now - self.SECONDS]
            self._typical = median(recent) if len(recent) >= self.FEWEST else None
        return self._typical
