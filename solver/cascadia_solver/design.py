"""One candidate plan: thresholds, GPUs, replicas; its tables are made for exactly its own requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.lengths import length_profile
from cascadia_solver.operating_point import load_curves
from cascadia_solver.packing import gpus_by_pod_size
from cascadia_solver.parallelism import ReplicaSet, StageTable, latency_levels
from cascadia_solver.path_allocation import Ceiling, PathStage, allocate_path, trim_allocation
from cascadia_solver.replay import exit_stages
from cascadia_solver.roofline import Shape
from cascadia_solver.sites import Site
from cascadia_solver.workload import RequestSample

__all__ = [
    "LEVEL_WITH",
    "Design",
    "Route",
    "Routed",
    "StageMade",
    "design",
    "fits_pools",
    "rerouted",
    "routed",
    "with_sets",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_REQUESTS = 1024
LEVEL_WITH = 0.01
"""Latencies this close count as equal: it is about the noise of a simulated p95."""


@dataclass(frozen=True, slots=True)
class Route:
    """Which stages there are, where, and which answers they may give.

    Attributes:
        stages: Model index of each stage, ascending.
        thresholds: Of each stage but the last.
        pools: Pool index of each stage.
        mean: Mean quality.
        assured: Quality bound, or the mean under a prior.
    """

    stages: tuple[int, ...]
    thresholds: tuple[float, ...]
    pools: tuple[int, ...]
    mean: float
    assured: float


@dataclass(frozen=True, eq=False)
class Routed:
    """What a route makes of the traffic; S stages.

    Attributes:
        route: The route.
        exits: Model that answers each request, or refuses it [n].
        reach: Share of the requests that each stage serves [S].
        rates: Arrival rate at each stage, 1/s [S].
        tables: Of each stage, for the requests that get there: one profile.
        latencies: Of each stage's best replicas by number of GPUs, s [S][F + 1].
        steps: What the allocation may choose from.
        gpus_per_node: Of a node of each stage's pool [S].
    """

    route: Route
    exits: Integers
    reach: Floats
    rates: Floats
    tables: tuple[StageTable, ...]
    latencies: tuple[Floats, ...]
    steps: tuple[PathStage, ...]
    gpus_per_node: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Design:
    """A route with replicas.

    Attributes:
        routed: The route and its traffic.
        choice: Index into each stage's steps.
        estimate: Closed-form percentile of end-to-end latency of the allocation first found, s.
        bound: By the closed form, no allocation of the same route within the limits has less of what is
            minimised: a percentile in s, or a price.
        exhaustive: Whether all allocations were tried.
        sets: Replicas that the simulation prefers to those of the choice, by stage.
    """

    routed: Routed
    choice: tuple[int, ...]
    estimate: float
    bound: float
    exhaustive: bool
    sets: Mapping[int, ReplicaSet] = field(default_factory=dict)

    @property
    def route(self) -> Route:
        """Stages, thresholds, pools."""
        return self.routed.route

    @property
    def gpus(self) -> tuple[int, ...]:
        """GPUs of each stage."""
        return tuple(replicas.gpus for replicas in self.replicas)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for designs that are the same plan."""
        return self.route.stages, self.route.thresholds, self.route.pools, tuple(map(_shapes, self.replicas))

    @cached_property
    def replicas(self) -> tuple[ReplicaSet, ...]:
        """Replicas of each stage."""
        of_choice = zip(self.routed.tables, self.routed.rates, self.routed.steps, self.choice, strict=True)
        return tuple(
            self.sets[j] if j in self.sets else table.replicas(0, rate, int(step.gpus[k]))
            for j, (table, rate, step, k) in enumerate(of_choice)
        )

    @cached_property
    def held(self) -> tuple[Integers, ...]:
        """GPUs that each stage holds in pods of at least each of `packing.POD_SIZES` [S][sizes]."""
        return tuple(
            gpus_by_pod_size([(o.gpus, n) for o, n in zip(of.options, of.counts, strict=True)], per_node)
            for of, per_node in zip(self.replicas, self.routed.gpus_per_node, strict=True)
        )

    def path_percentile(self, percentile: float) -> float:
        """Closed-form percentile of end-to-end latency of this allocation, s."""
        total = np.zeros(1)
        for j, (step, k) in enumerate(zip(self.routed.steps, self.choice, strict=True)):
            by_choice = self.routed.latencies[j][step.gpus[k]]
            total = total + step.seconds[k] * (self.sets[j].latency / by_choice if j in self.sets else 1.0)
        return float(np.percentile(total, percentile))

    def cost(self, prices: Sequence[float]) -> float:
        """Price of its GPUs for one hour."""
        return sum(g * prices[p] for g, p in zip(self.gpus, self.route.pools, strict=True))


@dataclass(frozen=True, eq=False)
class StageMade:
    """One stage's tables for the requests that some thresholds let through to it.

    Attributes:
        reach: Share of the requests.
        table: For exactly these requests.
        latency: Of the best replicas by number of GPUs, s [F + 1].
        step: What the allocation may choose from.
    """

    reach: float
    table: StageTable
    latency: Floats
    step: PathStage


