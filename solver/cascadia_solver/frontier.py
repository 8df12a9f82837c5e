"""Non-dominated plans, and the choice among them.

Points are rows of (latency, cost, quality): the first two to be small, the third to be large.
"""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

__all__ = ["frontier_picks", "non_dominated", "tchebycheff_picks"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_WEIGHT_STEPS = 9
_AUGMENTATION = 1e-3
"""Weight of the sum of all deviations: keeps weakly dominated points from being picked."""


def frontier_picks(points: Floats, steps: int = _WEIGHT_STEPS) -> Integers:
    """The non-dominated points that some weighting of the three criteria prefers.

    Args:
        points: Rows of (latency, cost, quality), finite [n, 3].
        steps: Into which a criterion's weight is divided: (steps + 1)(steps + 2) / 2 weightings.

    Returns:
        Indices, at most as many as there are weightings.
    """
    front = non_dominated(points)
    return front[np.unique(tchebycheff_picks(points[front], _weights(steps)))] if len(front) else front


def _weights(steps: int) -> Floats:
    """Weights of three criteria on a triangular lattice, each at least a little."""
    rows = [(a, b, steps - a - b) for a in range(steps + 1) for b in range(steps + 1) if a + b <= steps]
    return (np.array(rows, dtype=np.float64) + 0.05) / (steps + 0.15)


def non_dominated(points: Floats) -> Integers:
    """Indices of the points that no other point beats or equals in everything.

    Of equal points the first is kept. Sorted by latency.

    Args:
        points: Rows of (latency, cost, quality), finite [n, 3].
    """
    costs = points * np.array([1.0, 1.0, -1.0])
    order = np.lexsort((costs[:, 2], costs[:, 1], costs[:, 0]))
    kept: list[int] = []
    # Everything kept so far is at least as fast, so only cost and quality decide: a staircase of both, rising.
    stairs_cost: list[float] = []
    stairs_quality: list[float] = []
    for index in order.tolist():
        cost, quality = float(points[index, 1]), float(points[index, 2])
        place = bisect_right(stairs_cost, cost)
        if place and stairs_quality[place - 1] >= quality:
            continue
        kept.append(index)
        start = place - 1 if place and stairs_cost[place - 1] == cost else place
        end = bisect_right(stairs_quality, quality, lo=start)
        stairs_cost[start:end] = [cost]
        stairs_quality[start:end] = [quality]
    return np.array(kept, dtype=np.int64)


def tchebycheff_picks(points: Floats, weights: Floats) -> Integers:
    """The point that each weighting prefers, by the augmented weighted Tchebycheff distance.

    Each criterion is normalised by the ideal point (the best of each) and the nadir point (the worst of
    each among the non-dominated): d = max_k w_k z_k + rho * sum_k w_k z_k with z in [0, 1].

    Args:
        points: Non-dominated rows of (latency, cost, quality) [n, 3].
        weights: Rows of non-negative weights [m, 3].

    Returns:
        Index of the preferred point for each weighting [m]; every one is non-dominated, and every
        non-dominated point is preferred under some weighting.
    """
    costs = points * np.array([1.0, 1.0, -1.0])
    ideal, nadir = costs.min(axis=0), costs.max(axis=0)
    normal = (costs - ideal) / np.where(nadir > ideal, nadir - ideal, 1.0)
    weighted = weights[:, None, :] * normal[None, :, :]
    distance = weighted.max(axis=2) + _AUGMENTATION * weighted.sum(axis=2)
    return np.asarray(np.argmin(distance, axis=1))
