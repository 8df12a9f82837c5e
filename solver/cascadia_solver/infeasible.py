"""Why there is no plan, in numbers, and what the nearest one would be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cascadia_api.cascade import CascadeDeploymentSpec, LatencyTarget, Model, Objective
from cascadia_api.errors import InfeasibleError, Shortfall
from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.certification import QualityStudy
from cascadia_solver.certified_vectors import certified
from cascadia_solver.evaluation import PathTimes
from cascadia_solver.packing import POD_SIZES
from cascadia_solver.quality import QualityOfGrid
from cascadia_solver.roofline import CostSource
from cascadia_solver.screening import Screened
from cascadia_solver.search import Problem, candidates, pool_choices, screen_all
from cascadia_solver.set_size import floor_is_in_doubt, requests_needed
from cascadia_solver.sites import find_sites

__all__ = ["latency_out_of_reach", "quality_out_of_reach", "too_few_gpus"]

_TIMES_THE_GPUS = (4, 32, 4096)
_A_LITTLE_MORE = (1.0, 1.02, 1.05, 1.1, 1.2, 1.5)
_FEWEST_GPUS = 64
_MOST_GPUS = 4096
"""Of a pool in a manifest."""
_STEPS = 16
_LEVEL, _ROUGHLY, _POINTS = 0.01, 0.05, 0.004
"""How near the highest rate, as a share of it, and the highest floor are found; roughly if each try takes seconds."""
_MANY_VECTORS = 5000
_FAR_OFF = 8.0
"""What is asked is lowered by this factor at a time, once half of it is too much."""
_MOST_REQUESTS = 1_000_000
"""A larger calibration set than this is not worth naming."""
_NEAREST_ERRORS = 3.0
"""A target that is named as in reach lies so many standard errors above what was found: it has to be kept on other
requests, by 1.6 of their errors, and what was found is the best of several."""


def quality_out_of_reach(
    objective: Objective, study: QualityStudy, qualities: Sequence[QualityOfGrid]
) -> InfeasibleError:
    """No threshold vector of any choice of stages keeps the quality floor."""
    floor, table, grids = float(objective.min_quality), study.table, study.grids
    g = int(np.argmax([quality.assured.max() for quality in qualities]))
    best = int(qualities[g].assured.argmax())
    mean, assured = float(qualities[g].mean[best]), float(qualities[g].assured[best])
    names = " -> ".join(table.models[model] for model in grids[g].stages)
    thresholds = ", ".join(f"{threshold:.3g}" for threshold in grids[g].vector(best))
    at = f"{names}" + (f" with thresholds {thresholds}" if thresholds else "")
    refused = _refused(table)
    if qualities[g].bound is None:
        return InfeasibleError(
            "QualityOutOfReach",
            f"minQuality {floor:g} is out of reach: under the prior the best is a mean of {mean:.3f} ({at}); {refused}"
            "lower minQuality, add a better model, or give a calibration set of your own traffic",
            shortfalls=[Shortfall("mean quality", floor, mean)],
            nearest=f"minQuality {_down(assured)} with {at}",
        )
    needed = requests_needed(study, floor, float(objective.confidence))
    shortfalls = [Shortfall("quality lower bound", floor, assured)]
    if needed is None and floor_is_in_doubt(study, floor):
        remedy = (
            "the best mean is within its error of the floor: a larger calibration set would tell on which side "
            f"({4 * len(table):,} requests in place of {len(table):,} halve the error)"
        )
    elif needed is None:
        remedy = "no larger calibration set would do: add a better model or scorer"
    elif needed > _MOST_REQUESTS:
        remedy = "that mean is too near for any calibration set: add a better model or scorer"
    else:
        remedy = f"the calibration set is too small: it has {len(table):,} requests, and about {needed:,} would do"
        shortfalls.append(Shortfall("calibration requests, about", needed, len(table)))
    return InfeasibleError(
        "QualityOutOfReach",
        f"minQuality {floor:g} is out of reach at confidence {objective.confidence}: the best lower bound is "
        f"{assured:.3f} where the mean is {mean:.3f} ({at}); {refused}{remedy}; or lower minQuality or confidence",
        shortfalls=shortfalls,
        nearest=f"minQuality {_down(assured)} with {at}",
    )


def _refused(table: CalibrationSet) -> str:
    """That some requests are worth nothing whatever answers them, where it is so."""
    share = 0.0 if table.able is None else float((~table.able.any(axis=1)).mean())
    if not share:
        return ""
    return (
        f"{share:.1%} of the requests count as worth nothing, since no model can take them (context window, or "
        "needs beyond text): add a model that can; "
    )


def too_few_gpus(
    problem: Problem, spec: CascadeDeploymentSpec, facts: Sequence[ModelFacts], sources: Sequence[CostSource]
) -> InfeasibleError:
    """The floor can be kept, but not by stages that fit into the GPU budget at this rate."""
    have = ", ".join(f"{b.gpus} of pool {b.name}" for b in problem.budgets)
    forced = [model for model, of in enumerate(spec.models) if of.min_replicas]
    remedy = f"add GPUs, or lower the rate{', minQuality or minReplicas' if forced else ' or minQuality'}"
    asked = f"{problem.sample.requests_per_second:g} requests/s at minQuality {problem.floor:g}"
    least, most = None, [0] * len(problem.budgets)
    for times in _TIMES_THE_GPUS:
        most = [min(_MOST_GPUS, max(_FEWEST_GPUS, times * limit)) for limit in problem.limits]
        roomy = _having(_by_cost(problem), most, spec, facts, sources)
        sites = roomy.sites
        missing = [model for model in forced if model in problem.sites.unfit]
        hopeless = [model for model in missing if model in sites.unfit or any(problem.rooms)]
        if hopeless or not roomy.grids:
            # More GPUs, or the same ones in whole nodes, would not do, or would do only if they lay together.
            return problem.sites.unfit[hopeless[0]] if hopeless else next(iter(sites.unfit.values()))
        least = _least_gpus(problem, _screen(roomy))
        if least is not None or min(most) == _MOST_GPUS:
            break
    if least is None and sites.unfit:
        model, reason = next(iter(sites.unfit.items()))
        return InfeasibleError(
            reason.reason,
            f"{asked} cannot be kept by the stages that the GPUs hold (there are {have}), and "
            f"{spec.models[model].name} is none of these: {reason}",
            shortfalls=reason.shortfalls,
            nearest=_nearest(problem),
        )
    if least is None:
        return InfeasibleError(
            "InsufficientGPUs",
            f"{asked} need more GPUs than the {_MOST_GPUS} that a pool may have, or stages that no pool can hold "
            f"(there are {have}); {remedy}",
            shortfalls=[
                Shortfall(f"GPUs of pool {b.name}", m + 1, b.gpus) for b, m in zip(problem.budgets, most, strict=True)
            ],
            nearest=_nearest(problem),
        )
    points, k = least
    needed = [0] * len(problem.budgets)
    for gpus, pool in zip(points.gpus[k], points.pools, strict=True):
        needed[pool] += int(gpus)
    several = len(problem.budgets) > 1
    stages = " + ".join(
        f"{int(gpus)}{f' of pool {problem.budgets[pool].name}' if several else ''} for {spec.models[model].name}"
        + _asked_for(spec.models[model])
        for gpus, pool, model in zip(points.gpus[k], points.pools, points.grid.stages, strict=True)
    )
    if not any(n > b.gpus for b, n in zip(problem.budgets, needed, strict=True)):
        if any(problem.rooms):
            return _not_together(problem, f"{stages} would do")
        return _not_certain(problem, have)
    short = [(b, n) for b, n in zip(problem.budgets, needed, strict=True) if n > b.gpus]
    words = " and ".join(f"at least {n} GPUs of pool {b.name}, has {b.gpus}" for b, n in short)
    enough = _enough(problem, needed, spec, facts, sources)
    certain = [(b, n) for b, n in zip(problem.budgets, enough, strict=True) if n > b.gpus]
    if certain != short:
        stages += "; there is a plan with " + " and ".join(f"{n} of pool {b.name}" for b, n in certain)
    return InfeasibleError(
        "InsufficientGPUs",
        f"{asked} need {words} ({stages}); {remedy}",
        shortfalls=[Shortfall(f"GPUs of pool {b.name}", n, b.gpus) for b, n in certain],
        nearest=_nearest(problem),
    )


def _enough(
    problem: Problem,
    needed: Sequence[int],
    spec: CascadeDeploymentSpec,
    facts: Sequence[ModelFacts],
    sources: Sequence[CostSource],
) -> list[int]:
    """GPUs of each pool with which planning finds something: what is needed, or a little more.

    Among so many GPUs thresholds are certified in another order than among more or fewer: what is told is tried.
    """
    for times in _A_LITTLE_MORE:
        gpus = [
            min(_MOST_GPUS, math.ceil(n * times)) if n > budget.gpus else budget.gpus
            for n, budget in zip(needed, problem.budgets, strict=True)
        ]
        if _fits(_having(problem, gpus, spec, facts, sources)):
            return gpus
    return list(needed)


def _having(
    problem: Problem,
    gpus: Sequence[int],
    spec: CascadeDeploymentSpec,
    facts: Sequence[ModelFacts],
    sources: Sequence[CostSource],
) -> Problem:
    """The same problem with other numbers of GPUs, whole nodes where they differ."""
    budgets = [
        budget if n == budget.gpus else replace(budget, gpus=n, room=None)
        for n, budget in zip(gpus, problem.budgets, strict=True)
    ]
    sites = find_sites(spec, facts, budgets, problem.sample, percentile=problem.percentile, sources=sources)
    grids = [k for k, grid in enumerate(problem.grids) if all(sites.pools_of(model) for model in grid.stages)]
    return replace(
        problem,
        sites=sites,
        budgets=budgets,
        study=problem.study.of(grids),
        qualities=[problem.qualities[k] for k in grids],
        made={},
        known={},
    )


def _asked_for(model: Model) -> str:
    """What the manifest adds to a stage's need."""
    return f" with minReplicas {model.min_replicas}" if (model.min_replicas or 0) > 1 else ""


