"""Allocation for the end-to-end objective: a percentile of the sum along each request's path.

The objective is neither separable nor min-max, but it does not increase with any stage's GPUs, and a
stage's latency changes at few numbers of GPUs only. So up to some thousands of combinations are all
tried (the stage with the most steps takes what the others leave); beyond that, a local search runs
from the stages' least. On few GPUs branch and bound over boxes of allocations then finds the best one and
proves it; on many it only sharpens the lower bound that the result is held against (every stage with all
the GPUs that the others' least leaves), where asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ceiling", "PathAllocation", "PathStage", "allocate_path", "path_bound", "trim_allocation"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_EXHAUSTIVE = 4096
_BLOCK = 256
_MOVES = (1, 2, 4, 8, 16)
_FEW_GPUS = 32
_MOST_BOXES = 200_000
"""Of branch and bound on few GPUs: far more than it takes there."""


@dataclass(frozen=True, eq=False)
class PathStage:
    """One stage's choices; B of them, n requests.

    Attributes:
        gpus: GPUs at which the stage becomes faster, ascending [B].
        seconds: Latency there of each request, 0 for those that do not come by [B, n].
        pool: Index of its pool.
        held: GPUs in pods of at least each of `packing.POD_SIZES` [B, sizes]; None where nodes do not matter.
    """

    gpus: Integers
    seconds: Floats
    pool: int
    held: Integers | None = None


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A limit on a percentile of end-to-end latency.

    Attributes:
        percentile: 0 to 100.
        seconds: The most that it may be.
    """

    percentile: float
    seconds: float


@dataclass(frozen=True, slots=True)
class PathAllocation:
    """An allocation and what is known of its quality.

    Attributes:
        choice: Index into each stage's choices.
        latency: Estimated percentile of end-to-end latency, s.
        bound: No allocation within the limits has less of what is minimised, s or price.
        exhaustive: Whether no allocation is better: all were tried, or ruled out.
    """

    choice: tuple[int, ...]
    latency: float
    bound: float
    exhaustive: bool


def allocate_path(
    stages: Sequence[PathStage],
    limits: Sequence[int],
    *,
    percentile: float,
    prices: Sequence[float] | None = None,
    ceilings: Sequence[Ceiling] = (),
    rooms: Sequence[Sequence[int] | None] = (),
) -> PathAllocation | None:
    """Find the fastest allocation, or the cheapest within ceilings.

    Args:
        stages: At least one.
        limits: GPUs of each pool.
        percentile: Of end-to-end latency.
        prices: Of a GPU of each pool: minimise cost. None: minimise latency.
        ceilings: With prices: what the allocation has to keep, where one can.
        rooms: GPUs that pods of at least each size can hold in each pool; None where nodes do not matter.

    Returns:
        The allocation; None if none is within the limits.
    """
    sizes = [len(stage.gpus) for stage in stages]
    if any(size == 0 for size in sizes):
        return None
    free = int(np.argmax(sizes))
    others = [range(size) for j, size in enumerate(sizes) if j != free]
    combinations = int(np.prod([len(r) for r in others], dtype=np.float64))
    exhaustive = combinations <= _EXHAUSTIVE
    search = _Search(stages, limits, percentile, prices, ceilings, rooms)
    if exhaustive:
        rest = np.array(list(product(*others)), dtype=np.int64).reshape(combinations, len(others))
        choices = search.completed(np.insert(rest, free, 0, axis=1), free)
        if not len(choices):
            return None
        best = choices[search.order(choices)[0]]
    else:
        start = search.start()
        if start is None:
            return None
        best = search.descend(start)
        if sum(limits) <= _FEW_GPUS and not any(room is not None for room in rooms):
            known = np.inf if (search.excess(best[None]) > 0).any() else float(search.value(best[None])[0])
            found = _branch_and_bound(search, sizes, known, tolerance=0.0, evaluations=_MOST_BOXES)
            best = best if found.choice is None else found.choice
            exhaustive = found.complete and (prices is None or found.bound < np.inf)
    latency = float(search.latency(best[None], percentile)[0])
    value = search.value(best[None])[0]
    bound = value if exhaustive else min(value, search.bound())
    return PathAllocation(tuple(int(k) for k in best), latency, float(bound), exhaustive)


