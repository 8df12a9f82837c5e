"""The ladder: under overload this router's own requests go by a cheaper threshold vector of the plan, and back.

Each router steps on its own evidence: how late the requests are that entered here, and how many wait here.
Nothing is agreed between routers; the requests that one of them lets in keep its thresholds on their whole
way. The plan's own vector is the top: routers never become stricter than the plan. Every vector below keeps
the quality floor (or the lower one that the manifest allows under overload), for the planner puts no other
on the ladder.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import ClassVar

__all__ = ["Ladder", "Lateness"]


class Lateness:
    """How many of the last requests took longer than they should.

    Args:
        seconds: Length of the window, service s.

    Attributes:
        limit: How long a request may take, service s; None: nothing is late.
        since: Requests that arrived before are not counted: they went by other thresholds.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self._seconds = seconds
        self._buckets: deque[list[float]] = deque()  # [start, ended, late]
        self.limit: float | None = None
        self.since = float("-inf")

    def observe(self, now: float, arrived: Sequence[float], took: Sequence[float]) -> None:
        """Requests have ended.

        Args:
            now: Service time, s.
            arrived: When they came, service s.
            took: How long each took, service s.
        """
        if self.limit is None:
            return
        if now - self.since < self._seconds:
            took = [seconds for since, seconds in zip(arrived, took, strict=True) if since >= self.since]
        if not self._buckets or now - self._buckets[-1][0] >= 1.0:
            self._buckets.append([now, 0, 0])
            while self._buckets[0][0] < now - self._seconds:
                self._buckets.popleft()
        bucket = self._buckets[-1]
        bucket[1] += len(took)
        bucket[2] += sum(map(self.limit.__lt__, took))

    def restart(self, now: float) -> None:
        """Other thresholds hold from now on."""
        self.since = now
        self._buckets.clear()

    def counted(self, now: float) -> tuple[int, int]:
        """Requests that ended in the window, and how many of them were late."""
        recent = [bucket for bucket in self._buckets if bucket[0] >= now - self._seconds]
        return int(sum(bucket[1] for bucket in recent)), int(sum(bucket[2] for bucket in recent))


class Ladder:
    """Decides when to step down and when back up.

    Down: overload has lasted `DOWN_SECONDS`, and so long has passed since the last step. Up, one step:
    calm has lasted `UP_SECONDS`, and either the load is clearly less than that which the step above could
    not carry, or `patience` has passed: then it is tried. A trial that fails doubles the patience.

    Attributes:
        steps: Steps below the plan's own vector.
        patience: Time after which the step above is tried although the load has not fallen, service s.
    """

    DOWN_SECONDS: ClassVar = 5.0
    UP_SECONDS: ClassVar = 60.0
    RELIEF: ClassVar = 0.9
    """Share of the load that was too much, at which the step above is taken again."""
    PATIENCE_SECONDS: ClassVar = 300.0
    LONGEST_PATIENCE_SECONDS: ClassVar = 4800.0

    def __init__(self) -> None:
        self.steps = 0
        self.patience = self.PATIENCE_SECONDS
        self._too_much: list[float] = []  # load at each step down
        self._stepped_at = self._rose_at = float("-inf")
        self._overloaded_since: float | None = None
        self._calm_since: float | None = None

    def decide(self, now: float, *, overloaded: bool, calm: bool, load: float, depth: int) -> int:
        """Look at the load, about once a second; returns the steps below the plan's own vector from now on.

        Args:
            now: Service time, s.
            overloaded: Whether requests are late, or too many are held.
            calm: Whether neither is near.
            load: Requests per service second that enter here.
            depth: Vectors below the plan's own.
        """
        if not overloaded or self._overloaded_since is None:
            self._overloaded_since = now if overloaded else None
        if not calm or self._calm_since is None:
            self._calm_since = now if calm else None
        if self._overloaded_since is not None and self.steps < depth:
            if min(now - self._overloaded_since, now - self._stepped_at) >= self.DOWN_SECONDS:
                self._step_down(now, load)
        elif self.steps and self._calm_since is not None:
            rested = min(now - self._calm_since, now - self._stepped_at) >= self.UP_SECONDS
            relieved = load <= self.RELIEF * self._too_much[-1]
            if rested and (relieved or now - self._stepped_at >= self.patience):
                self._step_up(now)
        return self.steps

    def _step_down(self, now: float, load: float) -> None:
        if now - self._rose_at < self.PATIENCE_SECONDS:
            self.patience = min(2 * self.patience, self.LONGEST_PATIENCE_SECONDS)
        elif not self.steps:
            self.patience = self.PATIENCE_SECONDS
        self.steps += 1
        self._too_much.append(load)
        self._stepped_at = now
        self._overloaded_since = None

    def _step_up(self, now: float) -> None:
        self.steps -= 1
        self._too_much.pop()
        self._stepped_at = self._rose_at = now
        self._calm_since = None