def _not_together(problem: Problem, enough: str) -> InfeasibleError:
    """The GPUs would do by their number, but not as they lie on the nodes."""
    lie = "; ".join(
        f"pool {b.name}: {b.gpus} free, of which pods of "
        + ", ".join(f"{size} can hold {most}" for size, most in zip(POD_SIZES[1:4], b.room[1:4], strict=True))
        for b in problem.budgets
        if b.room is not None
    )
    return InfeasibleError(
        "InsufficientGPUs",
        f"{problem.sample.requests_per_second:g} requests/s at minQuality {problem.floor:g}: {enough} by number, but "
        f"the free GPUs lie scattered over nodes ({lie}); free whole nodes, or lower the rate or minQuality",
        nearest=_nearest(problem),
    )


def _not_certain(problem: Problem, have: str) -> InfeasibleError:
    """Thresholds that keep the floor fit, but none of those that were tested kept it with certainty."""
    confidence = problem.objective.confidence
    return InfeasibleError(
        "InsufficientGPUs",
        f"{problem.sample.requests_per_second:g} requests/s at minQuality {problem.floor:g}: what the GPUs there are "
        f"({have}) can carry is not certain to keep the floor at confidence {confidence}, though more of them could; "
        "add GPUs, enlarge the calibration set, or lower the rate, minQuality or confidence",
        nearest=_nearest(problem),
    )