def path_bound(
    stages: Sequence[PathStage],
    limits: Sequence[int],
    *,
    percentile: float,
    known: float,
    prices: Sequence[float] | None = None,
    ceilings: Sequence[Ceiling] = (),
    tolerance: float = 0.01,
    evaluations: int = 4096,
) -> float:
    """Bound from below what `allocate_path` minimises, by branch and bound.

    Latency does not increase with GPUs. So in a box of allocations nothing is faster than its upper corner,
    with the stage that has the most steps at all that the lower corner leaves, and nothing cheaper than the
    lower corner with the fewest steps of that stage that keep the ceilings at the upper corner.

    Args:
        stages: At least one.
        limits: GPUs of each pool.
        percentile: Of end-to-end latency.
        known: Value of an allocation at hand.
        prices: As for `allocate_path`.
        ceilings: As for `allocate_path`.
        tolerance: Boxes that are better than `known` by at most this share are not looked into.
        evaluations: About so many boxes are looked at.

    Returns:
        A value that no allocation within the limits undercuts; at most `known`.
    """
    search = _Search(stages, limits, percentile, prices, ceilings)
    sizes = [len(stage.gpus) for stage in stages]
    return _branch_and_bound(search, sizes, known, tolerance=tolerance, evaluations=evaluations).bound


@dataclass(frozen=True, slots=True)
class _Bounded:
    """What branch and bound found.

    Attributes:
        bound: No allocation has less of what is minimised; at most the known value.
        choice: An allocation better than the known one, if there is any.
        complete: Whether the bound is attained: by `choice`, or else by the known value.
    """

    bound: float
    choice: Integers | None
    complete: bool


def _branch_and_bound(
    search: _Search, sizes: Sequence[int], known: float, *, tolerance: float, evaluations: int
) -> _Bounded:
    free = int(np.argmax(sizes))
    low = np.zeros((1, len(sizes)), dtype=np.int64)
    high = (np.array(sizes) - 1)[None]
    bound, best, looked, complete = known, known, 0, tolerance == 0.0
    choice: Integers | None = None
    while len(low):
        values, possible, corners = search.box_bounds(low, high, free)
        looked += len(low)
        single = (np.delete(high - low, free, axis=1) == 0).all(axis=1)
        exact = np.flatnonzero(possible & single)
        if len(exact) and values[exact].min() < best:
            least = exact[values[exact].argmin()]
            best, choice = float(values[least]), corners[least].copy()
        done = possible & (single | (values >= best * (1 - tolerance)))
        if looked >= evaluations:
            complete &= not (possible & ~done).any()
            done = possible
        bound = min([bound, *values[done]])
        rest = possible & ~done
        low, high = _halved(low[rest], high[rest], free)
    return _Bounded(float(bound), choice, complete)


def _halved(low: Integers, high: Integers, free: int) -> tuple[Integers, Integers]:
    """Cut each box in two along its longest side but that of the free stage."""
    if not len(low):
        return low, high
    sides = high - low
    sides[:, free] = -1
    longest = sides.argmax(axis=1)
    rows = np.arange(len(low))
    middle = (low[rows, longest] + high[rows, longest]) // 2
    below, above = high.copy(), low.copy()
    below[rows, longest] = middle
    above[rows, longest] = middle + 1
    return np.concatenate([low, above]), np.concatenate([below, high])


def trim_allocation(
    stages: Sequence[PathStage], choice: Sequence[int], *, percentile: float, slowest: float
) -> tuple[int, ...]:
    """Give up GPUs that hardly matter: step stages down while the percentile stays at most `slowest`.

    Returns:
        The choice with the fewest GPUs found.
    """
    search = _Search(stages, [], percentile, None, ())
    current = np.array(choice, dtype=np.int64)
    while True:
        steps = [current - row for row in np.eye(len(stages), dtype=np.int64) if (current - row >= 0).all()]
        if not steps:
            return tuple(int(k) for k in current)
        candidates = np.array(steps)
        kept = candidates[search.latency(candidates, percentile) <= slowest]
        if not len(kept):
            return tuple(int(k) for k in current)
        current = kept[np.argmin(search.gpus(kept).sum(axis=1))]