def routed(
    route: Route,
    sites: Sequence[Site],
    sample: RequestSample,
    limits: Sequence[int],
    percentile: float,
    made: dict[tuple[object, ...], StageMade],
    widest: Sequence[int | None] = (),
) -> Routed:
    """Replay a route on the traffic and tabulate its stages.

    Args:
        route: Stages, thresholds, pools.
        sites: Of each stage.
        sample: The traffic.
        limits: GPUs of each pool.
        percentile: Of latency.
        made: Stages that other routes have in common with it; those made here are added.
        widest: Most GPUs of a replica of each stage; None for any.
    """
    exits = exit_stages(route.stages, route.thresholds, sample.scores, sample.able)
    stages = []
    for place, site in enumerate(sites):
        most = widest[place] if widest else None
        # With a gate, how long a stage works depends on its own threshold, too.
        before = len(route.thresholds[: place + (sample.gate_tokens is not None)])
        # So does how long its answers take, on whether they are scored: the last stage's are not.
        scoring = sample.scorer_seconds if place + 1 < len(sites) else 0.0
        key = (
            site.model,
            site.pool,
            most,
            scoring,
            *zip(route.stages[:before], route.thresholds[:before], strict=True),
        )
        if key not in made:
            visits = exits >= site.model
            if sample.able is not None:
                visits &= sample.able[:, site.model]
            made[key] = _stage(site, visits, exits, sample, limits[site.pool], percentile, most, scoring)
        stages.append(made[key])
    share = np.array([stage.reach for stage in stages])
    return Routed(
        route,
        exits,
        share,
        sample.requests_per_second * share,
        tuple(stage.table for stage in stages),
        tuple(stage.latency for stage in stages),
        tuple(stage.step for stage in stages),
        tuple(site.gpus_per_node for site in sites),
    )


def _stage(
    site: Site,
    visits: NDArray[np.bool_],
    exits: Integers,
    sample: RequestSample,
    limit: int,
    percentile: float,
    widest: int | None,
    scoring: float,
) -> StageMade:
    inputs, outputs = sample.input_tokens, sample.output_tokens[:, site.model]
    if sample.gate_tokens is not None:
        outputs = np.where(exits > site.model, np.minimum(outputs, sample.gate_tokens), outputs)
    reach = float(visits.mean())
    ordered = sample.by_length[site.model]
    rows = ordered[visits[ordered]] if reach else ordered
    profile = length_profile(inputs[rows], outputs[rows])
    options = [option for option in site.options if widest is None or option.gpus <= widest]
    curves = load_curves([option.step for option in options], [profile], percentile)
    table = StageTable(options, curves, latency_levels([curves]), limit, site.least_replicas, site.room)
    rate = sample.requests_per_second * reach
    latency = table.latency_by_gpus(0, rate)
    faster = np.flatnonzero(latency < np.concatenate([[np.inf], latency[:-1]]))
    at = np.log(latency[faster])
    parts = np.stack([np.interp(at, np.log(table.levels), table.parts[0][:, k]) for k in range(3)], axis=1)
    shown = np.linspace(0, len(sample) - 1, min(_REQUESTS, len(sample))).astype(np.int64)
    seconds = scoring + parts[:, 0, None] + parts[:, 1, None] * inputs[shown] + parts[:, 2, None] * outputs[shown]
    held = None
    if site.room is not None and len(faster):
        sets = [table.replicas(0, rate, int(gpus)) for gpus in faster]
        shapes = [[(o.gpus, n) for o, n in zip(s.options, s.counts, strict=True)] for s in sets]
        held = np.stack([gpus_by_pod_size(replicas, site.gpus_per_node) for replicas in shapes])
    return StageMade(reach, table, latency, PathStage(faster, seconds * visits[shown], site.pool, held))


def design(
    traffic: Routed,
    limits: Sequence[int],
    *,
    percentile: float,
    prices: Sequence[float] | None,
    ceilings: Sequence[Ceiling],
    rooms: Sequence[Sequence[int] | None] = (),
) -> Design | None:
    """Give a route the allocation that is fastest, or cheapest within ceilings where prices are given.

    A fastest allocation is then relieved of GPUs that make it faster by less than the noise.

    Returns:
        The design; None if the GPUs do not carry the route.
    """
    found = allocate_path(traffic.steps, limits, percentile=percentile, prices=prices, ceilings=ceilings, rooms=rooms)
    if found is None:
        return None
    choice = found.choice
    if prices is None:
        slowest = found.latency * (1 + LEVEL_WITH)
        choice = trim_allocation(traffic.steps, choice, percentile=percentile, slowest=slowest)
    return Design(traffic, choice, found.latency, found.bound, found.exhaustive)


def fits_pools(plan: Design, limits: Sequence[int], rooms: Sequence[Sequence[int] | None]) -> bool:
    """Whether the pools and their nodes hold a design.

    Args:
        plan: The design.
        limits: GPUs of each pool.
        rooms: As for `allocate_path`.
    """
    for pool, limit in enumerate(limits):
        mine = [j for j, of in enumerate(plan.route.pools) if of == pool]
        if sum(plan.gpus[j] for j in mine) > limit:
            return False
        room = rooms[pool]
        if room is not None and mine and (np.sum([plan.held[j] for j in mine], axis=0) > np.array(room)).any():
            return False
    return True


def rerouted(plan: Design, sample: RequestSample) -> Design:
    """The same thresholds and replicas, for other requests of the same traffic."""
    exits = exit_stages(plan.route.stages, plan.route.thresholds, sample.scores, sample.able)
    # Replicas and their weights are those of the plan: they follow from its tables, not from these requests.
    return replace(plan, routed=replace(plan.routed, exits=exits))


def with_sets(plan: Design, sets: Mapping[int, ReplicaSet]) -> Design:
    """The same route with other replicas of some stages."""
    return replace(plan, sets={**plan.sets, **sets})


def _shapes(replicas: ReplicaSet) -> tuple[tuple[Shape, int], ...]:
    return tuple(sorted((o.shape, n) for o, n in zip(replicas.options, replicas.counts, strict=True)))
