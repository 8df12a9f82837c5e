"""Designs near a simulated one, ranked by simulating a part of the traffic.

The closed form orders shapes and numbers of replicas well enough to begin with and not well enough to end with. So
around a simulated design every stage is given other numbers of GPUs and other shapes, one stage at a time, and the
cascade is simulated on the first requests of the sample, the same for all. What each change does to every request
adds up nearly enough over the stages, so the best combinations are found among all of them without simulating any,
and are then simulated in full by whoever asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.design import Design, fits_pools, rerouted, with_sets
from cascadia_solver.evaluation import Evaluation, PathTimes, evaluate
from cascadia_solver.parallelism import ReplicaSet
from cascadia_solver.search import Problem

__all__ = ["variations"]

Floats = NDArray[np.float64]

_SHAPES_HERE, _SHAPES_ELSEWHERE = 5, 3
"""Sets of replicas looked at on as many GPUs as the stage has, and on other numbers of them."""
_NOT_SLOWER = 1.25
"""Sets that the closed form takes for so many times slower than the best on as many GPUs are not looked at."""
_MOST_COUNTS = 8
"""Numbers of GPUs of a stage that are looked at."""
_WORTH = 0.01
"""What is not faster by this share is not worth a full simulation."""
_SETTLED = 0.5
"""Share of the time that it would need for its latencies to be right that the cascade is given to fill."""
_ALMOST = 0.02
"""A target that seems to be missed by no more than this is worth a full simulation."""


@dataclass(frozen=True, eq=False)
class _Change:
    """Other replicas of one stage; m requests.

    Attributes:
        replicas: What the stage would have.
        later: By how much each request ends later, s [m].
        later_first: By how much each request's first token comes later, s [m].
    """

    replicas: ReplicaSet
    later: Floats
    later_first: Floats


def variations(problem: Problem, best: Evaluation, models: int, most: int) -> list[Design]:
    """Designs of the same route near a simulated one that are likely to be better, best first.

    Args:
        problem: What is planned.
        best: The simulated design.
        models: Number of models of the cascade.
        most: Number of designs.
    """
    plan = with_sets(best.design, dict(enumerate(best.design.replicas)))
    sample = problem.preview
    here = rerouted(plan, sample)
    seen = _simulated(problem, here, models)
    nothing = np.zeros(len(seen.end_to_end))
    changes = []
    for j, sets in enumerate(_nearby(problem, plan)):
        of_stage = [_Change(plan.replicas[j], nothing, nothing)]
        until = plan.route.stages[j]
        leaves = _simulated(problem, here, models, until)
        for replicas in sets:
            times = _simulated(problem, with_sets(here, {j: replicas}), models, until)
            if times.saturated and not leaves.saturated:
                continue
            later = _difference(times.end_to_end, leaves.end_to_end)
            of_stage.append(_Change(replicas, later, _difference(times.first_token, leaves.first_token)))
        changes.append(_best_by_gpus(problem, of_stage, seen))
    return _combined(problem, best, plan, changes, seen, most)


def _simulated(problem: Problem, plan: Design, models: int, until: int | None = None) -> Evaluation:
    settle = problem.settle_seconds * _SETTLED
    return evaluate(plan, problem.preview, models, settle_seconds=settle, known=problem.known, until=until)


def _difference(times: Floats, seen: Floats) -> Floats:
    lost = ~np.isfinite(seen)  # by both: that is for others to tell
    return np.where(lost, 0.0, times - np.where(lost, 0.0, seen))


def _nearby(problem: Problem, plan: Design) -> list[list[ReplicaSet]]:
    """Other replicas of each stage: on as many GPUs, and on numbers that gains and losses of stages add up to."""
    steps = [step.gpus for step in plan.routed.steps]
    sizes: set[int] = set()
    for gpus, now in zip(steps, plan.gpus, strict=True):
        at = int(np.searchsorted(gpus, now, side="right")) - 1
        strides = {1, max(1, len(gpus) // 16)}
        near = [at + sign * stride for stride in strides for sign in (1, -1)]
        sizes |= {abs(int(gpus[k]) - now) for k in near if 0 <= k < len(gpus)}
    result = []
    for j, now in enumerate(plan.gpus):
        table, rate = plan.routed.tables[j], float(plan.routed.rates[j])
        wanted = {now + sign * size for size in sizes - {0} for sign in (1, -1)}
        limit = problem.limits[plan.route.pools[j]]
        # What makes the stage no faster than fewer GPUs do is of no use.
        counts = {int(steps[j][k]) for k in (np.searchsorted(steps[j], list(wanted), side="right") - 1) if k >= 0}
        nearest = [count for _, count in sorted((abs(count - now), count) for count in counts - {now})][:_MOST_COUNTS]
        sets = []
        for count in (now, *nearest):
            if count <= limit:
                found = table.alternatives(0, rate, count, _SHAPES_HERE if count == now else _SHAPES_ELSEWHERE)
                sets += [of for of in found if of.latency <= _NOT_SLOWER * found[0].latency]
        own = _shapes(plan.replicas[j])
        result.append(list({_shapes(s): s for s in sets if _shapes(s) != own}.values()))
    return result


def _shapes(replicas: ReplicaSet) -> tuple[object, ...]:
    return tuple(sorted(zip(replicas.options, replicas.counts, strict=True)))


def _best_by_gpus(problem: Problem, changes: Sequence[_Change], seen: PathTimes) -> list[_Change]:
    """Of the changes to one stage that take as many GPUs, the one that is best by itself."""
    values = _percentile(seen.end_to_end + np.stack([c.later for c in changes]), problem.percentile)
    best: dict[int, int] = {}
    for k in np.argsort(values, kind="stable").tolist():
        best.setdefault(changes[k].replicas.gpus, k)
    return [changes[k] for k in sorted({0, *best.values()})]


def _percentile(times: Floats, percentile: float) -> Floats:
    """Percentiles of rows, as `PathTimes` has them [K]."""
    kth = int(np.ceil(percentile / 100 * (times.shape[1] - 1)))
    return np.asarray(np.partition(times, kth, axis=1)[:, kth])


def _combined(
    problem: Problem,
    best: Evaluation,
    plan: Design,
    changes: Sequence[Sequence[_Change]],
    seen: PathTimes,
    most: int,
) -> list[Design]:
    """The most promising combinations of changes that fit, the design itself left out."""
    mixes = np.array(list(product(*(range(len(of_stage)) for of_stage in changes))))[1:]
    if not len(mixes):
        return []
    gpus = np.stack([np.array([c.replicas.gpus for c in of])[mixes[:, j]] for j, of in enumerate(changes)], axis=1)
    pools = np.array(plan.route.pools)
    fits = np.ones(len(mixes), dtype=bool)
    for pool, limit in enumerate(problem.limits):
        fits &= gpus[:, pools == pool].sum(axis=1) <= limit
    mixes, gpus = mixes[fits], gpus[fits]
    cost = gpus @ np.array(problem.prices)[pools]
    spent = plan.cost(problem.prices)
    missed = best.saturated or best.excess(problem.targets, deviations=best.deviations) > 0
    if problem.cheapest and not missed:
        mixes, gpus, cost = mixes[cost < spent], gpus[cost < spent], cost[cost < spent]
    if not len(mixes):
        return []
    slowness, excess = _predicted(problem, best, changes, mixes, seen)
    if problem.cheapest:
        # On so few requests a queue that grows does not show: stages that have one are to get more GPUs, of no other.
        queued = np.array([stage.saturated for stage in best.stages])
        growing = queued.any() & (gpus - np.array(plan.gpus) < queued).any(axis=1)
        order = np.lexsort((slowness, cost, np.maximum(excess - _ALMOST, 0.0), growing))
    else:
        order = np.lexsort((cost, slowness, np.maximum(excess, 0.0)))
        if not missed:
            order = order[(slowness[order] < 1 - _WORTH) | ((cost[order] < spent) & (slowness[order] <= 1.0))]
    found: list[Design] = []
    for row in mixes[order]:
        sets = {j: changes[j][k].replicas for j, k in enumerate(row.tolist())}
        other = with_sets(plan, sets)
        if fits_pools(other, problem.limits, problem.rooms):
            found.append(other)
        if len(found) == most:
            break
    return found


def _predicted(
    problem: Problem, best: Evaluation, changes: Sequence[Sequence[_Change]], mixes: NDArray[np.int64], seen: PathTimes
) -> tuple[Floats, Floats]:
    """What is minimised, over what it is now, and how far targets are missed at worst as a share of them [K]."""
    ends = np.tile(seen.end_to_end, (len(mixes), 1))
    firsts = np.tile(seen.first_token, (len(mixes), 1))
    for j, of_stage in enumerate(changes):
        ends += np.stack([c.later for c in of_stage])[mixes[:, j]]
        firsts += np.stack([c.later_first for c in of_stage])[mixes[:, j]]
    excess = np.full(len(mixes), -np.inf)
    for target in problem.targets:
        if target.metric == "EndToEnd":
            values = ends
        elif target.metric == "TimeToFirstToken":
            values = firsts
        else:
            streamed = seen.end_to_end - seen.first_token
            tokens = np.where(seen.per_token > 0, streamed / np.where(seen.per_token > 0, seen.per_token, 1.0), 1.0)
            values = (ends - firsts) / np.maximum(tokens, 1.0)
        now = seen.percentile(target.percentile, target.metric)
        in_full = best.percentile(target.percentile, target.metric)
        error = best.deviations * best.standard_error(target.percentile, target.metric) if best.deviations else 0.0
        seconds = _percentile(values, target.percentile) * (in_full / now if now > 0 else 1.0) + error
        excess = np.maximum(excess, seconds * 1e3 / target.milliseconds - 1)
    slowness = _percentile(ends, problem.percentile) / max(seen.percentile(problem.percentile), 1e-12)
    return slowness, excess
