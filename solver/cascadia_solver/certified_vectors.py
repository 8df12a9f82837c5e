"""Which threshold vectors of a problem get a certificate of their quality: there is one sequence of tests for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.frontier import frontier_picks
from cascadia_solver.quality import QualityOfGrid
from cascadia_solver.screening import AS_GOOD_AS_KEPT, Screened
from cascadia_solver.search import PER_MISS, Problem, ranking

__all__ = ["certified"]

Floats = NDArray[np.float64]

_PER_STRAIN = 0.1
"""And of thresholds that take as many GPUs as others, those that load them less or keep targets by more are certified
too: the best of as many are at the brink of needing one more, which is for the exact tables to say."""
_TIGHT = 0.97
"""Where vectors that are sure to be certified do not keep the targets by more, few others may."""
_FAR_FROM_TARGETS = 1.1
"""Vectors that seem to miss a target by more than this factor whatever GPUs they get are not certified."""


def certified(problem: Problem, screened: Sequence[Screened]) -> tuple[Problem, list[Screened]]:
    """Bound the quality of the vectors that matter: the best at each level of what is wanted, and the frontier."""
    place = {grid.stages: g for g, grid in enumerate(problem.grids)}
    kept: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64) for _ in problem.grids]
    estimates = [problem.study.estimates[place[points.grid.stages]][points.vector] for points in screened]
    if estimates:
        rows = [np.stack([s.latency, s.cost, e], axis=1) for s, e in zip(screened, estimates, strict=True)]
        origin = np.concatenate([np.full(len(s.vector), place[s.grid.stages]) for s in screened])
        vector = np.concatenate([s.vector for s in screened])
        picks = frontier_picks(np.concatenate(rows))
        kept = [np.unique(vector[picks][origin[picks] == g]) for g in range(len(kept))]
    aims = _aims(problem, screened)
    values = [
        np.where(considered, of_grid, np.inf)
        for figure in aims.figures
        for of_grid, considered in zip(_least(problem, screened, figure), aims.considered, strict=True)
    ]
    bounded = problem.study.of([*range(len(problem.grids))] * len(aims.figures)).certified(
        values,
        [*kept, *(k[:0] for _ in aims.figures[1:] for k in kept)],
        floor=problem.floor,
        confidence=float(problem.objective.confidence),
        seed=problem.seed,
        aims=len(aims.figures),
        foremost=aims.foremost,
    )
    qualities = [reduce(_better_bound, bounded[g :: len(problem.grids)]) for g in range(len(problem.grids))]
    return (
        replace(problem, qualities=qualities),
        [replace(points, quality=qualities[place[points.grid.stages]]) for points in screened],
    )


@dataclass(frozen=True, eq=False)
class _Aims:
    """What the vectors that are certified are the best in.

    Attributes:
        figures: What is to be small, of points [K].
        foremost: How many of these, the first ones, are followed down to the floor.
        considered: Which vectors of each grid come into question [V].
    """

    figures: Sequence[Callable[[Screened], Floats]]
    foremost: int
    considered: Sequence[NDArray[np.bool_]]


def _aims(problem: Problem, screened: Sequence[Screened]) -> _Aims:
    """What to certify for: beside what is minimised that which can be short.

    Where little more than one vector can be carried, or keeps the targets, what an estimate is off by must not leave
    only vectors that do not. If the only ones that keep the targets are near the floor, what is minimised does not
    matter any more; if none seems to, those nearest to the targets are wanted, as far as they are nearer than one
    that is sure to be certified. (Which of these cases it is depends on the estimates of quality, hence a little on the
    answers that are tested; benchmarks hold the guarantee against draws in them.)
    """

    def minimised(points: Screened) -> Floats:
        return ranking(problem, points)[0] * (1 + _PER_STRAIN * points.strain)

    def cost(points: Screened) -> Floats:
        return points.cost

    def latency(points: Screened) -> Floats:
        return points.latency * (1 + PER_MISS * points.missed)

    def target(points: Screened) -> Floats:
        return points.worst

    if not problem.targets:
        every = [np.ones(len(grid), dtype=bool) for grid in problem.grids]
        return _Aims([minimised] if problem.cheapest else [minimised, cost], 1, every)
    least = _least(problem, screened, target)

    def nearest(estimated: float) -> float:
        good = [of_grid[e >= estimated] for of_grid, e in zip(least, problem.study.estimates, strict=True)]
        return float(np.concatenate(good).min(initial=np.inf))

    sure = nearest(problem.study.clear_of(problem.floor))
    if nearest(problem.floor) > 1 + AS_GOOD_AS_KEPT:
        return _Aims([target], 1, [of_grid <= sure for of_grid in least])
    hopeful = [of_grid <= _FAR_FROM_TARGETS for of_grid in least]
    return _Aims([minimised, target], 1, hopeful) if sure <= _TIGHT else _Aims([target, latency], 2, hopeful)


def _least(problem: Problem, screened: Sequence[Screened], figure: Callable[[Screened], Floats]) -> list[Floats]:
    """The least of a figure that each vector of each grid can have; infinite where GPUs do not carry it [V]."""
    place = {grid.stages: g for g, grid in enumerate(problem.grids)}
    least = [np.full(len(grid), np.inf) for grid in problem.grids]
    for points in screened:
        np.minimum.at(least[place[points.grid.stages]], points.vector, figure(points))
    return least


def _better_bound(one: QualityOfGrid, other: QualityOfGrid) -> QualityOfGrid:
    return one if one.bound is None or other.bound is None else replace(one, bound=np.maximum(one.bound, other.bound))
