"""The best replicas of a stage on any number of GPUs.

Replicas of a stage may differ in shape. Load is split so that all of them are equally slow; then a set
of replicas carries, at a latency T, the sum of the rates at which each of them alone is T slow. So the
best set on f GPUs at latency T is an unbounded knapsack over shapes (GPUs against rate), solved for all
f and for a ladder of latencies at once, and the least latency at a given rate is read off by
interpolation. It does not increase with f.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.compiled import compiled
from cascadia_solver.knapsack import best_counts, most_carried, replica_mixes
from cascadia_solver.lengths import LengthProfile
from cascadia_solver.operating_point import LoadCurves, load_curves
from cascadia_solver.shapes import ReplicaOption

__all__ = ["LEVELS", "ReplicaSet", "StageTable", "latency_levels", "rates_at", "useful_options"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEVELS = 96
_SLOWEST = 1.05
"""Levels end a little above the slowest operating point."""
_IDLE = 0.25
"""A group of replicas that gets less than this share of the mean load per GPU is left out …"""
_LITTLE_SLOWER = 1.02
"""… if that makes the others slower by no more than this."""


@dataclass(frozen=True, slots=True)
class _Split:
    """Rate of one replica by option index, their common latency s, and the GPUs of all."""

    rates: Mapping[int, float]
    latency: float
    gpus: int


@dataclass(frozen=True, eq=False)
class ReplicaSet:
    """Replicas of one stage at one load.

    Attributes:
        options: Shape of each group.
        counts: Replicas of each group, at least 1.
        rates: Arrival rate of one replica of each group, 1/s.
        latency: Percentile of the stage's latency, s, the same for all of them.
        parts: Wait s, prefill s/token, decode s/token of a request, averaged over replicas by rate [3].
        capacity: Highest rate that is planned for on these replicas, 1/s.
    """

    options: tuple[ReplicaOption, ...]
    counts: tuple[int, ...]
    rates: tuple[float, ...]
    latency: float
    parts: Floats
    capacity: float

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return sum(option.gpus * count for option, count in zip(self.options, self.counts, strict=True))


def useful_options(options: Sequence[ReplicaOption], profile: LengthProfile, percentile: float) -> list[ReplicaOption]:
    """Drop shapes that others on no more GPUs beat at every latency.

    A shape on g GPUs goes if another on g GPUs, or two of g/2, carry at least its rate at every latency.
    """
    curves = load_curves([option.step for option in options], [profile], percentile)
    rates = rates_at(curves, latency_levels([curves]))[0]
    kept: list[int] = []
    best: dict[int, Floats] = {}
    for gpus in sorted({option.gpus for option in options}):
        rest = 2 * best[gpus // 2] if gpus // 2 in best and gpus % 2 == 0 else np.zeros(LEVELS)
        same = [index for index, option in enumerate(options) if option.gpus == gpus]
        for index in sorted(same, key=lambda i: -float(rates[i].sum())):
            if (rates[index] > rest * (1 + 1e-9)).any():
                kept.append(index)
                rest = np.maximum(rest, rates[index])
        best[gpus] = rest
    return [options[index] for index in sorted(kept)]


def latency_levels(curves: Sequence[LoadCurves]) -> Floats:
    """Geometric ladder of latencies over everything that these replicas can be, s [LEVELS]."""
    fastest = min(float(c.latency.min()) for c in curves)
    slowest = max(float(c.latency.max()) for c in curves)
    return np.geomspace(fastest, slowest * _SLOWEST, LEVELS)


def rates_at(curves: LoadCurves, levels: Floats) -> Floats:
    """Rate at which each replica is as slow as each level; 0 below its idle latency [P, R, LEVELS]."""
    return _rates_at(levels, curves.latency, curves.rate)


@compiled
def _rates_at(levels: Floats, latency: Floats, rate: Floats) -> Floats:
    profiles, replicas, _ = rate.shape
    rates = np.zeros((profiles, replicas, len(levels)))
    for p in range(profiles):
        for r in range(replicas):
            for level in range(len(levels)):
                if levels[level] >= latency[p, r, 0]:
                    rates[p, r, level] = _interpolated(levels[level], latency[p, r], rate[p, r])
    return rates


@compiled
def _parts_at(shape: Integers, rates: Floats, rate: Floats, parts: Floats) -> Floats:
    """Parts of the latency of one shape at each level [P, LEVELS, 3].

    Args:
        shape: Which one [P, LEVELS].
        rates: Of every shape at every level [P, R, LEVELS].
        rate: See `LoadCurves`.
        parts: See `LoadCurves` [3, P, R, LOADS].
    """
    profiles, levels = shape.shape
    found = np.empty((profiles, levels, 3))
    for p in range(profiles):
        for level in range(levels):
            r = shape[p, level]
            for k in range(3):
                found[p, level, k] = _interpolated(rates[p, r, level], rate[p, r], parts[k, p, r])
    return found


@compiled
def _interpolated(x: float, xs: Floats, ys: Floats) -> float:
    """What `numpy.interp` says, to the last bit, of one number and few ascending ones."""
    low, high = 0, len(xs)
    while high - low > 1:
        middle = (low + high) // 2
        if xs[middle] <= x:
            low = middle
        else:
            high = middle
    y: float = ys[low]
    if xs[low] < x and high < len(xs):
        y += (ys[high] - y) / (xs[high] - xs[low]) * (x - xs[low])
    return y


class StageTable:
    """Rates that a stage carries by number of GPUs and latency, under P length profiles.

    Args:
        options: Shapes that a replica may have.
        curves: Their operating points.
        levels: Ladder of latencies, s [LEVELS].
        most_gpus: Largest number of GPUs tabulated.
        least_replicas: Fewest replicas, at least 1.
        room: Most GPUs that replicas of at least so many GPUs can hold, by that number, as partly used nodes
            allow it; None for any.
    """

    def __init__(
        self,
        options: Sequence[ReplicaOption],
        curves: LoadCurves,
        levels: Floats,
        most_gpus: int,
        least_replicas: int,
        room: Mapping[int, int] | None = None,
    ) -> None:
        self.options = tuple(options)
        self.levels = levels
        self._log_levels = np.log(levels)
        self._curves = curves
        self._parts = np.ascontiguousarray(np.moveaxis(curves.parts, -1, 0))
        self._rates = rates_at(curves, levels)
        self._least_replicas = max(1, least_replicas)
        by_gpus: dict[int, Floats] = {}
        for index, option in enumerate(options):
            rate = self._rates[:, index]
            by_gpus[option.gpus] = np.maximum(by_gpus[option.gpus], rate) if option.gpus in by_gpus else rate
        self._best = by_gpus
        self._room = None if room is None else {gpus: room[gpus] for gpus in by_gpus}
        self.carried = most_carried(by_gpus, most_gpus, self._least_replicas, self._room)
        self.parts = self._typical_parts()
        self._blocks: dict[int, tuple[Floats, float, float]] = {}

    def gpus_needed(self, profile: int, rates: Floats) -> Integers:
        """Fewest GPUs that carry each rate at each latency; one more than tabulated where none do.

        Args:
            profile: Which length profile.
            rates: Arrival rates at the stage, 1/s [m].

        Returns:
            [LEVELS, m]
        """
        if profile not in self._blocks:
            self._blocks[profile] = _blocks(self.carried[:, profile, :].T)
        blocks, width, most = self._blocks[profile]
        offsets = width * np.arange(LEVELS)[:, None]
        found = np.searchsorted(blocks, np.minimum(rates, most + 0.5)[None, :] + offsets, side="left")
        return np.asarray(found - len(self.carried) * np.arange(LEVELS)[:, None], dtype=np.int64)

    def latency_by_gpus(self, profile: int, rate: float) -> Floats:
        """Latency of the best replicas at a rate, by number of GPUs from 0; infinite where too few [F + 1]."""
        carried = self.carried[:, profile, :]
        enough = carried >= rate
        first = enough.argmax(axis=1)
        below = np.maximum(first - 1, 0)
        rows = np.arange(len(carried))
        with np.errstate(invalid="ignore", divide="ignore"):
            share = (rate - carried[rows, below]) / (carried[rows, first] - carried[rows, below])
        share = np.where((first > 0) & np.isfinite(share), np.clip(share, 0.0, 1.0), 1.0)
        log = self._log_levels
        latency = np.exp(log[below] + share * (log[first] - log[below]))
        return np.minimum.accumulate(np.where(enough.any(axis=1), latency, np.inf))

    def replicas(self, profile: int, rate: float, gpus: int) -> ReplicaSet:
        """The best replicas on at most so many GPUs at a rate, and how load is split over them.

        Raises:
            ValueError: The rate is beyond what these GPUs carry.
        """
        carried = self.carried[gpus, profile]
        if not carried[-1] >= rate:
            raise ValueError(f"{gpus} GPUs carry {carried[-1]:.3g} requests/s, not {rate:.3g}")
        counts = self._chosen(profile, int(np.searchsorted(carried, rate, side="left")), gpus)
        split = self._split(profile, rate, counts)
        busy = self._busy(rate, counts, split)
        if busy and len(busy) < len(counts) and sum(busy.values()) >= self._least_replicas:
            # A group that hardly takes load would only hold GPUs, unless the others are at their limit.
            without = self._split(profile, rate, busy)
            if without.latency <= split.latency * _LITTLE_SLOWER:
                counts, split = busy, without
        return self._set(profile, counts, split)

    def alternatives(self, profile: int, rate: float, gpus: int, most: int) -> list[ReplicaSet]:
        """Sets on at most so many GPUs that carry a rate, fastest first by the closed form.

        Of any shapes where GPUs are few, else of one or two shapes (and one more to fill what these leave).

        Args:
            profile: Which length profile.
            rate: Arrival rate at the stage, 1/s.
            gpus: Most GPUs; sets that leave as many idle as a smallest replica takes are left out.
            most: Number of sets.
        """
        counts = replica_mixes(tuple(option.gpus for option in self.options), gpus)
        kept = counts.sum(axis=1) >= self._least_replicas
        for size, room in (self._room or {}).items():
            sizes = np.array([option.gpus for option in self.options])
            kept &= counts @ np.where(sizes >= size, sizes, 0) <= room
        counts = counts[kept]
        together = counts @ self._rates[profile]
        carry = np.flatnonzero(together[:, -1] >= rate)
        level = (together[carry] < rate).sum(axis=1)
        below = np.maximum(level - 1, 0)
        low, high = together[carry, below], together[carry, level]
        share = np.where(level > 0, (rate - low) / np.maximum(high - low, 1e-12), 0.0)
        found: list[ReplicaSet] = []
        for row in counts[carry[np.argsort(below + share, kind="stable")]]:
            mix = {int(k): int(row[k]) for k in np.flatnonzero(row)}
            split = self._split(profile, rate, mix)
            if len(self._busy(rate, mix, split)) == len(mix):
                found.append(self._set(profile, mix, split))
            if len(found) == most:
                break
        return found

    def _busy(self, rate: float, counts: Mapping[int, int], split: _Split) -> dict[int, int]:
        """The groups of replicas that get a fair part of the load for their GPUs."""
        return {
            option: count
            for option, count in counts.items()
            if split.rates[option] * split.gpus >= _IDLE * rate * self.options[option].gpus
        }

    def _set(self, profile: int, counts: Mapping[int, int], split: _Split) -> ReplicaSet:
        parts = np.array([self._parts_at(profile, option, split.rates[option]) for option in counts])
        weight = np.array([max(split.rates[option], 1e-12) * count for option, count in counts.items()])
        return ReplicaSet(
            options=tuple(self.options[option] for option in counts),
            counts=tuple(counts.values()),
            rates=tuple(split.rates[option] for option in counts),
            latency=split.latency,
            parts=weight @ parts / weight.sum(),
            capacity=float(sum(n * self._curves.rate[profile, option, -1] for option, n in counts.items())),
        )

    def _split(self, profile: int, rate: float, counts: Mapping[int, int]) -> _Split:
        """Split a rate over replicas so that all are equally slow."""
        own = {option: self._rates[profile, option] for option in counts}
        together = np.sum([count * own[option] for option, count in counts.items()], axis=0)
        ascending = np.maximum.accumulate(together + 1e-12 * np.arange(len(together)))
        latency = _interpolated(rate, ascending, self._log_levels)
        rates = {option: _interpolated(latency, self._log_levels, curve) for option, curve in own.items()}
        total = sum(rates[option] * count for option, count in counts.items())
        scale = rate / total if total > 0 else 0.0
        gpus = sum(self.options[option].gpus * count for option, count in counts.items())
        return _Split({option: r * scale for option, r in rates.items()}, float(np.exp(latency)), gpus)

    def _chosen(self, profile: int, level: int, gpus: int) -> dict[int, int]:
        """Number of replicas of each option in the best set at one level."""
        value = {size: float(rates[profile, level]) for size, rates in self._best.items()}
        option_of: dict[int, int] = {}
        for index, option in enumerate(self.options):
            best = option_of.get(option.gpus)
            if best is None or self._rates[profile, index, level] > self._rates[profile, best, level]:
                option_of[option.gpus] = index
        counts = best_counts(value, gpus, self._least_replicas, self._room)
        return {option_of[size]: count for size, count in counts.items()}

    def _parts_at(self, profile: int, option: int, rate: float) -> list[float]:
        curve = self._curves.rate[profile, option]
        return [_interpolated(rate, curve, parts) for parts in self._parts[:, profile, option]]

    def _typical_parts(self) -> Floats:
        """Parts of a request's latency at each level, of the shape that carries most per GPU [P, LEVELS, 3]."""
        gpus = np.array([option.gpus for option in self.options])
        density = self._rates / gpus[None, :, None]
        best = density.argmax(axis=1)
        return _parts_at(best, self._rates, self._curves.rate, self._parts)


def _blocks(carried: Floats) -> tuple[Floats, float, float]:
    """Rates by level and GPUs in one ascending array, so that one search serves all levels.

    Args:
        carried: [LEVELS, F + 1], ascending along the last axis.

    Returns:
        The array, the distance from one level's block to the next, and the highest rate of all.
    """
    rates = np.where(np.isfinite(carried), carried, -1.0)
    most = float(rates.max())
    width = most + 2.0
    return (rates + width * np.arange(len(rates))[:, None]).ravel(), width, most
