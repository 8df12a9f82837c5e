"""Screening of every threshold vector: GPUs, cost and an estimate of latency for each.

For one choice of stages and pools, the tables of `parallelism` say how many GPUs each stage needs for
each latency at the rate that a vector sends it. Adding GPUs where they gain most gives every vector's
staircase of (latency along the path, GPUs). Latency along the path is then
estimated on a joint subsample of requests, in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_api.cascade import LatencyTarget
from cascadia_solver.compiled import compiled
from cascadia_solver.parallelism import LEVELS
from cascadia_solver.path_estimate import estimated, rows_to_estimate_on
from cascadia_solver.quality import QualityOfGrid
from cascadia_solver.replay import Replay, ThresholdGrid
from cascadia_solver.sites import Site
from cascadia_solver.workload import RequestSample

__all__ = ["AS_GOOD_AS_KEPT", "Screened", "screen"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_STAIRS = np.concatenate([1.1 ** np.arange(10), [3.0, 4.0, 6.0, 10.0]])
"""Costs at which each vector is looked at, over its own least cost."""
_LEAST_STEP = 0.02
"""Of the cost: smaller steps are not worth a look each, where GPUs are many."""
_TAILS = 2.0
"""A stage that so many times the tail's share of requests get to counts in full for the percentile."""
_PER_STAIR, _PER_STAIR_FOR_TARGETS = 96, 384
"""Vectors at the floor that are looked at: on each stair so many of the cheapest, and among equals of the fastest."""
AS_GOOD_AS_KEPT = 0.03
"""What estimates are off by: a target that seems to be missed by no more may be kept, which the simulation will say."""


@dataclass(frozen=True, eq=False)
class Screened:
    """Points of one choice of stages and pools; K points.

    Attributes:
        grid: The vectors.
        pools: Pool index of each stage.
        quality: Of the grid's vectors.
        rates: Rate at each stage in requests of the profile's mean answer length, 1/s [V, stages].
        profiles: Length profile of each stage [V, stages].
        vector: Flat index of the threshold vector [K].
        gpus: GPUs of each stage [K, stages].
        busy: Rate at each stage over what its GPUs carry [K, stages].
        parts: Wait s, prefill s/token, decode s/token of each stage [K, stages, 3].
        latency: Estimated percentile of end-to-end latency, s [K].
        targeted: Estimate of what each target is on, over the target [K, targets].
        cost: Per hour, or the number of GPUs where there are no prices [K].
    """

    grid: ThresholdGrid
    pools: tuple[int, ...]
    quality: QualityOfGrid
    rates: Floats
    profiles: Integers
    vector: Integers
    gpus: Integers
    busy: Floats
    parts: Floats
    latency: Floats
    targeted: Floats
    cost: Floats

    @property
    def strain(self) -> Floats:
        """How near to a limit a point is, 1 at it: load of the busiest stage, or the target that is kept least [K]."""
        return np.asarray(np.maximum(self.busy.max(axis=1), self.worst))

    @property
    def worst(self) -> Floats:
        """What the target that is kept least is on, over the target; 0 where there is none [K]."""
        return np.asarray(np.max(self.targeted, axis=1, initial=0.0))

    @property
    def missed(self) -> Floats:
        """How far the worst missed target is missed, as a share of it; 0 where all are kept, or as good as kept [K]."""
        return np.maximum(self.worst - 1 - AS_GOOD_AS_KEPT, 0.0)

    @property
    def mean(self) -> Floats:
        """Mean quality [K]."""
        return self.quality.mean[self.vector]

    @property
    def assured(self) -> Floats:
        """What plans are chosen on: the quality bound where there is one [K]."""
        return self.quality.assured[self.vector]


