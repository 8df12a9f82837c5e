"""Choice among simulated designs, and the last steps of the allocation by simulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cascadia_solver.design import LEVEL_WITH, Design, Route, design, rerouted
from cascadia_solver.evaluation import Evaluation, evaluate
from cascadia_solver.path_allocation import Ceiling
from cascadia_solver.search import Problem
from cascadia_solver.variations import variations
from cascadia_solver.workload import RequestSample

__all__ = ["best_of", "confirmed", "improve", "simulate_finalists", "simulated"]

_FINALISTS = 3
_MOST_FINALISTS, _MOST_FOR_TOKENS = 12, 30
_ATTEMPTS = 4
"""Simulations of one route at the finals."""
_MOST_STEPS = 4
_NEIGHBOURS = 2
_MOST_STEPS_TO_TARGETS = 12
"""Where targets decide, so many moves of GPUs: the closed form can lead astray further there."""
_ROUTES = 3
"""Routes of each choice of stages whose GPUs are moved around, where targets decide."""
_CONFIRMED = 6
"""Most designs whose targets are looked at twice."""
_SURE = 1.645
"""Targets have to be kept by so many standard errors of the confirming simulation."""


def simulate_finalists(
    problem: Problem, designs: Sequence[Design], models: int, expired: Callable[[], bool]
) -> list[Evaluation]:
    """Simulate the best designs.

    At least three; more while targets are missed or a cheaper design is left, all if some targets are on
    tokens. A cheapest design that turns out too slow is given GPUs by as much as the closed form was off,
    and so are the designs after it at once.
    """
    evaluations: list[Evaluation] = []
    seen: set[tuple[object, ...]] = set()
    slower = 1.0
    for candidate in designs:
        attempt: Design | None = candidate
        if problem.cheapest and slower > 1 and _estimated_excess(problem, candidate, slower) > 0:
            attempt = _redesigned(problem, candidate, _ceilings(problem, slower)) or candidate
        for _ in range(_ATTEMPTS):
            if attempt is None or attempt.key in seen or (evaluations and expired()):
                break
            seen.add(attempt.key)
            evaluations.append(simulated(problem, attempt, models))
            slower = _slower(problem, evaluations[-1])
            attempt = _tightened(problem, evaluations[-1]) if problem.cheapest else None
        good = [e for e in evaluations if not e.saturated and _excess(problem, e) <= 0]
        wanted = _FINALISTS if good else _MOST_FINALISTS
        if problem.token_targets:
            wanted = _MOST_FOR_TOKENS
        if problem.cheapest and good and wanted == _FINALISTS:
            least = min(e.design.cost(problem.prices) for e in good)
            cheaper = any(d.cost(problem.prices) < least for d in designs[designs.index(candidate) + 1 :])
            wanted = _MOST_FINALISTS if cheaper else _FINALISTS
        if len(evaluations) >= wanted:
            break
    return evaluations


def _slower(problem: Problem, evaluation: Evaluation) -> float:
    """By which factor the simulation is slower than the closed form where ceilings are, at worst."""
    plan = evaluation.design
    factors = [
        evaluation.percentile(c.percentile) / max(plan.path_percentile(c.percentile), 1e-9) for c in problem.ceilings
    ]
    return max([1.0, *(factor for factor in factors if np.isfinite(factor))])


def _ceilings(problem: Problem, slower: float) -> list[Ceiling]:
    return [Ceiling(c.percentile, c.seconds / (slower * (1 + LEVEL_WITH))) for c in problem.ceilings]


def _estimated_excess(problem: Problem, plan: Design, slower: float) -> float:
    return max([0.0, *(plan.path_percentile(c.percentile) * slower / c.seconds - 1 for c in problem.ceilings)])


def _redesigned(problem: Problem, plan: Design, ceilings: Sequence[Ceiling]) -> Design | None:
    return design(
        plan.routed,
        problem.limits,
        percentile=problem.percentile,
        prices=problem.prices,
        ceilings=ceilings,
        rooms=problem.rooms,
    )


def _tightened(problem: Problem, evaluation: Evaluation) -> Design | None:
    """The same route with as much less end-to-end latency by the closed form as the simulation misses targets by.

    Whatever lowers end-to-end latency lowers the time to a first token and per token too: the closed form knows the
    former only. What is given too much so is taken away again by `improve`.
    """
    plan = evaluation.design
    if _excess(problem, evaluation) <= 0:
        return None
    tighter = _ceilings(problem, _slower(problem, evaluation))
    for target in problem.targets:
        over = evaluation.percentile(target.percentile, target.metric) * 1e3 / target.milliseconds
        if target.metric != "EndToEnd" and 1 < over < np.inf:
            now = plan.path_percentile(target.percentile)
            tighter.append(Ceiling(float(target.percentile), now / (over * (1 + LEVEL_WITH))))
    return _redesigned(problem, plan, tighter) if tighter else None


def improve(
    problem: Problem, evaluations: list[Evaluation], models: int, expired: Callable[[], bool]
) -> list[Evaluation]:
    """Move GPUs around the best design, by simulation, while that makes it better.

    Where the least cost within targets is looked for, around the best design of each of the best routes of each choice
    of stages: which thresholds are cheapest shows only once each has no more GPUs than it needs.

    Returns:
        The evaluations, with those made here.
    """
    if not (problem.cheapest and problem.targets):
        return _improved(problem, evaluations, models, expired)
    found = []
    for stages in sorted({e.design.route.stages for e in evaluations}):
        of_route: dict[Route, list[Evaluation]] = {}
        for evaluation in evaluations:
            if evaluation.design.route.stages == stages:
                of_route.setdefault(evaluation.design.route, []).append(evaluation)
        best = {route: best_of(problem, alike) for route, alike in of_route.items()}
        ranked = sorted(best.items(), key=lambda item: _rank(problem, item[1]))
        for place, (route, _) in enumerate(ranked):
            alike = of_route[route]
            found += _improved(problem, alike, models, expired) if place < _ROUTES else alike
    return found


def _rank(problem: Problem, evaluation: Evaluation) -> tuple[bool, float, float]:
    return evaluation.saturated, _excess(problem, evaluation), evaluation.design.cost(problem.prices)


def _improved(
    problem: Problem, evaluations: list[Evaluation], models: int, expired: Callable[[], bool]
) -> list[Evaluation]:
    known = {e.design.key for e in evaluations}
    found = list(evaluations)
    for _ in range(_MOST_STEPS_TO_TARGETS if problem.targets else _MOST_STEPS):
        best = best_of(problem, found)
        fresh = [d for d in variations(problem, best, models, _NEIGHBOURS) if d.key not in known]
        if not fresh or expired():
            break
        for candidate in fresh:
            known.add(candidate.key)
            found.append(simulated(problem, candidate, models))
        if best_of(problem, found) is best:
            break
    return found


def confirmed(
    problem: Problem,
    evaluations: Sequence[Evaluation],
    larger: Callable[[], RequestSample],
    models: int,
    expired: Callable[[], bool],
) -> list[Evaluation]:
    """Look twice at the designs that would be chosen for their targets: on requests that none was chosen on, and more.

    The best of some designs that meet a target on one sample is likely to owe it to that sample. So the best is
    simulated on a larger, independent one, and has to meet the targets there by `_SURE` standard errors; else the
    next best takes its place.

    Args:
        problem: What is planned.
        evaluations: On the sample that all share.
        larger: Makes the confirming sample.
        models: Number of models of the cascade.
        expired: Whether time is up: then nothing more is looked at.

    Returns:
        The evaluations; of those looked at twice the second one, with targets missed where it is not sure.
    """
    found = list(evaluations)
    if not problem.targets:
        return found
    sample = None
    done: set[tuple[object, ...]] = set()
    for _ in range(_CONFIRMED):
        best = best_of(problem, found)
        if best.saturated or _excess(problem, best) > 0 or best.design.key in done or expired():
            break
        sample = sample or larger()
        again = evaluate(rerouted(best.design, sample), sample, models, settle_seconds=problem.settle_seconds)
        again = replace(again, design=best.design, deviations=_SURE)
        done.add(best.design.key)
        found[found.index(best)] = again
        if again.saturated or _excess(problem, again) > 0:
            fresh = [
                d for d in variations(problem, again, models, _NEIGHBOURS) if d.key not in {e.design.key for e in found}
            ]
            found += [simulated(problem, d, models) for d in fresh]
            # The next best may have been of no interest beside the best, and can be better still.
            found = _improved(problem, found, models, expired)
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
    level = [e for e in stable if e.percentile(percentile) <= fastest * (1 + LEVEL_WITH)]
    return min(level, key=lambda e: (cost(e), sum(e.design.gpus), e.percentile(percentile)))


def simulated(problem: Problem, plan: Design, models: int) -> Evaluation:
    """A design simulated on the sample that all share."""
    return evaluate(plan, problem.sample, models, settle_seconds=problem.settle_seconds, known=problem.known)


def _excess(problem: Problem, evaluation: Evaluation) -> float:
    return evaluation.excess(problem.targets, deviations=evaluation.deviations)
