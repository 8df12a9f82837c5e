"""The frontier's other plans, simulated: what one would get for more cost, or for less quality.

Which of the screened points are worth showing is for the closed form to say; what they would do is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cascadia_solver.evaluation import Evaluation
from cascadia_solver.frontier import frontier_picks, non_dominated
from cascadia_solver.screened_simulation import simulate_point, simulate_replicas
from cascadia_solver.screening import Screened
from cascadia_solver.search import Problem
from cascadia_solver.workload import first_requests

__all__ = ["SIMULATED_REQUESTS", "FrontierPlan", "simulated_frontier"]

SIMULATED_REQUESTS = 1200
"""Requests that each point is simulated with: the same for all and for the plan that was chosen, so that their figures
can be set in proportion to its larger simulation."""
_WEIGHT_STEPS = 5
"""Of the choice of points: 21 weightings."""
_SETTLED = 0.5
"""Share of the time that cascades need to fill that they are given: what that changes, it changes for all."""
_MOST = 63


@dataclass(frozen=True, slots=True)
class FrontierPlan:
    """A plan that was not chosen.

    Attributes:
        stages: Model index of each stage.
        thresholds: Of each stage but the last.
        gpus: Of each stage.
        latency: Percentile of end-to-end latency that the objective names, s.
        p95: The 95th percentile, s.
        cost: Per hour, or the number of GPUs where there are no prices.
        mean: Mean quality.
        assured: Quality bound, or the mean under a prior.
    """

    stages: tuple[int, ...]
    thresholds: tuple[float, ...]
    gpus: tuple[int, ...]
    latency: float
    p95: float
    cost: float
    mean: float
    assured: float


def simulated_frontier(
    problem: Problem,
    screened: Sequence[Screened],
    evaluations: Sequence[Evaluation],
    best: Evaluation,
    models: int,
    expired: Callable[[], bool],
) -> list[FrontierPlan]:
    """Plans that no other beats in latency, cost and quality at once, the chosen one left out, fastest first.

    Args:
        problem: What was planned.
        screened: Where they come from, with …
        evaluations: … the designs that have been simulated already.
        best: The chosen design.
        models: Number of models of the cascade.
        expired: Whether time is up: then those simulated so far are all.
    """
    sample = first_requests(problem.sample, SIMULATED_REQUESTS)
    route = best.design.route
    seen = simulate_replicas(
        problem,
        sample,
        route.stages,
        route.thresholds,
        best.design.replicas,
        models,
        settle_seconds=_SETTLED * best.percentile(95.0),
    )
    latency_by, p95_by = (
        best.percentile(p) / seen.percentile(p) if 0 < seen.percentile(p) < np.inf else 1.0
        for p in (problem.percentile, 95.0)
    )
    found = [_of_evaluation(problem, e) for e in evaluations if not e.saturated and e.design.key != best.design.key]
    estimate = best.design.path_percentile(problem.percentile)
    slower = best.percentile(problem.percentile) / estimate if estimate > 0 else 1.0
    for points, k in _worth_simulating(problem, screened, best, slower):
        if expired():
            break
        settle = _SETTLED * float(points.latency[k]) * slower
        point = simulate_point(problem, sample, points, k, models, settle_seconds=settle)
        times, replicas = point.times, point.replicas
        if times.saturated:
            continue  # the closed form took it for a plan, and it is none
        found.append(
            FrontierPlan(
                point.stages,
                point.thresholds,
                tuple(of.gpus for of in replicas),
                times.percentile(problem.percentile) * latency_by,
                times.percentile(95.0) * p95_by,
                sum(of.gpus * problem.prices[pool] for of, pool in zip(replicas, points.pools, strict=True)),
                float(points.mean[k]),
                float(points.assured[k]),
            )
        )
    rows = [(of.latency, of.cost, of.assured) for of in [_of_evaluation(problem, best), *found]]
    kept = non_dominated(np.array(rows))
    return sorted((found[k - 1] for k in kept.tolist() if k > 0), key=lambda of: of.p95)[:_MOST]


def _of_evaluation(problem: Problem, evaluation: Evaluation) -> FrontierPlan:
    plan = evaluation.design
    return FrontierPlan(
        plan.route.stages,
        plan.route.thresholds,
        plan.gpus,
        evaluation.percentile(problem.percentile),
        evaluation.percentile(95.0),
        plan.cost(problem.prices),
        plan.route.mean,
        plan.route.assured,
    )


def _worth_simulating(
    problem: Problem, screened: Sequence[Screened], best: Evaluation, slower: float
) -> list[tuple[Screened, int]]:
    """Screened points that some weighting of the three criteria prefers and the chosen plan does not beat."""
    design, simulated = best.design, best.percentile(problem.percentile)
    points = np.concatenate([np.stack([s.latency * slower, s.cost, s.assured], axis=1) for s in screened])
    origin = np.concatenate([np.full(len(s.vector), k) for k, s in enumerate(screened)])
    index = np.concatenate([np.arange(len(s.vector)) for s in screened])
    chosen = np.array([simulated, design.cost(problem.prices), design.route.assured])
    beaten = (points[:, :2] >= chosen[:2]).all(axis=1) & (points[:, 2] <= chosen[2])
    kept = np.flatnonzero(~beaten & (points[:, 2] > 0))
    picks = kept[frontier_picks(points[kept], _WEIGHT_STEPS)]
    return [(screened[int(origin[row])], int(index[row])) for row in picks]
