"""Choice among simulated designs, and the last steps of the allocation by simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from cascadia_solver.design import Design, design, fits_pools, redesigned
from cascadia_solver.evaluation import Evaluation, evaluate
from cascadia_solver.path_allocation import Ceiling
from cascadia_solver.search import Problem

__all__ = ["best_of", "improve", "simulate_finalists"]

_FINALISTS = 3
_MOST_FINALISTS = 12
_ATTEMPTS = 3
"""Simulations of one route at the finals."""
_MOST_STEPS = 4
_LEVEL_WITH = 0.01
"""Simulated percentiles this close count as equal: the noise of a p95 over 10,000 requests is 1.3 %."""


def simulate_finalists(
    problem: Problem, designs: Sequence[Design], models: int, expired: Callable[[], bool]
) -> list[Evaluation]:
    """Simulate the best designs.

    At least three; more while targets are missed or a cheaper design is left, all if some targets are on
    tokens. A cheapest design that turns out too slow is given GPUs by as much as the closed form was off.
    """
    evaluations: list[Evaluation] = []
    seen: set[tuple[object, ...]] = set()
    for candidate in designs:
        attempt: Design | None = candidate
        for _ in range(_ATTEMPTS):
            if attempt is None or attempt.key in seen or (evaluations and expired()):
                break
            seen.add(attempt.key)
            evaluations.append(evaluate(attempt, problem.sample, models))
            attempt = _tightened(problem, evaluations[-1]) if problem.cheapest else None
        good = [e for e in evaluations if not e.saturated and _excess(problem, e) <= 0]
        wanted = _FINALISTS if good and not problem.token_targets else _MOST_FINALISTS
        if problem.cheapest and good and wanted == _FINALISTS:
            least = min(e.design.cost(problem.prices) for e in good)
            cheaper = any(d.cost(problem.prices) < least for d in designs[designs.index(candidate) + 1 :])
            wanted = _MOST_FINALISTS if cheaper else _FINALISTS
        if len(evaluations) >= wanted:
            break
    return evaluations


def _tightened(problem: Problem, evaluation: Evaluation) -> Design | None:
    """The same route for ceilings as much lower as the simulation was slower than the closed form."""
    plan = evaluation.design
    slower = [
        evaluation.percentile(c.percentile) / max(plan.path_percentile(c.percentile), 1e-9)
        for c in problem.ceilings
        if evaluation.percentile(c.percentile) > c.seconds
    ]
    if not slower or not np.isfinite(max(slower)):
        return None
    ceilings = [Ceiling(c.percentile, c.seconds / (max(slower) * (1 + _LEVEL_WITH))) for c in problem.ceilings]
    return design(
        plan.routed,
        problem.limits,
        percentile=problem.percentile,
        prices=problem.prices,
        ceilings=ceilings,
        rooms=problem.rooms,
    )


def improve(
    problem: Problem, evaluations: list[Evaluation], models: int, expired: Callable[[], bool]
) -> list[Evaluation]:
    """Move GPUs around the best design, by simulation, while that makes it better.

    Returns:
        The evaluations, with those made here.
    """
    known = {e.design.key for e in evaluations}
    found = list(evaluations)
    for _ in range(_MOST_STEPS):
        best = best_of(problem, found)
        fresh = [d for d in _neighbours(problem, best) if d.key not in known]
        if not fresh or expired():
            break
        for candidate in fresh:
            known.add(candidate.key)
            found.append(evaluate(candidate, problem.sample, models))
        if best_of(problem, found) is best:
            break
    return found


def best_of(problem: Problem, evaluations: Sequence[Evaluation]) -> Evaluation:
    """The best design: stable, within targets, least in what is minimised; ties as the design says.

    A latency within 1 % of the least is a tie, decided by cost, then by GPUs.
    """
    percentile = problem.percentile
    misses = [(e.saturated, _excess(problem, e)) for e in evaluations]
    least = min(misses)
    stable = [e for e, miss in zip(evaluations, misses, strict=True) if miss == least]

    def cost(e: Evaluation) -> float:
        return e.design.cost(problem.prices)

    if problem.cheapest:
        return min(stable, key=lambda e: (cost(e), e.percentile(percentile), sum(e.design.gpus)))
    fastest = min(e.percentile(percentile) for e in stable)
    level = [e for e in stable if e.percentile(percentile) <= fastest * (1 + _LEVEL_WITH)]
    return min(level, key=lambda e: (cost(e), sum(e.design.gpus), e.percentile(percentile)))


def _excess(problem: Problem, evaluation: Evaluation) -> float:
    return evaluation.excess(problem.objective.targets or [])


def _neighbours(problem: Problem, best: Evaluation) -> list[Design]:
    """Allocations one step away that might be better, at most four, best first by the closed form."""
    plan = best.design
    steps = plan.routed.steps
    unit = np.eye(len(steps), dtype=np.int64)
    up, down = list(unit), list(-unit)
    swaps = [a - b for a in unit for b in unit if (a != b).any()]
    missed = best.saturated or _excess(problem, best) > 0
    moves = up + swaps if missed or not problem.cheapest else down
    result = []
    for move in moves:
        choice = np.array(plan.choice) + move
        if (choice < 0).any() or any(k >= len(step.gpus) for k, step in zip(choice, steps, strict=True)):
            continue
        moved = redesigned(plan, tuple(int(k) for k in choice))
        if fits_pools(moved, problem.limits, problem.rooms):
            result.append(moved)
    if problem.cheapest:
        return sorted(result, key=lambda d: d.cost(problem.prices))[:4]
    return sorted(result, key=lambda d: d.path_percentile(problem.percentile))[:4]