def screen(
    grid: ThresholdGrid,
    sites: Sequence[Site],
    quality: QualityOfGrid,
    estimate: Floats,
    sample: RequestSample,
    *,
    limits: Sequence[int],
    prices: Sequence[float],
    percentile: float,
    floor: float,
    targets: Sequence[LatencyTarget] = (),
    closely: bool = True,
) -> Screened:
    """Screen every vector of a grid with its stages on given sites.

    Args:
        grid: V vectors.
        sites: Where each stage runs.
        quality: Of the vectors.
        estimate: What their quality is estimated to be, for the choice of those worth a look [V].
        sample: The traffic.
        limits: GPUs of each pool.
        prices: Of a GPU hour of each pool.
        percentile: Of end-to-end latency.
        floor: Quality floor: vectors at or above it come first where not all are looked at.
        targets: Latency targets.
        closely: Whether there is time to look at targets closely: not if there are many choices of sites.
    """
    closely = closely and bool(targets)
    replay = Replay(grid, sample.scores, sample.able)
    rates, profiles = _stage_loads(replay, sites, sample)
    needed = np.stack(
        [_needed(site, rate, profile) for site, rate, profile in zip(sites, rates.T, profiles.T, strict=True)], axis=1
    )
    pools = np.array([site.pool for site in sites])
    price = np.array([prices[pool] for pool in pools])
    reach = replay.reach(np.ones(len(sample)))
    weights = np.minimum(1.0, reach / (_TAILS * (1 - percentile / 100)))
    levels_of = sites[0].table.levels
    chosen = _staircases(needed, price, weights, levels_of, np.array(limits, dtype=np.int64), pools, _STAIRS)
    vectors, levels = [], []
    stages = np.arange(len(sites))
    most = _PER_STAIR_FOR_TARGETS if closely else _PER_STAIR
    for place, row in enumerate(chosen):
        possible = np.flatnonzero(row[:, 0] >= 0)
        slowness = (weights * levels_of[row]).sum(axis=1)
        cost = needed[np.arange(len(grid))[:, None], stages, row] @ price
        if place < len(_STAIRS):
            looked = _worth_a_look(possible, cost, slowness, estimate, floor, most)
        else:
            looked = _worth_a_look(possible, slowness, cost, estimate, floor, 2 * most)
        vectors.append(looked)
        levels.append(row[looked])
    distinct = np.unique(np.column_stack([np.concatenate(vectors), np.concatenate(levels)]), axis=0)
    vector, level = distinct[:, 0], distinct[:, 1:]
    gpus = needed[vector[:, None], stages, level]
    parts = np.stack([site.table.parts[profiles[vector, j], level[:, j]] for j, site in enumerate(sites)], axis=1)
    carried = [site.table.carried[gpus[:, j], profiles[vector, j], -1] for j, site in enumerate(sites)]
    rows = rows_to_estimate_on(sample, grid.stages[-1], len(vector), closely=closely)
    latency, targeted = estimated(grid, vector, parts, sample, rows, percentile, targets)
    return Screened(
        grid=grid,
        pools=tuple(int(pool) for pool in pools),
        quality=quality,
        rates=rates,
        profiles=profiles,
        vector=vector,
        gpus=gpus,
        busy=rates[vector] / np.maximum(np.stack(carried, axis=1), 1e-9),
        parts=parts,
        latency=latency,
        targeted=targeted,
        cost=gpus @ price,
    )


