"""Points of the screening, simulated on a part of the traffic: what the closed form's estimates of them are worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cascadia_solver.evaluation import PathTimes, path_times, replicas_of_set
from cascadia_solver.parallelism import ReplicaSet
from cascadia_solver.replay import exit_stages
from cascadia_solver.screening import Screened
from cascadia_solver.search import Problem
from cascadia_solver.simulation import StageReplicas
from cascadia_solver.steady_state import at_work
from cascadia_solver.workload import RequestSample

__all__ = ["SimulatedPoint", "corrected", "simulate_point", "simulate_replicas"]

_CHECKED = 3
"""Points of each choice of stages and pools at which the closed form is held against the simulation."""
_SLACK = 0.1
"""Where no point seems to keep the targets: those that miss them by so much more than the nearest one are looked at."""
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

    It is off by much the same for one choice of stages, and by something else for another (of first tokens above all:
    whether they stream depends on the stage). So some vectors of each that seem to keep the targets, each at the least
    cost at which it seems to, are simulated, evenly spread over what they cost. Which ones does not depend on the
    answers' quality: bounds that are made afterwards stay valid.
    """
    if not problem.targets:
        return list(screened)
    return [_corrected(problem, points, models) if len(points.vector) else points for points in screened]


def _corrected(problem: Problem, points: Screened, models: int) -> Screened:
    ratios = []
    for k in _to_check(points):
        settle = float(points.latency[k])
        times = simulate_point(problem, problem.preview, points, k, models, settle_seconds=settle).times
        measured = [times.percentile(t.percentile, t.metric) * 1e3 / t.milliseconds for t in problem.targets]
        ratios.append(np.array(measured) / np.maximum(points.targeted[k], 1e-9))
    off = np.median(np.nan_to_num(ratios, nan=1.0, posinf=_FURTHEST), axis=0)
    return replace(points, targeted=points.targeted * np.clip(off, 1 / _FURTHEST, _FURTHEST))


def _to_check(points: Screened) -> list[int]:
    """Some of the vectors' cheapest points that seem to keep the targets; those that miss them least where none do."""
    worst = points.targeted.max(axis=1)
    within = np.flatnonzero(worst <= max(1.0, float(worst.min()) * (1 + _SLACK)))
    order = within[np.lexsort((points.cost[within], points.vector[within]))]
    first = order[np.diff(points.vector[order], prepend=-1) > 0]
    by_cost = first[np.argsort(points.cost[first], kind="stable")]
    share = (np.arange(_CHECKED) + 0.5) / _CHECKED
    return [int(k) for k in np.unique(by_cost[(share * len(by_cost)).astype(np.int64)])]


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
