"""Points of the screening, simulated on a part of the traffic: what the closed form's estimates of them are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.evaluation import PathTimes, path_times, replicas_of_set
from cascadia_solver.parallelism import ReplicaSet
from cascadia_solver.path_estimate import estimated
from cascadia_solver.replay import exit_stages
from cascadia_solver.screening import Screened
from cascadia_solver.search import Problem
from cascadia_solver.simulation import StageReplicas
from cascadia_solver.steady_state import at_work
from cascadia_solver.workload import RequestSample

__all__ = ["SimulatedPoint", "corrected", "simulate_point", "simulate_replicas"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_FIRST, _NEARER, _DECISIVE = (3, 150), (24, 250), (12, 80)
"""Points that are simulated, of each choice of stages and pools and of all of them together. First any that may keep
the targets, to see how far the closed form is off; then those near the targets by that; then, on all requests, the
nearest."""
_POINTS_PER_CHECK = 6
"""Of so many points one more at most is looked at among those near the targets."""
_SHRINKAGE = 0.3
"""Of what the ratio's regression says of one point more than of another, per simulated point."""
_NEAR = 0.35
"""Points that miss or keep the targets by more than this, in logarithms, or miss them by so much more than the nearest
one, are not simulated."""
_CLOSE = 0.2
"""Points this near to the targets just keep or just miss them."""
_FURTHEST = 4.0
"""What is further off than this factor tells nothing of other points: it is saturated."""


@dataclass(frozen=True, eq=False)
class SimulatedPoint:
    """A threshold vector with the replicas that the screening would give it.

    Attributes:
        stages: Model index of each stage.
        thresholds: Of each stage but the last.
        replicas: Of each stage.
        times: What clients see.
    """

    stages: tuple[int, ...]
    thresholds: tuple[float, ...]
    replicas: tuple[ReplicaSet, ...]
    times: PathTimes


