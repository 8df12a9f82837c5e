"""A rate per minute, kept by the generic cell rate algorithm (GCRA).

One number is its state: the time until which everything taken so far will have been paid back. A limit of n
a minute pays n back each minute, and lets n be taken at once.
"""

from __future__ import annotations

__all__ = ["Rate"]

_MINUTE = 60.0


class Rate:
    """One limit.

    Attributes:
        limit: Units a minute.
    """

    __slots__ = ("_burst_seconds", "_free_at", "_seconds_each", "limit")

    def __init__(self, limit: float) -> None:
        self._free_at = 0.0
        self._set(limit)

    def _set(self, limit: float) -> None:
        self.limit = limit
        self._seconds_each = _MINUTE / limit
        self._burst_seconds = max(_MINUTE, self._seconds_each)  # one unit can be taken whatever the limit

    def change(self, limit: float, now: float) -> None:
        """Have another limit; what was taken stays taken."""
        taken = max(0.0, self._free_at - now) / self._seconds_each
        self._set(limit)
        self._free_at = now + taken * self._seconds_each

    def left(self, now: float) -> float:
        """Units that can be taken now; negative after more was taken than there was.

        Args:
            now: Service time (monotonic), s.
        """
        owed = self._free_at - now
        return (self._burst_seconds - owed if owed > 0 else self._burst_seconds) / self._seconds_each

    def take(self, now: float, units: float) -> None:
        """Take units, whether they are left or not; a negative number gives them back."""
        self._free_at = max(self._free_at, now) + units * self._seconds_each

    def wait(self, now: float, units: float) -> float:
        """Seconds until so many units are left, at most as many as can be taken at once."""
        return max(0.0, self._free_at - now + units * self._seconds_each - self._burst_seconds)

    def reset(self, now: float) -> float:
        """Seconds until all is left again."""
        return max(0.0, self._free_at - now)
