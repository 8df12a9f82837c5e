"""Screening of every threshold vector: GPUs, cost and an estimate of latency for each.

For one choice of stages and pools, the tables of `parallelism` say how many GPUs each stage needs for
each latency at the rate that a vector sends it. Sweeping the latency gives every vector's staircase of
(latency of the slowest stage, GPUs). Latency along the path is then estimated on a joint subsample of
requests, in closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.parallelism import LEVELS
from cascadia_solver.quality import QualityOfGrid
from cascadia_solver.replay import Replay, ThresholdGrid
from cascadia_solver.sites import Site
from cascadia_solver.workload import RequestSample

__all__ = ["Screened", "path_latency", "screen"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_STAIRS = (3, 6, 10, 15, 22, 32, 48, LEVELS)
"""Steps up the ladder of latencies, from the fastest, at which cheaper allocations are looked at."""
_PER_STAIR = 128
_SUBSAMPLE = 256


@dataclass(frozen=True, eq=False)
class Screened:
    """Points of one choice of stages and pools; K points.

    Attributes:
        grid: The vectors.
        pools: Pool index of each stage.
        vector: Flat index of the threshold vector [K].
        gpus: GPUs of each stage [K, stages].
        latency: Estimated percentile of end-to-end latency, s [K].
        cost: Per hour, or the number of GPUs where there are no prices [K].
        mean: Mean quality [K].
        assured: What plans are chosen on: the quality bound where there is one [K].
    """

    grid: ThresholdGrid
    pools: tuple[int, ...]
    vector: Integers
    gpus: Integers
    latency: Floats
    cost: Floats
    mean: Floats
    assured: Floats


def screen(
    grid: ThresholdGrid,
    sites: Sequence[Site],
    quality: QualityOfGrid,
    sample: RequestSample,
    *,
    limits: Sequence[int],
    prices: Sequence[float],
    percentile: float,
    floor: float,
) -> Screened:
    """Screen every vector of a grid with its stages on given sites.

    Args:
        grid: V vectors.
        sites: Where each stage runs.
        quality: Of the vectors.
        sample: The traffic.
        limits: GPUs of each pool.
        prices: Of a GPU hour of each pool.
        percentile: Of end-to-end latency.
        floor: Quality floor: vectors at or above it come first where not all are looked at.
    """
    replay = Replay(grid, sample.scores)
    rates, profiles = _stage_loads(replay, sites, sample)
    needed = np.stack(
        [_needed(site, rate, profile) for site, rate, profile in zip(sites, rates.T, profiles.T, strict=True)], axis=-1
    )
    pools = np.array([site.pool for site in sites])
    within = np.ones(needed.shape[:2], dtype=bool)
    for pool, limit in enumerate(limits):
        within &= needed[:, :, pools == pool].sum(axis=2) <= limit
    cost = needed @ np.array([prices[pool] for pool in pools])
    fastest = within.argmax(axis=0)
    possible = np.flatnonzero(within.any(axis=0))
    picked = [(possible, fastest[possible])]
    for stair in _STAIRS:
        level = np.minimum(fastest + stair, LEVELS - 1)
        picked.append((rows := _worth_a_look(possible, cost[level, np.arange(len(grid))], quality, floor), level[rows]))
    vector = np.concatenate([rows for rows, _ in picked])
    level = np.concatenate([levels for _, levels in picked])
    vector, level = np.unique(np.stack([vector, level]), axis=1)
    parts = [site.table.parts[profiles[vector, j], level] for j, site in enumerate(sites)]
    return Screened(
        grid=grid,
        pools=tuple(int(pool) for pool in pools),
        vector=vector,
        gpus=needed[level, vector],
        latency=_estimates(grid, vector, parts, sample, percentile),
        cost=cost[level, vector],
        mean=quality.mean[vector],
        assured=quality.assured[vector],
    )


def path_latency(
    stages: Sequence[int],
    thresholds: Sequence[Floats],
    parts: Sequence[Floats],
    inputs: Floats,
    outputs: Floats,
    scores: Floats,
) -> Floats:
    """Latency of each request along its path, in closed form.

    Args:
        stages: Model index of each stage.
        thresholds: Of each stage but the last [K].
        parts: Wait, prefill and decode of each stage [K, 3].
        inputs: Prompt lengths [n].
        outputs: Answer lengths [n, C].
        scores: Raw scores [n, C].

    Returns:
        Seconds [K, n].
    """
    total = np.zeros((len(parts[0]), len(inputs)))
    here = np.ones(total.shape, dtype=bool)
    for j, (model, part) in enumerate(zip(stages, parts, strict=True)):
        own = part[:, 0, None] + part[:, 1, None] * inputs + part[:, 2, None] * outputs[:, model]
        total += np.where(here, own, 0.0)
        if j + 1 < len(stages):
            here &= scores[:, model] < thresholds[j][:, None]
    return total


def _stage_loads(replay: Replay, sites: Sequence[Site], sample: RequestSample) -> tuple[Floats, Integers]:
    """Rate at each stage in requests of the profile's mean answer length, and its profile [V, stages]."""
    every = np.ones(len(sample))
    rates, profiles = [], []
    for j, site in enumerate(sites):
        visits = replay.at_stage(j, every)
        tokens = replay.at_stage(j, np.ascontiguousarray(sample.output_tokens[:, site.model]))
        reach = visits / len(sample)
        distance = np.abs(np.log(np.maximum(reach, 1e-6))[:, None] - np.log(site.reaches)[None, :])
        profile = distance.argmin(axis=1)
        longer = tokens / np.maximum(visits, 1.0) / site.answer_tokens[profile]
        rates.append(sample.requests_per_second * reach * np.where(visits > 0, longer, 0.0))
        profiles.append(profile)
    return np.stack(rates, axis=1), np.stack(profiles, axis=1).astype(np.int64)


