"""Simulation of a cascade at work: neither filling up when it starts nor draining when it stops.

A simulation that starts with idle engines shows requests that find them idle. How long engines take to fill is
of the order of a request's latency whatever the rate, so at 2,000 requests/s ten thousand requests are over before
the first one has been answered. So the sample is taken as one period of traffic that goes on for ever, and before
and after the requests that are looked at others come, from the other end of the period, for the time that the
cascade is given to settle.

Where the period is shorter than that, a slice of the deployment is simulated instead: a part of each stage's
replicas under as much less traffic. Load balances almost perfectly over eight replicas already, so a slice keeps that
many; a stage whose slice is larger than the traffic's gets more requests like those that come to it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.simulation import CascadeTimes, StageReplicas, StageTimes, simulate_cascade
from cascadia_solver.workload import RequestSample

__all__ = ["at_work", "replica_slice"]

_Any = TypeVar("_Any", bound=np.generic)
Integers = NDArray[np.int64]

_FEWEST = 8
"""Replicas of a stage that a slice keeps, if it has so many."""
_SAMPLES = 4
"""Extended ones that are kept: a plan simulates two or three samples, some of them dozens of times."""
_PERIODS = 2.0
"""A period is at least so many times as long as the cascade is given to settle."""


def at_work(
    stages: Sequence[StageReplicas],
    sample: RequestSample,
    exits: Integers,
    *,
    settle_seconds: float,
    known: dict[bytes, StageTimes] | None = None,
    until: int | None = None,
) -> CascadeTimes:
    """Simulate a cascade in its steady state.

    Args:
        stages: Replicas of every model, in order.
        sample: One period of the traffic: n requests.
        exits: Model that answers each request [n].
        settle_seconds: Time that the cascade is given to fill, and goes on afterwards: about the latency of a
            slow request. 0: starts idle, and ends with the last request.
        known: As for `simulate_cascade`.
        until: As for `simulate_cascade`.

    Returns:
        Times of the n requests.
    """
    n = len(sample)
    period = n / sample.requests_per_second
    thinning = max(1.0, _PERIODS * settle_seconds / period)
    margin = min(n, math.ceil(settle_seconds / (period * thinning) * n))

    arrivals, inputs, outputs, able = _before_and_after(sample, margin)
    slices = [replica_slice(stage, thinning) for stage in stages]
    return simulate_cascade(
        [stage for stage, _ in slices],
        np.maximum.accumulate((arrivals - arrivals[0]) * thinning),
        inputs,
        outputs,
        _extended(exits, margin),
        able=able,
        gate_tokens=sample.gate_tokens,
        scorer_seconds=sample.scorer_seconds,
        crowd=[crowd for _, crowd in slices],
        margin=margin,
        known=known,
        until=until,
    )


@lru_cache(maxsize=_SAMPLES)
def _before_and_after(
    sample: RequestSample, margin: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_] | None]:
    """A period with so many of the requests before and after it: arrivals, lengths and who can take them."""
    period = len(sample) / sample.requests_per_second
    arrivals = _extended(sample.arrivals, margin)
    arrivals[:margin] -= period
    arrivals[len(arrivals) - margin :] += period
    able = None if sample.able is None else _extended(sample.able, margin)
    return arrivals, _extended(sample.input_tokens, margin), _extended(sample.output_tokens, margin), able


def _extended(given: NDArray[_Any], margin: int) -> NDArray[_Any]:
    return np.concatenate([given[len(given) - margin :], given, given[:margin]])


def replica_slice(stage: StageReplicas, thinning: float) -> tuple[StageReplicas, float]:
    """A part of a stage's replicas, of each kind in proportion.

    Args:
        stage: Its replicas; may be none.
        thinning: By how much the traffic of the whole cascade is less than in truth, ≥ 1.

    Returns:
        The replicas, and how many requests have to come for each one so that they are loaded as in truth.
    """
    count = len(stage.steps)
    least = max(min(count, _FEWEST), math.ceil(count / thinning))
    if least == count:
        return stage, thinning
    kinds = Counter(zip(stage.steps, stage.weights, strict=True))
    whole = sum(stage.weights)
    for size in range(least, count):
        exact = [n * size / count for n in kinds.values()]
        kept = [int(share) for share in exact]
        for k in sorted(range(len(kept)), key=lambda k: kept[k] - exact[k])[: size - sum(kept)]:
            kept[k] += 1
        pairs = [pair for pair, n in zip(kinds, kept, strict=True) for _ in range(n)]
        crowd = thinning * sum(weight for _, weight in pairs) / whole
        if crowd >= 1.0:
            return StageReplicas([step for step, _ in pairs], [weight for _, weight in pairs]), crowd
    return stage, thinning
