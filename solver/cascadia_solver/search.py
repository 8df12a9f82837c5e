"""The outer level: from every threshold vector to the designs worth simulating."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice, product

import numpy as np
from numpy.typing import NDArray

from cascadia_api.cascade import LatencyTarget, Objective
from cascadia_solver.certification import QualityStudy
from cascadia_solver.design import Design, Route, StageMade, design, routed
from cascadia_solver.path_allocation import Ceiling, path_bound
from cascadia_solver.quality import QualityOfGrid
from cascadia_solver.replay import ThresholdGrid
from cascadia_solver.screening import Screened, screen
from cascadia_solver.simulation import StageTimes
from cascadia_solver.sites import PoolBudget, Site, Sites
from cascadia_solver.workload import RequestSample, first_requests

__all__ = [
    "PER_MISS",
    "Problem",
    "candidates",
    "design_route",
    "lower_bound",
    "pool_choices",
    "ranking",
    "routes",
    "screen_all",
]

Floats = NDArray[np.float64]

PER_MISS = 5.0
"""A share by which a target seems to be missed counts as so many times that share of what is minimised."""
_POOL_CHOICES = 256
"""About the most assignments of stages to pools, all choices of stages together: none is left out for up to
four models on two pools or three models on three."""
_LEAST_POOL_CHOICES = 4
_FEW_CHOICES = 24
"""With more choices of stages and pools than this, each is looked at less closely."""
_CANDIDATES, _CANDIDATES_FOR_TOKENS = 10, 35
"""Designs; targets on tokens need those of every choice of stages."""
_PER_CHOICE = 5
"""Candidates of one choice of stages and pools."""
_WIDTHS = 64
_PREVIEWED = 1500
"""Requests of the simulations that only compare."""
_MOST_TRIED = 60
"""Routes looked at until one fits on partly used nodes, of which the screening knows stage by stage only."""


@dataclass(frozen=True, eq=False)
class Problem:
    """A planning problem, ready to be searched.

    Attributes:
        objective: The manifest's objective.
        budgets: GPUs of each pool.
        prices: Of a GPU hour of each pool; all 1 where the manifest lacks some.
        priced: Whether `prices` are the manifest's.
        sample: The traffic.
        sites: Where each model can run.
        study: Quality of the threshold vectors of every choice of stages.
        qualities: Of the vectors of each grid, bounded where that was asked for.
        seed: Seed of what is drawn.
        settle_seconds: Time that simulated cascades are given to fill: the latency of a slow request.
        made: Tables of stages, kept for other routes with the same stage.
        known: Simulated stages, kept for other designs that begin alike.
    """

    objective: Objective
    budgets: Sequence[PoolBudget]
    prices: Sequence[float]
    priced: bool
    sample: RequestSample
    sites: Sites
    study: QualityStudy
    qualities: Sequence[QualityOfGrid]
    seed: int
    settle_seconds: float = 0.0
    made: dict[tuple[object, ...], StageMade] = field(default_factory=dict)
    known: dict[bytes, StageTimes] = field(default_factory=dict)

    @property
    def grids(self) -> Sequence[ThresholdGrid]:
        """Threshold vectors of every choice of stages."""
        return self.study.grids

    @property
    def limits(self) -> list[int]:
        """GPUs of each pool."""
        return [budget.gpus for budget in self.budgets]

    @property
    def rooms(self) -> list[tuple[int, ...] | None]:
        """What pods of each size can hold in each pool; None where nodes do not matter."""
        return [budget.room for budget in self.budgets]

    @property
    def floor(self) -> float:
        """Quality floor."""
        return float(self.objective.min_quality)

    @property
    def percentile(self) -> float:
        """Percentile of end-to-end latency that is minimised or limited."""
        return float(self.objective.percentile)

    @property
    def cheapest(self) -> bool:
        """Whether cost is minimised."""
        return self.objective.minimize == "Cost"

    @property
    def token_targets(self) -> bool:
        """Whether there are targets on time to first token or per token."""
        return any(target.metric != "EndToEnd" for target in self.targets)

    @property
    def targets(self) -> Sequence[LatencyTarget]:
        """Latency targets."""
        return self.objective.targets or []

    @cached_property
    def preview(self) -> RequestSample:
        """The first requests of the sample, at its rate: enough to tell which of two like designs is better."""
        return first_requests(self.sample, _PREVIEWED)

    @property
    def ceilings(self) -> list[Ceiling]:
        """Targets on end-to-end latency."""
        return [Ceiling(float(t.percentile), t.milliseconds / 1e3) for t in self.targets if t.metric == "EndToEnd"]


def pool_choices(problem: Problem, grid: ThresholdGrid) -> list[tuple[int, ...]]:
    """Assignments of a grid's stages to pools; where there are too many, those of the cheapest pools."""

    def least_cost(model: int, pool: int) -> float:
        site = problem.sites.at[model, pool]
        return min(option.gpus for option in site.options) * problem.prices[pool]

    ranked = [sorted(problem.sites.pools_of(model), key=partial(least_cost, model)) for model in grid.stages]
    most = max(_LEAST_POOL_CHOICES, _POOL_CHOICES // len(problem.grids))
    places = sorted(product(*(range(len(pools)) for pools in ranked)), key=sum)
    return [tuple(pools[k] for pools, k in zip(ranked, place, strict=True)) for place in places[:most]]


def screen_all(problem: Problem, expired: Callable[[], bool], progress: Callable[[float], None]) -> list[Screened]:
    """Screen every vector of every grid on every choice of pools, until the deadline."""
    work = [(g, pools) for g, grid in enumerate(problem.grids) for pools in pool_choices(problem, grid)]
    # Long cascades first: at a deadline these have been looked at.
    work.sort(key=lambda item: -len(problem.grids[item[0]].stages))
    found: list[Screened] = []
    for done, (g, pools) in enumerate(work):
        if found and expired():
            break
        grid = problem.grids[g]
        found.append(
            screen(
                grid,
                [problem.sites.at[model, pool] for model, pool in zip(grid.stages, pools, strict=True)],
                problem.qualities[g],
                problem.study.estimates[g],
                problem.sample,
                limits=problem.limits,
                prices=problem.prices,
                percentile=problem.percentile,
                floor=problem.floor,
                targets=problem.targets,
                closely=len(work) <= _FEW_CHOICES,
            )
        )
        progress((done + 1) / len(work))
    return found


def ranking(problem: Problem, points: Screened) -> tuple[Floats, Floats]:
    """What is minimised, with what missed targets add to it, and what decides ties [K]."""
    primary, ties = (points.cost, points.latency) if problem.cheapest else (points.latency, points.cost)
    return primary * (1 + PER_MISS * points.missed), ties


def routes(problem: Problem, screened: Sequence[Screened]) -> Iterator[Route]:
    """Routes within the quality floor, best first by the screening's estimates.

    Where a target is on tokens, which only the simulation knows, the best of each choice of stages come first.
    """
    rows = []
    for place, points in enumerate(screened):
        good = np.flatnonzero(points.assured >= problem.floor)
        primary, secondary = (figures[good] for figures in ranking(problem, points))
        order = np.lexsort((secondary, primary))
        seen: set[int] = set()
        for k in order:
            vector = int(points.vector[good[k]])
            if vector not in seen:
                rank = len(seen) if problem.token_targets else 0
                seen.add(vector)
                rows.append((rank, float(primary[k]), float(secondary[k]), place, int(good[k])))
            if len(seen) == _PER_CHOICE:
                break
    for *_, place, point in sorted(rows):
        points = screened[place]
        yield Route(
            stages=points.grid.stages,
            thresholds=points.grid.vector(int(points.vector[point])),
            pools=points.pools,
            mean=float(points.mean[point]),
            assured=float(points.assured[point]),
        )


def design_route(problem: Problem, route: Route, *, cheapest: bool | None = None) -> Design | None:
    """Tabulate a route for exactly its own requests and allocate GPUs; None if the GPUs do not carry it."""
    sites = [problem.sites.at[model, pool] for model, pool in zip(route.stages, route.pools, strict=True)]
    by_cost = problem.cheapest if cheapest is None else cheapest
    found = []
    for widest in _widths(sites):
        traffic = routed(route, sites, problem.sample, problem.limits, problem.percentile, problem.made, widest)
        made = design(
            traffic,
            problem.limits,
            percentile=problem.percentile,
            prices=problem.prices if by_cost else None,
            ceilings=problem.ceilings,
            rooms=problem.rooms,
        )
        if made is not None:
            found.append(made)
    if by_cost:
        return min(found, key=lambda d: (_misses(problem, d), d.cost(problem.prices), d.estimate), default=None)
    return min(found, key=lambda d: d.estimate, default=None)


def lower_bound(problem: Problem, plan: Design, known: float) -> float:
    """What no allocation of a design's route undercuts, by the closed form.

    On partly used nodes it is that of stages of which each has the nodes to itself, as wide as it likes.

    Args:
        problem: What is planned.
        plan: The design.
        known: Its price where cost is minimised, else its percentile of end-to-end latency, s.

    Returns:
        In the same unit, at most `known`.
    """
    route, steps = plan.route, plan.routed.steps
    if any(problem.rooms):
        sites = [problem.sites.at[model, pool] for model, pool in zip(route.stages, route.pools, strict=True)]
        steps = routed(route, sites, problem.sample, problem.limits, problem.percentile, problem.made).steps
    sharper = path_bound(
        steps,
        problem.limits,
        percentile=problem.percentile,
        known=known,
        prices=problem.prices if problem.cheapest else None,
        ceilings=problem.ceilings,
    )
    return sharper if any(problem.rooms) else max(plan.bound, sharper)


def _widths(sites: Sequence[Site]) -> list[tuple[int | None, ...]]:
    """Limits on the replicas of each stage to try: where nodes are partly used, who gets the whole ones is a choice."""
    choices: list[list[int | None]] = []
    for site in sites:
        sizes = sorted({option.gpus for option in site.options}, reverse=True)
        choices.append([None, *sizes[1:]] if site.room is not None else [None])
    every = list(islice(product(*choices), _WIDTHS + 1))
    if len(every) <= _WIDTHS:
        return every
    # Too many to try all: everybody as wide as it likes, or one or all stages narrower.
    none = (None,) * len(sites)
    one = [(*none[:j], size, *none[j + 1 :]) for j, sizes_of in enumerate(choices) for size in sizes_of]
    largest = sorted({size for sizes_of in choices for size in sizes_of if size is not None})
    together = [
        tuple(max((s for s in of if s is not None and s <= size), default=None) for of in choices) for size in largest
    ]
    return list(dict.fromkeys([none, *one, *together]))


def candidates(
    problem: Problem, screened: Sequence[Screened], expired: Callable[[], bool], progress: Callable[[float], None]
) -> list[Design]:
    """Designs worth simulating, best first by the closed form."""
    designs: list[Design] = []
    wanted = _CANDIDATES_FOR_TOKENS if problem.token_targets else _CANDIDATES
    for done, route in enumerate(islice(routes(problem, screened), _MOST_TRIED)):
        if designs and (expired() or done >= wanted):
            break
        if done >= wanted and not any(problem.rooms):
            break
        found = design_route(problem, route)
        if found is not None:
            designs.append(found)
        progress(min(1.0, (done + 1) / wanted))
    if problem.token_targets:
        return designs  # those of each choice of stages first: what the closed form says here tells little
    if problem.cheapest:
        return sorted(designs, key=lambda d: (_misses(problem, d), d.cost(problem.prices), d.estimate))
    return sorted(designs, key=lambda d: (_misses(problem, d), d.estimate))


def _misses(problem: Problem, plan: Design) -> bool:
    limit = min((c.seconds for c in problem.ceilings if c.percentile == problem.percentile), default=np.inf)
    return plan.estimate > limit