def _needed(site: Site, rate: Floats, profile: Integers) -> Integers:
    """GPUs that a stage needs at each level for each vector [LEVELS, V]."""
    needed = np.empty((LEVELS, len(rate)), dtype=np.int64)
    for which in np.unique(profile):
        rows = np.flatnonzero(profile == which)
        # Many vectors share their first thresholds, hence their rate.
        distinct, back = np.unique(rate[rows], return_inverse=True)
        needed[:, rows] = site.table.gpus_needed(int(which), distinct)[:, back]
    return needed


def _worth_a_look(possible: Integers, cost: Floats, quality: QualityOfGrid, floor: float) -> Integers:
    """The cheapest vectors at the floor, and the cheapest for each quality."""
    assured = quality.assured[possible]
    order = possible[np.lexsort((-assured, cost[possible]))]
    good = order[quality.assured[order] >= floor][:_PER_STAIR]
    best_so_far = np.maximum.accumulate(np.concatenate([[-np.inf], quality.assured[order]]))[:-1]
    stairs = order[quality.assured[order] > best_so_far]
    return np.unique(np.concatenate([good, stairs[:: max(1, len(stairs) // 32)]]))


def _estimates(
    grid: ThresholdGrid, vector: Integers, parts: Sequence[Floats], sample: RequestSample, percentile: float
) -> Floats:
    rows = np.linspace(0, len(sample) - 1, min(_SUBSAMPLE, len(sample))).astype(np.int64)
    position = np.unravel_index(vector, grid.shape) if grid.shape else ()
    thresholds = [levels[k] for levels, k in zip(grid.levels, position, strict=True)]
    inputs, outputs, scores = sample.input_tokens[rows], sample.output_tokens[rows], sample.scores[rows]
    latency = np.empty(len(vector))
    for start in range(0, len(vector), 512):
        block = slice(start, start + 512)
        times = path_latency(
            grid.stages, [t[block] for t in thresholds], [p[block] for p in parts], inputs, outputs, scores
        )
        kth = min(len(rows) - 1, int(percentile / 100 * len(rows)))
        latency[block] = np.partition(times, kth, axis=1)[:, kth]
    return latency