class _Search:
    def __init__(
        self,
        stages: Sequence[PathStage],
        limits: Sequence[int],
        percentile: float,
        prices: Sequence[float] | None,
        ceilings: Sequence[Ceiling],
        rooms: Sequence[Sequence[int] | None] = (),
    ) -> None:
        self._stages = stages
        self._rooms = [(pool, np.array(room)) for pool, room in enumerate(rooms) if room is not None]
        self._limits = np.array(limits, dtype=np.int64)
        self._percentile = percentile
        self._prices = prices
        self._ceilings = ceilings
        self._in_pool = np.array([[stage.pool == pool for stage in stages] for pool in range(len(limits))], dtype=bool)

    def gpus(self, choices: Integers) -> Integers:
        """GPUs of each stage [A, stages]."""
        return np.stack([stage.gpus[choices[:, j]] for j, stage in enumerate(self._stages)], axis=1)

    def within(self, choices: Integers) -> NDArray[np.bool_]:
        """Whether the pools hold each allocation [A]."""
        used = self.gpus(choices) @ self._in_pool.T.astype(np.int64)
        fits = np.asarray((used <= self._limits).all(axis=1))
        for pool, room in self._rooms:
            held = [
                stage.held[choices[:, j]]
                for j, stage in enumerate(self._stages)
                if stage.pool == pool and stage.held is not None
            ]
            if held:
                fits &= (np.sum(held, axis=0) <= room).all(axis=1)
        return fits

    def latency(self, choices: Integers, percentile: float) -> Floats:
        """Percentile of the path's latency, s [A]."""
        requests = self._stages[0].seconds.shape[1]
        kth = min(requests - 1, int(percentile / 100 * requests))
        result = np.empty(len(choices))
        for start in range(0, len(choices), _BLOCK):
            block = choices[start : start + _BLOCK]
            total = self._stages[0].seconds[block[:, 0]].copy()
            for j, stage in enumerate(self._stages[1:], start=1):
                total += stage.seconds[block[:, j]]
            result[start : start + _BLOCK] = np.partition(total, kth, axis=1)[:, kth]
        return result

    def value(self, choices: Integers) -> Floats:
        """What is minimised: the percentile, or the price [A]."""
        if self._prices is None:
            return self.latency(choices, self._percentile)
        cost: Floats = self.gpus(choices) @ np.array([self._prices[stage.pool] for stage in self._stages])
        return cost

    def excess(self, choices: Integers) -> Floats:
        """How far ceilings are exceeded, as a share of the ceiling; 0 where all are kept [A]."""
        over = np.zeros(len(choices))
        for ceiling in self._ceilings:
            over = np.maximum(over, self.latency(choices, ceiling.percentile) / ceiling.seconds - 1)
        return over

    def order(self, choices: Integers) -> Integers:
        """Choices from best to worst."""
        latency = self.latency(choices, self._percentile)
        if self._prices is None:
            return np.lexsort((self.gpus(choices).sum(axis=1), latency))
        return np.lexsort((latency, self.value(choices), self.excess(choices)))

    def completed(self, choices: Integers, free: int) -> Integers:
        """Set the free stage of each choice to its best, and drop what does not fit."""
        stage = self._stages[free]
        others = self._in_pool[stage.pool].copy()
        others[free] = False
        left = self._limits[stage.pool] - self.gpus(choices)[:, others].sum(axis=1)
        most = np.searchsorted(stage.gpus, left, side="right") - 1
        choices, most = choices[most >= 0], most[most >= 0]
        choices[:, free] = most
        fits = self.within(choices)
        # On partly used nodes fewer GPUs may fit where more do not.
        while self._rooms and (again := ~fits & (most > 0)).any():
            most = most - again
            choices[:, free] = most
            fits = self.within(choices)
        choices, most = choices[fits], most[fits]
        if self._prices is None or not len(choices):
            return choices
        # Cheapest: the fewest GPUs of the free stage that keep the ceilings; latency does not increase with them.
        low, high = np.zeros(len(choices), dtype=np.int64), most.copy()
        while (low < high).any():
            middle = (low + high) // 2
            choices[:, free] = middle
            kept = self.excess(choices) <= 0
            high = np.where(kept, middle, high)
            low = np.where(kept, low, np.minimum(middle + 1, high))
        choices[:, free] = low
        return choices

    def box_bounds(self, low: Integers, high: Integers, free: int) -> tuple[Floats, NDArray[np.bool_], Integers]:
        """Bound what is minimised in boxes of allocations.

        Returns:
            The bounds, whether a box holds any allocation that may be taken, and the allocation of the bound: it
            may be taken where the box is a single one but for the free stage.
        """
        corner = low.copy()
        corner[:, free] = 0
        possible = self.within(corner)
        stage = self._stages[free]
        others = self._in_pool[stage.pool].copy()
        others[free] = False
        left = self._limits[stage.pool] - self.gpus(corner)[:, others].sum(axis=1)
        most = np.maximum(np.searchsorted(stage.gpus, left, side="right") - 1, 0)
        upper = high.copy()
        upper[:, free] = most
        if self._prices is None:
            return self.latency(upper, self._percentile), possible, upper
        possible &= self.excess(upper) <= 0
        first, last = np.zeros(len(low), dtype=np.int64), most.copy()
        while (first < last).any():
            middle = (first + last) // 2
            upper[:, free] = middle
            kept = self.excess(upper) <= 0
            last = np.where(kept, middle, last)
            first = np.where(kept, first, np.minimum(middle + 1, last))
        corner[:, free] = first
        return self.value(corner), possible, corner

    def start(self) -> Integers | None:
        """Every stage at its least, then GPUs one step at a time to the stage that gains the path most."""
        current = np.zeros(len(self._stages), dtype=np.int64)
        if not self.within(current[None])[0]:
            return None
        if self._prices is not None:
            return current
        step = 1 + max(len(stage.gpus) for stage in self._stages) // 64
        sizes = np.array([len(stage.gpus) for stage in self._stages])
        while True:
            ups = np.minimum(current + step * np.eye(len(self._stages), dtype=np.int64), sizes - 1)
            ups = ups[(ups != current).any(axis=1)]
            ups = ups[self.within(ups)] if len(ups) else ups
            if not len(ups):
                return current
            current = ups[np.argmin(self.latency(ups, self._percentile))]

    def descend(self, current: Integers) -> Integers:
        """Move steps from stage to stage, add and remove them, while that helps."""
        sizes = np.array([len(stage.gpus) for stage in self._stages])
        unit = np.eye(len(self._stages), dtype=np.int64)
        directions = [*unit, *-unit]
        directions += [a - b for a in unit for b in unit if (a != b).any()]
        moves = np.array([direction * size for size in _MOVES for direction in directions])
        while True:
            around = np.clip(current + moves, 0, sizes - 1)
            around = np.unique(np.vstack([current, around]), axis=0)
            around = around[self.within(around)]
            best = around[self.order(around)[0]]
            if (best == current).all():
                return current
            if self.order(np.stack([current, best]))[0] == 0:
                return current
            current = best

    def bound(self) -> float:
        """A lower bound: the price of every stage's least, or the latency if each had all that the others leave."""
        least = np.zeros((1, len(self._stages)), dtype=np.int64)
        if self._prices is not None:
            return float(self.value(least)[0])
        most = least.copy()
        for j, stage in enumerate(self._stages):
            others = self._in_pool[stage.pool].copy()
            others[j] = False
            left = self._limits[stage.pool] - self.gpus(least)[0, others].sum()
            most[0, j] = max(0, int(np.searchsorted(stage.gpus, left, side="right")) - 1)
        return float(self.latency(most, self._percentile)[0])