def latency_out_of_reach(
    best: PathTimes, targets: Sequence[LatencyTarget], *, deviations: float = 0.0
) -> InfeasibleError:
    """Every design misses a latency target, or meets it by less than the simulation's error.

    Args:
        best: What the best design does.
        targets: The targets.
        deviations: Standard errors of the simulation by which they had to be met.
    """
    words, shortfalls, nearest = [], [], []
    for target in targets:
        limit = float(target.milliseconds)
        reached = best.percentile(target.percentile, target.metric) * 1e3
        error = best.standard_error(target.percentile, target.metric) * 1e3
        surely = reached + (deviations * error if deviations else 0.0)
        if surely <= limit:
            continue
        what = f"{target.metric} p{target.percentile} ms"
        if reached > limit:
            words.append(f"{what} {limit:.0f} is asked, {_up(reached)} is the best found")
        else:
            words.append(
                f"{what} {limit:.0f} is asked, the best found is {reached:.0f} ± {error:.0f}, too near to be sure"
            )
        shortfalls.append(Shortfall(what, limit, reached if reached > limit else surely))
        if np.isfinite(reached + error):
            nearest.append(f"{what} {math.ceil(reached + _NEAREST_ERRORS * error)}")
    return InfeasibleError(
        "LatencyOutOfReach",
        f"a latency target is out of reach: {'; '.join(words)}; add GPUs, raise the target, or lower the rate or "
        "minQuality",
        shortfalls=shortfalls,
        nearest="; ".join(nearest),
    )


