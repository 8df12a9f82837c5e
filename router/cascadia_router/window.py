"""The workload of the last minutes, in slices of time: what `/cascade/report` answers from.

Counting costs a bisection and an increment; a report adds up the slices of its window.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable

from msgspec.structs import replace

from cascadia_api.report import (
    LATENCY_EDGES_MS,
    SCORE_EDGES,
    TOKEN_EDGES,
    CalibrationSample,
    Edges,
    Histogram,
    StageReport,
    WorkloadReport,
)
from cascadia_router.metrics import BucketCounts

__all__ = ["MAX_SAMPLES", "Slice", "Window"]

MAX_SAMPLES = 256
_MAX_COMPARED = 128
"""Of these, samples that were compared with the next stage: the others must not crowd them out."""
_SAMPLES_KEPT = 4096
_COUNTS = (
    *("arrivals", "failures", "interrupted", "refused"),
    *("requests", "accepted", "escalated", "scorer_errors", "engine_errors"),
)
_HISTOGRAMS = ("end_to_end_ms", "first_token_ms", "input_tokens", "output_tokens", "service_ms", "scores")


class Slice:
    """Counts of a few seconds. The attributes are those of `WorkloadReport` and `StageReport`."""

    def __init__(self, start: float) -> None:
        self.start = start
        self.arrivals = self.failures = self.interrupted = self.refused = 0
        self.answered_by: Counter[str] = Counter()
        self.end_to_end_ms = BucketCounts(LATENCY_EDGES_MS)
        self.first_token_ms = BucketCounts(LATENCY_EDGES_MS)
        self.requests = self.accepted = self.escalated = self.scorer_errors = self.engine_errors = 0
        self.input_tokens = BucketCounts(TOKEN_EDGES)
        self.output_tokens = BucketCounts(TOKEN_EDGES)
        self.service_ms = BucketCounts(LATENCY_EDGES_MS)
        self.scores = BucketCounts(SCORE_EDGES)

    def merge(self, other: Slice) -> None:
        """Add another slice's counts."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _HISTOGRAMS:
            mine: BucketCounts = getattr(self, name)
            mine.merge(getattr(other, name))
        self.answered_by.update(other.answered_by)


class Window:
    """Ring of slices.

    Args:
        start: Service time at the router's start (monotonic), s.
        slice_seconds: Length of a slice, service s.
        longest_seconds: Longest window that can be asked for, service s.
        seed: Of the choice of samples; None: from the machine.

    Attributes:
        settle: Called before the newest slice is read, or the next one begins: counts what is still to count.
        newest: The newest slice.
        until: Service time at which it is over, s.
    """

    def __init__(
        self,
        start: float,
        *,
        slice_seconds: float = 2.0,
        longest_seconds: float = 600.0,
        seed: int | None = None,
    ) -> None:
        self._start = start
        self._slice_seconds = slice_seconds
        self._longest = longest_seconds
        self.settle: Callable[[], None] = _nothing_to_settle
        self.newest = Slice(start)
        self.until = start + slice_seconds
        self._slices: deque[Slice] = deque([self.newest])
        self._samples: deque[tuple[float, CalibrationSample]] = deque(maxlen=_SAMPLES_KEPT)
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret

    def slice(self, now: float) -> Slice:
        """The slice to count in at service time `now` (monotonic, s)."""
        if now < self.until:
            return self.newest
        self.settle()
        start = self._start + (now - self._start) // self._slice_seconds * self._slice_seconds
        self.newest = newest = Slice(start)
        self.until = start + self._slice_seconds
        self._slices.append(newest)
        while self._slices[0].start < now - self._longest - self._slice_seconds:
            self._slices.popleft()
        return newest

    def arrivals_per_second(self, now: float, seconds: float) -> float:
        """Client requests per service second that came in the last so many seconds, in whole slices."""
        recent = [piece for piece in self._slices if piece.start > now - seconds]
        return sum(piece.arrivals for piece in recent) / max(now - recent[0].start, 1.0) if recent else 0.0

    def draws(self, probability: float) -> bool:
        """Whether chance picks a request that is to be a sample with this probability."""
        return self._random.random() < probability

    def keep_sample(self, now: float, sample: CalibrationSample) -> None:
        """Keep a sample that was drawn."""
        self._samples.append((now, sample))

    def report(
        self,
        now: float,
        window_seconds: float,
        *,
        window_end: float,
        plan_id: str,
        policy_revision: int,
        replica: str = "",
        stage: str | None = None,
        in_flight: int = 0,
        ladder_steps: int = 0,
    ) -> WorkloadReport:
        """Add up the last slices.

        The window is rounded up to whole slices.

        Args:
            now: Service time (monotonic), s.
            window_seconds: Length asked for, service s.
            window_end: `now` as scaled Unix time, s.
            plan_id: Plan of the policy in force.
            policy_revision: Revision of the policy in force.
            replica: The reporting replica.
            stage: Its stage; None for an entry router.
            in_flight: Requests held now.
            ladder_steps: Steps below the plan's own thresholds.
        """
        self.settle()
        total = Slice(now)
        steps = (now - min(window_seconds, self._longest) - self._start) // self._slice_seconds
        since = self._start + max(steps, 0) * self._slice_seconds
        for piece in self._slices:
            if piece.start >= since:
                total.merge(piece)
        return WorkloadReport(
            replica=replica,
            plan_id=plan_id,
            policy_revision=policy_revision,
            window_seconds=now - since,
            window_end=window_end,
            arrivals=total.arrivals,
            failures=total.failures,
            interrupted=total.interrupted,
            refused=total.refused,
            answered_by=dict(total.answered_by),
            end_to_end_ms=_histogram("latencyMs", total.end_to_end_ms),
            time_to_first_token_ms=_histogram("latencyMs", total.first_token_ms),
            in_flight=in_flight,
            ladder_steps=ladder_steps,
            stage=None if stage is None else _stage_report(stage, total),
            samples=self._chosen_samples(since),
        )

    def _chosen_samples(self, since: float) -> list[CalibrationSample]:
        recent = [sample for when, sample in self._samples if when >= since]
        compared = self._thinned([sample for sample in recent if sample.next is not None], _MAX_COMPARED)
        others = [sample for sample in recent if sample.next is None]
        return compared + self._thinned(others, MAX_SAMPLES - len(compared))

    def _thinned(self, samples: list[CalibrationSample], most: int) -> list[CalibrationSample]:
        """Samples of these, with the probabilities with which they are still there."""
        if len(samples) <= most:
            return samples
        share = most / len(samples)
        return [
            replace(sample, inclusion_probability=sample.inclusion_probability * share)
            for sample in self._random.sample(samples, most)
        ]


def _nothing_to_settle() -> None:
    """Before a window has a `settle`."""


def _histogram(edges: Edges, counts: BucketCounts) -> Histogram:
    return Histogram(edges=edges, counts=counts.counts, sum=counts.sum)


def _stage_report(stage: str, total: Slice) -> StageReport:
    return StageReport(
        stage=stage,
        requests=total.requests,
        accepted=total.accepted,
        escalated=total.escalated,
        scorer_errors=total.scorer_errors,
        engine_errors=total.engine_errors,
        input_tokens=_histogram("tokens", total.input_tokens),
        output_tokens=_histogram("tokens", total.output_tokens),
        service_ms=_histogram("latencyMs", total.service_ms),
        scores=_histogram("score", total.scores),
    )
