"""The ladder: threshold vectors that routers may step to under load, without moving a replica."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.quality import QualityOfGrid
from cascadia_solver.replay import StageLoads, ThresholdGrid

__all__ = ["Rung", "ladder"]

Floats = NDArray[np.float64]

_RUNGS = 16
_WORTH = 1.03
"""A rung carries at least this many times the rate of the one before."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One threshold vector on the plan's replicas.

    Attributes:
        thresholds: Of each live stage but the last.
        reach: Share of requests at each live stage.
        mean: Mean quality.
        bound: Quality bound; None under a prior and below the quality floor.
        requests_per_second: Rate that the replicas carry.
    """

    thresholds: tuple[float, ...]
    reach: tuple[float, ...]
    mean: float
    bound: float | None
    requests_per_second: float


def ladder(
    thresholds: Sequence[float],
    capacities: Sequence[float],
    grid: ThresholdGrid,
    quality: QualityOfGrid,
    loads: StageLoads,
    *,
    requests_per_second: float,
    floor: float,
    overloaded: float | None = None,
) -> list[Rung]:
    """Threshold vectors for the plan's replicas, strictest first, the plan's own among them.

    All keep the quality floor on their bound, but for the last ones where a lower floor under overload is
    allowed: those keep it on their mean. Each carries more than the one before, at the best quality that does.

    Args:
        thresholds: The plan's own.
        capacities: Rate that each stage's replicas carry of the requests that the plan sends there, 1/s.
        grid: The grid that the plan's thresholds are from.
        quality: Of its vectors.
        loads: What those send to each stage.
        requests_per_second: Rate that the plan is for.
        floor: Quality floor.
        overloaded: Lower floor that may be gone down to under overload, if any.
    """
    reach, load = loads.reach, loads.tokens
    own = grid.nearest(thresholds)
    capacity = np.array(capacities)
    carried = np.where(load > 0, capacity * _share(load[own], reach[own]) / np.maximum(load, 1e-12), np.inf)
    rate = carried.min(axis=1)
    strictest_first = np.lexsort((-rate, -quality.assured))
    allowed = strictest_first[(quality.assured >= floor)[strictest_first]]
    above = _climb(allowed[(rate >= requests_per_second)[allowed]], rate, 0.0, float(rate[own]) / _WORTH)
    below = _climb(allowed, rate, float(rate[own]) * _WORTH, np.inf)
    if overloaded is not None and overloaded < floor:
        best_first = np.lexsort((-rate, -quality.mean))
        worse = best_first[(quality.mean >= overloaded)[best_first] & (quality.mean[best_first] <= quality.mean[own])]
        below += _climb(worse, rate, float(rate[below[-1] if below else own]) * _WORTH, np.inf)
    return [_rung(grid, quality, reach, rate, vector) for vector in _thinned(above, own, below)]


def _climb(vectors: NDArray[np.int64], rate: Floats, least: float, most: float) -> list[int]:
    """Vectors, best quality first, each of which carries clearly more than the one before."""
    climbed: list[int] = []
    for vector in vectors:
        if least <= rate[vector] <= most:
            climbed.append(int(vector))
            least = rate[vector] * _WORTH
    return climbed


def _share(load: Floats, reach: Floats) -> Floats:
    """Load of one unit of rate at each stage: the plan's own load per request that gets there."""
    return np.where(reach > 0, load / np.maximum(reach, 1e-12), np.inf)


def _thinned(above: list[int], own: int, below: list[int]) -> list[int]:
    """At most `_RUNGS`: the plan's own and evenly spread others, more of them below, where load leads."""
    up = min(len(above), max(_RUNGS // 4, _RUNGS - 1 - len(below)))
    down = min(len(below), _RUNGS - 1 - up)
    return [*_spread(above, up), own, *_spread(below, down)]


def _spread(vectors: list[int], count: int) -> list[int]:
    return [vectors[k] for k in np.linspace(0, len(vectors) - 1, count).astype(int)] if count else []


def _rung(grid: ThresholdGrid, quality: QualityOfGrid, reach: Floats, rate: Floats, vector: int) -> Rung:
    return Rung(
        thresholds=grid.vector(vector),
        reach=tuple(float(p) for p in reach[vector]),
        mean=float(quality.mean[vector]),
        bound=float(quality.bound[vector]) if quality.bound is not None and quality.bound[vector] > 0 else None,
        requests_per_second=float(rate[vector]),
    )