def _up(milliseconds: float) -> str:
    """Rounded up, so that it is not the target that it misses."""
    if not math.isfinite(milliseconds):
        return "no end"
    return f"{math.ceil(milliseconds * 10) / 10:.1f}" if milliseconds < 100 else f"{math.ceil(milliseconds)}"


def _down(value: float) -> str:
    """Three digits, rounded down, so that the nearest floor is one that can be kept."""
    return f"{np.floor(value * 1000) / 1000:.3f}"


def _by_cost(problem: Problem) -> Problem:
    """The same problem with the fewest GPUs as the only aim."""
    aim = problem.objective.model_copy(update={"minimize": "Cost", "targets": None})
    return replace(problem, objective=aim, prices=[1.0] * len(problem.prices), made={})


def _screen(problem: Problem) -> list[Screened]:
    return certified(problem, screen_all(problem, lambda: False, lambda _: None))[1]


def _least_gpus(problem: Problem, screened: Sequence[Screened]) -> tuple[Screened, int] | None:
    """The point at the floor that exceeds the budgets by the fewest GPUs."""
    best: tuple[int, Screened, int] | None = None
    limits = np.array(problem.limits)
    for points in screened:
        good = np.flatnonzero(points.assured >= problem.floor)
        if not len(good):
            continue
        used = np.stack(
            [points.gpus[good][:, np.array(points.pools) == pool].sum(axis=1) for pool in range(len(limits))], axis=1
        )
        over = np.maximum(0, used - limits).sum(axis=1)
        k = int(over.argmin())
        if best is None or int(over[k]) < best[0]:
            best = int(over[k]), points, int(good[k])
    return None if best is None else (best[1], best[2])


def _nearest(problem: Problem) -> str:
    """The highest rate that the GPUs carry at the floor, else the highest floor at the rate; empty if none.

    What is tried is what is told, three digits: at another rate, however near, other thresholds are certified.
    """
    if not any(pool_choices(problem, grid) for grid in problem.grids):
        return ""

    def slower(rate: float) -> Problem:
        return replace(problem, sample=replace(problem.sample, requests_per_second=rate), made={}, known={})

    def worse(floor: float) -> Problem:
        aim = problem.objective.model_copy(update={"min_quality": f"{floor:.3f}"})
        return replace(problem, objective=aim, made={}, known={})

    asked = problem.sample.requests_per_second
    level = _ROUGHLY if sum(len(grid) for grid in problem.grids) > _MANY_VECTORS else _LEVEL
    rate = _highest(asked, slower, lambda middle: float(f"{middle:.3g}"), lambda low, high: high - low <= level * high)
    if rate > 0:
        return f"{rate:g} requests/s on the GPUs that there are"
    floor = _highest(problem.floor, worse, lambda middle: round(middle, 3), lambda low, high: high - low <= _POINTS)
    return f"minQuality {floor:g} on the GPUs that there are" if floor > 0 else ""


def _highest(
    asked: float,
    at: Callable[[float], Problem],
    told: Callable[[float], float],
    near: Callable[[float, float], bool],
) -> float:
    """The highest figure below what was asked at which something fits, by bisection; 0 if none."""
    low, high = 0.0, asked
    for step in range(_STEPS):
        middle = told((low + high) / 2 if low or not step else high / _FAR_OFF)
        if not low < middle < high or near(low, high):
            break
        low, high = (middle, high) if _fits(at(middle)) else (low, middle)
    return low


def _fits(problem: Problem) -> bool:
    """Whether planning finds anything."""
    return bool(
        candidates(
            *certified(problem, screen_all(problem, lambda: False, lambda _: None)), lambda: False, lambda _: None
        )
    )