def corrected(problem: Problem, screened: Sequence[Screened], models: int) -> list[Screened]:
    """Put right by how much the closed form is off at targets, so that what misses them is not taken for cheap.

    By how much depends on the choice of stages (first tokens above all: whether they stream depends on the stage) and
    on their load. So some points of each choice that are near the targets are simulated, and the logarithm of the ratio
    between what they do and what the closed form says of the very same requests (which leaves out the luck of so few)
    is fitted by a ridge regression on the stages' utilisation and rate. Nothing in it depends on the answers' quality:
    bounds that are made afterwards stay valid.
    """
    if not problem.targets:
        return list(screened)
    choices = sum(len(points.vector) > 0 for points in screened)
    first, most, decisive = (min(each, in_all // max(1, choices)) for each, in_all in (_FIRST, _NEARER, _DECISIVE))
    return [
        _corrected(problem, points, models, max(1, first), most, decisive) if len(points.vector) else points
        for points in screened
    ]


def _corrected(problem: Problem, points: Screened, models: int, first: int, most: int, decisive: int) -> Screened:
    """See `corrected`; of so many points first, so many more near the targets, and so many on all requests."""
    features = _features(points)
    checked: dict[int, Floats] = {}
    better = points
    for count in (first, min(most, first + len(points.vector) // _POINTS_PER_CHECK)):
        for k in _to_check(better, count):
            if k not in checked:
                checked[k] = _ratio(problem, points, k, models)
        off = np.exp(_regressed(features, np.array(list(checked)), np.log(np.stack(list(checked.values())))))
        better = replace(points, targeted=points.targeted * np.clip(off, 1 / _FURTHEST, _FURTHEST))
    # How they differ shows on the few requests that all share; where they are, and what is left, on all requests.
    closest = _closest(better, decisive)
    if not closest:
        return better
    left = [_over(_simulated(problem, problem.sample, points, k, models), better.targeted[k]) for k in closest]
    off = np.exp(_regressed(features, np.array(closest), np.log(np.stack(left))))
    return replace(better, targeted=better.targeted * np.clip(off, 1 / _FURTHEST, _FURTHEST))


def _closest(points: Screened, most: int) -> list[int]:
    """So many of the points that just keep or just miss the targets, of all costs."""
    close = np.flatnonzero(np.abs(points.worst - 1) <= _CLOSE)
    return _spread(close[np.lexsort((points.worst[close], points.cost[close]))], most)


def _to_check(points: Screened, most: int) -> list[int]:
    """So many of the points that are near the targets, or nearest to them, evenly spread over how near they are."""
    worst = points.worst
    apart = np.abs(np.log(np.maximum(worst, 1e-9) / max(1.0, float(worst.min()))))
    near = np.flatnonzero(apart <= max(_NEAR, float(apart.min())))
    return _spread(near[np.lexsort((near, worst[near]))], most)


def _spread(order: Integers, most: int) -> list[int]:
    """So many of some points, evenly spread over their order."""
    count = min(most, len(order))
    return [int(order[(2 * k + 1) * len(order) // (2 * count)]) for k in range(count)]


def _ratio(problem: Problem, points: Screened, k: int, models: int) -> Floats:
    """What targets are on when the first requests are simulated, over what the closed form says of these [targets]."""
    sample, of = problem.preview, slice(k, k + 1)
    every = np.arange(len(sample))
    said = estimated(
        points.grid, points.vector[of], points.parts[of], sample, every, problem.percentile, problem.targets
    )
    return _over(_simulated(problem, sample, points, k, models), said[1][0])


def _simulated(problem: Problem, sample: RequestSample, points: Screened, k: int, models: int) -> Floats:
    """What targets are on at a simulated point, over the targets [targets]."""
    times = simulate_point(problem, sample, points, k, models, settle_seconds=float(points.latency[k])).times
    return np.array([times.percentile(t.percentile, t.metric) * 1e3 / t.milliseconds for t in problem.targets])


def _over(measured: Floats, said: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        # Where both are nothing (tokens of answers that are held back come all at once), nothing is off.
        ratio = np.nan_to_num(measured / said, nan=1.0, posinf=np.inf)
    return np.asarray(np.clip(ratio, 1 / _FURTHEST**2, _FURTHEST**2))


def _features(points: Screened) -> Floats:
    """What the ratio may depend on: utilisation of each stage, its square, and the logarithm of its rate [K, F]."""
    rates = np.log(np.maximum(points.rates[points.vector], 1e-6))
    return np.concatenate([points.busy, points.busy**2, rates], axis=1)


def _regressed(features: Floats, rows: Integers, values: Floats) -> Floats:
    """Ridge regression, the mean left free.

    Args:
        features: Of all points [K, F].
        rows: Those whose values are known [m].
        values: Theirs [m, targets].

    Returns:
        Values of all [K, targets].
    """
    mean, spread = features[rows].mean(axis=0), features[rows].std(axis=0)
    # Further off than what was seen, nothing more is known.
    scaled = np.clip((features - mean) / np.maximum(spread, 1e-9), -2.0, 2.0) * (spread > 1e-9)
    given, level = scaled[rows], values.mean(axis=0)
    bend = given.T @ given + _SHRINKAGE * len(rows) * np.eye(features.shape[1])
    return np.asarray(level + scaled @ np.linalg.solve(bend, given.T @ (values - level)))


def simulate_point(
    problem: Problem, sample: RequestSample, points: Screened, k: int, models: int, *, settle_seconds: float
) -> SimulatedPoint:
    """Simulate one point of the screening with the replicas that its tables say.

    Args:
        problem: What is planned.
        sample: The requests.
        points: Of one choice of stages and pools.
        k: Which of them.
        models: Number of models of the cascade.
        settle_seconds: As for `steady_state.at_work`.
    """
    vector = int(points.vector[k])
    stages, thresholds = points.grid.stages, points.grid.vector(vector)
    replicas = tuple(
        problem.sites.at[model, pool].table.replicas(
            int(points.profiles[vector, j]), float(points.rates[vector, j]), int(points.gpus[k, j])
        )
        for j, (model, pool) in enumerate(zip(stages, points.pools, strict=True))
    )
    times = simulate_replicas(problem, sample, stages, thresholds, replicas, models, settle_seconds=settle_seconds)
    return SimulatedPoint(stages, thresholds, replicas, times)


def simulate_replicas(
    problem: Problem,
    sample: RequestSample,
    stages: Sequence[int],
    thresholds: Sequence[float],
    replicas: Sequence[ReplicaSet],
    models: int,
    *,
    settle_seconds: float,
) -> PathTimes:
    """Simulate thresholds on replicas.

    Args:
        problem: What is planned.
        sample: The requests.
        stages: Model index of each stage.
        thresholds: Of each stage but the last.
        replicas: Of each stage.
        models: Number of models of the cascade.
        settle_seconds: As for `steady_state.at_work`.
    """
    exits = exit_stages(stages, thresholds, sample.scores, sample.able)
    of_models = [StageReplicas([], [])] * models
    for model, of in zip(stages, replicas, strict=True):
        of_models[model] = replicas_of_set(of)
    times = at_work(of_models, sample, exits, settle_seconds=settle_seconds, known=problem.known)
    return path_times(times, sample, exits)
