"""Exact min-max allocation of GPUs to stages.

Given each stage's latency on f GPUs, find the allocation with the least worst stage (the paper's inner
problem, with "at most N GPUs" for "exactly N"). Latencies do not increase with GPUs once each entry is
replaced by the best one on no more GPUs, so whether a latency T can be had is a matter of counting the
GPUs that each stage needs for it, and the least T is found by bisection over the attained values:
O(C log N log CN), and no other allocation is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Allocation", "least_gpus", "max_stage_allocation"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Allocation:
    """GPUs of each stage.

    Attributes:
        gpus: One number a stage.
        latency: Latency of the worst stage, in the tables' unit.
    """

    gpus: tuple[int, ...]
    latency: float


def max_stage_allocation(
    tables: Sequence[Floats], limits: Sequence[int], pool_of: Sequence[int] | None = None
) -> Allocation | None:
    """Return the allocation whose slowest stage is fastest, with the fewest GPUs that reach it.

    Args:
        tables: Latency of each stage on f GPUs at index f (from 0); infinite where it cannot run.
        limits: GPUs of each pool.
        pool_of: Pool of each stage; all in pool 0 where None.

    Returns:
        The allocation; None if no allocation within the limits lets every stage run.
    """
    monotone = [np.minimum.accumulate(table) for table in tables]
    pools = [0] * len(tables) if pool_of is None else list(pool_of)
    attained = np.unique(np.concatenate([table[np.isfinite(table)] for table in monotone]))
    low, high = 0, len(attained)
    while low < high:
        middle = (low + high) // 2
        if _fits(least_gpus(monotone, attained[middle]), limits, pools):
            high = middle
        else:
            low = middle + 1
    if low == len(attained):
        return None
    gpus = least_gpus(monotone, attained[low])
    return Allocation(tuple(gpus), max(float(table[f]) for table, f in zip(monotone, gpus, strict=True)))


def least_gpus(tables: Sequence[Floats], latency: float) -> list[int]:
    """Fewest GPUs on which each stage is at most this slow; the table's length where none is enough.

    Args:
        tables: Non-increasing latencies by number of GPUs.
        latency: The limit.
    """
    return [int(np.searchsorted(-table, -latency, side="left")) for table in tables]


def _fits(gpus: Sequence[int], limits: Sequence[int], pools: Sequence[int]) -> bool:
    used = [0] * len(limits)
    for count, pool in zip(gpus, pools, strict=True):
        used[pool] += count
    return all(count <= limit for count, limit in zip(used, limits, strict=True))
