"""The paper's allocation MILP, in PuLP: certifies the exact search and carries side constraints.

::

    min L
    s.t.  sum_f x[i,f] = 1                       for every stage i
          sum_(i in pool) sum_f f x[i,f] <= N    for every pool (the paper has one, and equality)
          L >= sum_f l_i(f) x[i,f]               for every stage i
          sum_f price f x[i,f] <= budget         if there is one
          sum_(i in pool) sum_f held[i,f,s] x[i,f] <= room[s]    for every pod size s, where nodes are partly used
          x binary; no x[i,f] where f GPUs cannot serve stage i
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pulp
from numpy.typing import NDArray

__all__ = ["MilpResult", "SolverName", "solve_allocation"]

SolverName: TypeAlias = Literal["CBC", "HiGHS"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class MilpResult:
    """What the solver said.

    Attributes:
        status: ``Failed`` is the solver's own failure (missing binary, crash), not a verdict.
        gpus: One number a stage; empty without a solution.
        latency: Of the worst stage; infinite without a solution.
        detail: The solver's words where it failed.
    """

    status: Literal["Optimal", "Infeasible", "TimedOut", "Failed"]
    gpus: tuple[int, ...] = ()
    latency: float = float("inf")
    detail: str = ""


def solve_allocation(
    tables: Sequence[Floats],
    limits: Sequence[int],
    pool_of: Sequence[int] | None = None,
    *,
    prices: Sequence[float] | None = None,
    budget: float | None = None,
    held: Sequence[Integers] | None = None,
    rooms: Sequence[Sequence[int] | None] = (),
    deadline_seconds: float = 10.0,
    solver: SolverName = "CBC",
) -> MilpResult:
    """Solve the min-max allocation.

    Columns that a smaller number of GPUs equals or beats are left out: no solution needs them, unless nodes matter.

    Args:
        tables: Latency of each stage on f GPUs at index f (from 0); infinite where it cannot run.
        limits: GPUs of each pool.
        pool_of: Pool of each stage; all in pool 0 where None.
        prices: Price of a GPU hour of each pool; needed with `budget`.
        budget: Most that all GPUs may cost for an hour.
        held: What each stage on f GPUs holds in pods of at least each of `packing.POD_SIZES` [F + 1, sizes].
        rooms: What such pods can hold in each pool; None where nodes do not matter.
        deadline_seconds: Time given to the solver, which it keeps itself.
        solver: The CBC that comes with PuLP, or HiGHS (`pip install 'cascadia[highs]'`).
    """
    pools = [0] * len(tables) if pool_of is None else list(pool_of)
    columns = [
        _columns(table, limits[pool], every=any(room is not None for room in rooms))
        for table, pool in zip(tables, pools, strict=True)
    ]
    if not all(columns):
        return MilpResult("Infeasible")
    scale = min(latency for column in columns for _, latency in column) or 1.0
    problem = pulp.LpProblem("allocation", pulp.LpMinimize)
    bottleneck = problem.add_variable("bottleneck", lowBound=0)
    choose = [[problem.add_variable(f"x_{i}_{f}", cat="Binary") for f, _ in column] for i, column in enumerate(columns)]
    gpus = [
        pulp.lpSum(f * x for (f, _), x in zip(column, xs, strict=True))
        for column, xs in zip(columns, choose, strict=True)
    ]
    problem += bottleneck
    for column, xs in zip(columns, choose, strict=True):
        problem += pulp.lpSum(xs) == 1
        problem += bottleneck >= pulp.lpSum(latency / scale * x for (_, latency), x in zip(column, xs, strict=True))
    for pool, limit in enumerate(limits):
        problem += pulp.lpSum(g for g, p in zip(gpus, pools, strict=True) if p == pool) <= limit
    if budget is not None:
        if prices is None:
            raise ValueError("a budget needs prices")
        problem += pulp.lpSum(prices[p] * g for g, p in zip(gpus, pools, strict=True)) <= budget
    for pool, room in enumerate(rooms):
        if room is None or held is None:
            continue
        for size, most in enumerate(room):
            taken = [
                int(held[i][f, size]) * x
                for i, (column, xs) in enumerate(zip(columns, choose, strict=True))
                if pools[i] == pool
                for (f, _), x in zip(column, xs, strict=True)
            ]
            problem += pulp.lpSum(taken) <= most
    return _solved(problem, columns, choose, deadline_seconds, solver)


def _solved(
    problem: pulp.LpProblem,
    columns: Sequence[Sequence[tuple[int, float]]],
    choose: Sequence[Sequence[pulp.LpVariable]],
    seconds: float,
    solver: SolverName,
) -> MilpResult:
    try:
        if solver == "HiGHS":
            chosen = pulp.HiGHS(msg=False, threads=1, timeLimit=seconds, gapRel=0, gapAbs=0)
        else:
            # The CBC that comes with PuLP, by its path: the class of that name warns of PuLP 4. It keeps the time
            # limit itself, so that no process is left behind. No `threads`: with `threads=1` CBC hands the work to
            # a thread of its own, now and then misses its end, and sleeps until the time limit.
            chosen = pulp.COIN_CMD(
                path=pulp.PULP_CBC_CMD.pulp_cbc_path, msg=False, timeLimit=seconds, gapRel=0, gapAbs=0
            )
        problem.solve(chosen)
    except (pulp.PulpError, OSError, ImportError) as error:
        return MilpResult("Failed", detail=str(error))
    return _result(problem, columns, choose)


def _columns(table: Floats, limit: int, *, every: bool) -> list[tuple[int, float]]:
    """(GPUs, latency) that no smaller number of GPUs equals or beats, or every one."""
    reachable = table[: limit + 1]
    if every:
        return [(int(f), float(reachable[f])) for f in np.flatnonzero(np.isfinite(reachable))]
    before = np.concatenate([[np.inf], np.minimum.accumulate(reachable)[:-1]])
    return [(int(f), float(reachable[f])) for f in np.flatnonzero(reachable < before)]


def _result(
    problem: pulp.LpProblem, columns: Sequence[Sequence[tuple[int, float]]], choose: Sequence[Sequence[pulp.LpVariable]]
) -> MilpResult:
    if problem.status == pulp.LpStatusInfeasible:
        return MilpResult("Infeasible")
    chosen = [
        [pair for pair, x in zip(c, xs, strict=True) if (x.value() or 0) > 0.5]
        for c, xs in zip(columns, choose, strict=True)
    ]
    solved = all(len(pairs) == 1 for pairs in chosen)
    if not solved:
        stopped = problem.sol_status == pulp.LpSolutionNoSolutionFound
        return MilpResult("TimedOut" if stopped else "Failed", detail=pulp.LpStatus[problem.status])
    gpus = tuple(pairs[0][0] for pairs in chosen)
    latency = max(pairs[0][1] for pairs in chosen)
    # CBC reports "optimal" for a feasible solution at the time limit too; the solution's status tells them apart.
    proven = problem.status == pulp.LpStatusOptimal and problem.sol_status == pulp.LpSolutionOptimal
    return MilpResult("Optimal" if proven else "TimedOut", gpus, latency)
