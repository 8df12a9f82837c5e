"""Which replicas carry most on a number of GPUs: an unbounded knapsack over sizes, and what lies behind its entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.compiled import compiled

__all__ = ["best_counts", "most_carried", "replica_mixes"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_FEW_GPUS = 16
"""Up to so many, all multisets of replicas are listed."""
_SHARES = (0.0, 0.25, 0.5, 0.75)
"""Of the GPUs that the second of two shapes gets, beyond."""


def most_carried(
    best: dict[int, Floats], most_gpus: int, least_replicas: int, room: Mapping[int, int] | None = None
) -> Floats:
    """Most rate on f GPUs with at least so many replicas, -inf where they do not fit [F + 1, P, LEVELS]."""
    shape = next(iter(best.values())).shape
    sizes = np.array(sorted(best), dtype=np.int64)
    rates = np.stack([best[size] for size in sizes.tolist()]).reshape(len(sizes), -1)
    if room is not None:
        room_of = np.array([room[size] for size in sizes.tolist()], dtype=np.int64)
        *_, in_room = _tables_in_room(sizes, rates, room_of, most_gpus, least_replicas)
        return np.asarray(in_room[-1].reshape(most_gpus + 1, *shape))
    return _carried_table(sizes, rates, most_gpus, least_replicas).reshape(most_gpus + 1, *shape)


@compiled
def _carried_table(sizes: Integers, rates: Floats, most_gpus: int, least_replicas: int) -> Floats:
    """`most_carried` for replicas of these sizes, ascending, and their rates in any number of cases [S, K]."""
    cases = rates.shape[1]
    table = np.zeros((most_gpus + 1, cases))
    for _ in range(least_replicas):
        layer = np.full((most_gpus + 1, cases), -np.inf)
        for f in range(most_gpus + 1):
            for s in range(len(sizes)):
                if sizes[s] <= f:
                    before, row = table[f - sizes[s]], layer[f]
                    for k in range(cases):
                        row[k] = max(row[k], before[k] + rates[s, k])
        table = layer
    for f in range(1, most_gpus + 1):
        row, less = table[f], table[f - 1]
        for k in range(cases):
            row[k] = max(row[k], less[k])
        for s in range(len(sizes)):
            if sizes[s] <= f:
                before = table[f - sizes[s]]
                for k in range(cases):
                    row[k] = max(row[k], before[k] + rates[s, k])
    return table


def _tables_in_room(
    sizes: Integers, rates: Floats, room: Integers, most_gpus: int, least_replicas: int
) -> Iterator[Floats]:
    """`_carried_table` where replicas of each size and above together hold at most `room` GPUs [S].

    Larger replicas are added first, and each size's table is cut at its room, which does not grow with size.

    Yields:
        Before any and after each size, largest first: most rate with c replicas (the last: or more) on f GPUs
        [least + 1, F + 1, K]. It is one array, changed in place.
    """
    table = np.full((least_replicas + 1, most_gpus + 1, rates.shape[1]), -np.inf)
    table[0] = 0.0
    yield table
    for s in range(len(sizes) - 1, -1, -1):
        _add_size(table, int(sizes[s]), rates[s], min(most_gpus, int(room[s])))
        yield table


@compiled
def _add_size(table: Floats, size: int, rates: Floats, room: int) -> None:
    least, most = len(table) - 1, table.shape[1] - 1
    for f in range(size, room + 1):
        for c in range(least + 1):
            to = min(c + 1, least)
            for k in range(len(rates)):
                table[to, f, k] = max(table[to, f, k], table[c, f - size, k] + rates[k])
    for f in range(room + 1, most + 1):
        table[:, f] = table[:, room]


def _counts_in_room(sizes: Integers, value: Floats, room: Integers, gpus: int, least_replicas: int) -> Integers:
    """The set behind one entry of `_tables_in_room`: replicas of each size [S]."""
    steps = _tables_in_room(sizes, value.reshape(-1, 1), room, gpus, least_replicas)
    table = np.stack([step[..., 0] for step in (layer.copy() for layer in steps)])[::-1]
    counts = np.zeros(len(sizes), dtype=np.int64)
    c, f = least_replicas, gpus
    for s in range(len(sizes)):
        while True:
            f = min(f, int(room[s]))
            if table[s, c, f] == table[s + 1, c, f]:
                break
            befores = [b for b in (c, c - 1) if b >= 0 and min(b + 1, least_replicas) == c]
            c = next(b for b in befores if table[s, b, f - sizes[s]] + value[s] == table[s, c, f])
            f -= int(sizes[s])
            counts[s] += 1
    return counts


def best_counts(
    value: dict[int, float], gpus: int, least_replicas: int, room: Mapping[int, int] | None = None
) -> dict[int, int]:
    """The set behind one entry of `most_carried`: replicas by size.

    Args:
        value: Rate of one replica by its GPUs.
        gpus: Most GPUs; the least number of replicas fits.
        least_replicas: Fewest replicas.
        room: As for `StageTable`.
    """
    sizes = sorted(value)
    of, each = np.array(sizes, dtype=np.int64), np.array([value[size] for size in sizes])
    if room is None:
        counts = _replica_counts(of, each, gpus, least_replicas)
    else:
        counts = _counts_in_room(of, each, np.array([room[size] for size in sizes]), gpus, least_replicas)
    return {size: int(count) for size, count in zip(sizes, counts, strict=True) if count}


@compiled
def _replica_counts(sizes: Integers, value: Floats, gpus: int, least_replicas: int) -> Integers:
    """Replicas of each size in the best set [S]."""
    one = value.copy().reshape(-1, 1)
    fixed = np.empty((least_replicas + 1, gpus + 1))
    fixed[0] = 0.0
    for layer in range(1, least_replicas + 1):
        fixed[layer] = -np.inf
        for s in range(len(sizes)):
            for f in range(sizes[s], gpus + 1):
                fixed[layer, f] = max(fixed[layer, f], fixed[layer - 1, f - sizes[s]] + value[s])
    free = _carried_table(sizes, one, gpus, least_replicas)[:, 0]
    counts = np.zeros(len(sizes), dtype=np.int64)
    remaining = gpus
    # Walk back: idle GPUs first, then the free replicas, then the fixed ones; equal values end the walk soonest.
    while True:
        if remaining > 0 and free[remaining - 1] == free[remaining]:
            remaining -= 1
        elif free[remaining] == fixed[least_replicas, remaining]:
            break
        else:
            last = _last_replica(sizes, value, free, free[remaining], remaining)
            counts[last] += 1
            remaining -= sizes[last]
    for layer in range(least_replicas, 0, -1):
        last = _last_replica(sizes, value, fixed[layer - 1], fixed[layer, remaining], remaining)
        counts[last] += 1
        remaining -= sizes[last]
    return counts


@compiled
def _last_replica(sizes: Integers, value: Floats, before: Floats, total: float, gpus: int) -> int:
    """The smallest size whose replica makes the total out of what the other GPUs carried before it."""
    for s in range(len(sizes)):
        if sizes[s] <= gpus and before[gpus - sizes[s]] + value[s] == total:
            return s
    return -1


@lru_cache(maxsize=1024)
def replica_mixes(sizes: tuple[int, ...], gpus: int) -> Integers:
    """Replicas of each shape that may be put on a number of GPUs, as many as fit.

    All that there are on few GPUs; on many, one or two shapes, and smaller ones on what these leave.

    Args:
        sizes: GPUs of a replica of each shape [R].
        gpus: GPUs.

    Returns:
        Distinct rows of counts; read-only [M, R].
    """
    rows = _every_mix(sizes, gpus) if gpus <= _FEW_GPUS else _pairs(sizes, gpus)
    counts = np.array(sorted(rows), dtype=np.int64).reshape(-1, len(sizes))
    counts.flags.writeable = False
    return counts


def _every_mix(sizes: tuple[int, ...], gpus: int) -> set[tuple[int, ...]]:
    rows: list[tuple[tuple[int, ...], int]] = [((), gpus)]
    for size in sizes:
        rows = [((*row, count), left - count * size) for row, left in rows for count in range(left // size + 1)]
    return {row for row, left in rows if any(row) and left < min(sizes)}


def _pairs(sizes: tuple[int, ...], gpus: int) -> set[tuple[int, ...]]:
    rows = set()
    for first, one in enumerate(sizes):
        for second, other in enumerate(sizes):
            for share in _SHARES if second != first else (0.0,):
                row = [0] * len(sizes)
                row[second] += int(share * gpus) // other
                left = gpus - row[second] * other
                row[first] += left // one
                left -= left // one * one
                for size, place in sorted(((size, place) for place, size in enumerate(sizes)), reverse=True):
                    row[place] += left // size
                    left %= size
                if any(row):
                    rows.add(tuple(row))
    return rows
