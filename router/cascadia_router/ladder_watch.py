"""What the ladder's steps follow from: how late this router's own requests are, and how many it holds."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

from cascadia_router.json_log import fields
from cascadia_router.ladder import Ladder, Lateness
from cascadia_router.metrics import Metrics
from cascadia_router.policy_store import PolicyStore
from cascadia_router.window import Window

__all__ = ["Entered", "LadderWatch"]

log = logging.getLogger("cascadia.router.ladder")


class Entered(Protocol):
    """A request that is held."""

    @property
    def entered(self) -> float | None:
        """Service time of its first byte, s; None if it did not enter the cascade here, or is no part of its load."""


class LadderWatch:
    """Looks at the load once a service second, and steps."""

    EVERY_SECONDS = 1.0
    LOAD_SECONDS = 30.0
    """Over which the load is measured, service s."""
    FEWEST_LATE = 3
    """So many late requests are no accident."""
    HIGH_WATER = 0.8
    """Share of the requests that may be held at which a router counts as overloaded."""
    LOW_WATER = 0.5

    def __init__(self, policies: PolicyStore, lateness: Lateness, window: Window, metrics: Metrics) -> None:
        self._policies = policies
        self._lateness = lateness
        self._window = window
        self._metrics = metrics
        self._ladder = Ladder()
        self._next = 0.0

    def look(self, now: float, held: Iterable[Entered], in_flight: int, waiting: int) -> None:
        """Step if it is time to.

        Args:
            now: Service time, s.
            held: Requests held now, in order of arrival.
            in_flight: How many.
            waiting: Requests that wait for room.
        """
        cascade = self._policies.current
        if now < self._next or cascade is None:
            return
        self._next = now + self.EVERY_SECONDS
        overload, lateness = cascade.policy.overload, self._lateness
        lateness.limit = overload.latency_seconds
        depth = self._policies.ladder_depth if overload.ladder else 0
        if self._policies.steps != self._ladder.steps or self._ladder.steps > depth:  # another ladder, or none
            self._ladder = Ladder()
            self._policies.step(0)
            lateness.restart(now)
        overdue = self._overdue(now, held)
        ended, late = lateness.counted(now)
        late, share = late + overdue, overload.late_share * (ended + overdue)
        full = in_flight / cascade.max_in_flight
        steps = self._ladder.decide(
            now,
            overloaded=bool(waiting) or full >= self.HIGH_WATER or (late >= self.FEWEST_LATE and late > share),
            calm=not waiting and full < self.LOW_WATER and late <= share / 2,
            load=self._window.arrivals_per_second(now, self.LOAD_SECONDS),
            depth=depth,
        )
        before = self._policies.steps
        if steps != before:
            self._policies.step(steps)
            lateness.restart(now)
            direction = "down" if steps > before else "up"
            self._metrics.ladder_steps[direction] += 1
            told = fields(direction=direction, steps=steps, late=late, ended=ended, inFlight=in_flight, waiting=waiting)
            log.warning("another threshold vector is in force for requests that enter here", extra=told)

    def _overdue(self, now: float, held: Iterable[Entered]) -> int:
        """Requests held that are late already."""
        limit = self._lateness.limit
        if limit is None:
            return 0
        overdue = 0
        for request in held:
            entered = request.entered
            if entered is None or entered < self._lateness.since:
                continue
            if now - entered <= limit:
                break
            overdue += 1
        return overdue