@compiled
def _staircases(
    needed: Integers,
    price: Floats,
    weights: Floats,
    seconds: Floats,
    limits: Integers,
    pools: Integers,
    stairs: Floats,
) -> Integers:
    """Levels of each stage from the cheapest on, each time faster where a price unit gains most, while pools allow it.

    What counts is the weighted sum over stages of latency.

    Args:
        needed: GPUs of each stage at each level, not increasing [V, stages, LEVELS].
        price: Of a GPU of each stage [stages].
        weights: How much a stage's latency counts [V, stages].
        seconds: Latency of each level [LEVELS].
        limits: GPUs of each pool.
        pools: Pool of each stage [stages].
        stairs: Costs at which to look, over each vector's least cost, ascending.

    Returns:
        The fastest at each of these costs at most, and in the end at any; -1 where the pools do not suffice
        [stairs + 1, V, stages].
    """
    vectors, stages, levels = needed.shape
    result = np.full((len(stairs) + 1, vectors, stages), -1, dtype=np.int64)
    chosen = np.empty(stages, dtype=np.int64)
    for v in range(vectors):
        left = limits.copy()
        cost = 0.0
        for j in range(stages):
            chosen[j] = levels - 1
            while chosen[j] > 0 and needed[v, j, chosen[j] - 1] == needed[v, j, levels - 1]:
                chosen[j] -= 1
            left[pools[j]] -= needed[v, j, levels - 1]
            cost += price[j] * needed[v, j, levels - 1]
        if (left < 0).any():
            continue
        least, row = cost, 0
        while True:
            best, stage, level = 0.0, -1, -1
            for j in range(stages):
                for faster in range(chosen[j] - 1, -1, -1):
                    more = needed[v, j, faster] - needed[v, j, chosen[j]]
                    if more > left[pools[j]]:
                        break
                    gain = weights[v, j] * (seconds[chosen[j]] - seconds[faster])
                    gain /= max(price[j] * more, _LEAST_STEP * cost)
                    if gain > best:
                        best, stage, level = gain, j, faster
            more = 0 if stage < 0 else needed[v, stage, level] - needed[v, stage, chosen[stage]]
            after = cost + price[stage] * more
            while row < len(stairs) and (stage < 0 or after > least * stairs[row]):
                result[row, v] = chosen
                row += 1
            if stage < 0:
                result[row, v] = chosen
                break
            left[pools[stage]] -= more
            cost, chosen[stage] = after, level
    return result


def _stage_loads(replay: Replay, sites: Sequence[Site], sample: RequestSample) -> tuple[Floats, Integers]:
    """Rate at each stage in requests of the profile's mean answer length, and its profile [V, stages]."""
    every = np.ones(len(sample))
    rates, profiles = [], []
    for j, site in enumerate(sites):
        visits = replay.at_stage(j, every)
        tokens = replay.generated(j, np.ascontiguousarray(sample.output_tokens[:, site.model]), sample.gate_tokens)
        reach = visits / len(sample)
        distance = np.abs(np.log(np.maximum(reach, 1e-6))[:, None] - np.log(site.reaches)[None, :])
        profile = distance.argmin(axis=1)
        longer = tokens / np.maximum(visits, 1.0) / site.answer_tokens[profile]
        rates.append(sample.requests_per_second * reach * np.where(visits > 0, longer, 0.0))
        profiles.append(profile)
    return np.stack(rates, axis=1), np.stack(profiles, axis=1).astype(np.int64)


def _needed(site: Site, rate: Floats, profile: Integers) -> Integers:
    """GPUs that a stage needs for each vector at each level [V, LEVELS]."""
    needed = np.empty((len(rate), LEVELS), dtype=np.int64)
    for which in np.unique(profile):
        rows = np.flatnonzero(profile == which)
        # Many vectors share their first thresholds, hence their rate.
        distinct, back = np.unique(rate[rows], return_inverse=True)
        needed[rows] = site.table.gpus_needed(int(which), distinct).T[back]
    return needed


def _worth_a_look(
    possible: Integers, value: Floats, ties: Floats, estimate: Floats, floor: float, most: int
) -> Integers:
    """The vectors of the least value at the floor, and those for each quality.

    Many have the same value: of these the best ones, and those that are least in what decides ties.
    """
    order = possible[np.lexsort((-estimate[possible], value[possible]))]
    best_so_far = np.maximum.accumulate(np.concatenate([[-np.inf], estimate[order]]))[:-1]
    stairs = order[estimate[order] > best_so_far]
    good = order[estimate[order] >= floor]
    other = good[np.lexsort((ties[good], value[good]))]
    return np.unique(np.concatenate([good[:most], other[:most], stairs[:: max(1, len(stairs) // 32)]]))
