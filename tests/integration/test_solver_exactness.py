"""Allocation on thousands of random instances: exact search, MILP and brute force agree, several pools included."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_solver.allocation import Allocation, max_stage_allocation
from cascadia_solver.milp import SolverName, solve_allocation
from cascadia_solver.packing import POD_SIZES, gpus_by_pod_size, room_on
from cascadia_solver.path_allocation import Ceiling, PathStage, allocate_path

Instance = tuple[list[np.ndarray], list[int], list[int]]


@st.composite
def instances(draw: st.DrawFn, most_stages: int, most_gpus: int) -> Instance:
    """Latency tables as they come (infinite at first, in steps, not always monotone), limits, pool of each stage."""
    random = np.random.default_rng(draw(st.integers(0, 10**9)))
    stages, pools = draw(st.integers(1, most_stages)), draw(st.integers(1, 3))
    limits = [draw(st.integers(1, most_gpus)) for _ in range(pools)]
    of = [draw(st.integers(0, pools - 1)) for _ in range(stages)]
    tables = []
    for pool in of:
        gpus = np.arange(limits[pool] + 1)
        table = np.round(random.uniform(5, 50) / (1 + gpus) ** random.uniform(0.2, 1.2), 2)
        table += np.round(random.choice([0, 0.5], len(gpus)), 2)
        table[: int(random.integers(1, 5))] = np.inf
        tables.append(table)
    return tables, limits, of


@settings(max_examples=3000, deadline=None)
@given(instance=instances(3, 12))
def test_max_stage_equals_brute_force(instance: Instance) -> None:
    tables, limits, of = instance
    best: Allocation | None = None
    for gpus in product(*(range(len(table)) for table in tables)):
        used = [sum(g for g, p in zip(gpus, of, strict=True) if p == pool) for pool in range(len(limits))]
        latency = max(float(table[g]) for table, g in zip(tables, gpus, strict=True))
        if any(u > limit for u, limit in zip(used, limits, strict=True)) or not np.isfinite(latency):
            continue
        if best is None or (latency, sum(gpus)) < (best.latency, sum(best.gpus)):
            best = Allocation(gpus, latency)
    assert max_stage_allocation(tables, limits, of) == best


@pytest.mark.parametrize("solver", ["CBC", "HiGHS"])
def test_the_milp_agrees_with_the_exact_search(solver: SolverName) -> None:
    if solver == "HiGHS":
        pytest.importorskip("highspy")

    @settings(max_examples=1000, deadline=None)
    @given(instance=instances(4, 48))
    def agree(instance: Instance) -> None:
        tables, limits, of = instance
        exact = max_stage_allocation(tables, limits, of)
        result = solve_allocation(tables, limits, of, solver=solver)
        if exact is None:
            assert result.status == "Infeasible"
            return
        assert result.status == "Optimal"
        assert result.latency == pytest.approx(exact.latency)
        assert max(t[g] for t, g in zip(tables, result.gpus, strict=True)) == result.latency
        for pool, limit in enumerate(limits):
            assert sum(g for g, p in zip(result.gpus, of, strict=True) if p == pool) <= limit

    agree()


@settings(max_examples=300, deadline=None)
@given(
    instance=instances(3, 9),
    free=st.lists(st.integers(0, 8), min_size=1, max_size=3),
    widest=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=3, max_size=3),
)
def test_the_milp_keeps_to_partly_used_nodes(instance: Instance, free: list[int], widest: list[int]) -> None:
    tables, limits, of = instance
    # Stage i takes as many of its widest replicas as fit into f GPUs, and smaller ones for the rest.
    held = []
    for table, size in zip(tables, widest, strict=False):
        rows = []
        for gpus in range(len(table)):
            rest, replicas, kind = gpus, [], size
            while rest:
                replicas.append((kind, rest // kind))
                rest, kind = rest % kind, kind // 2
            rows.append(gpus_by_pod_size(replicas, 8))
        held.append(np.stack(rows))
    room = room_on(free)
    rooms = [tuple(int(most) for most in room), *(None for _ in limits[1:])]
    best = np.inf
    for gpus in product(*(range(len(table)) for table in tables)):
        used = [sum(g for g, p in zip(gpus, of, strict=True) if p == pool) for pool in range(len(limits))]
        inside = sum(
            (rows[g] for rows, g, p in zip(held, gpus, of, strict=True) if p == 0),
            start=np.zeros(len(POD_SIZES), dtype=np.int64),
        )
        if all(u <= limit for u, limit in zip(used, limits, strict=True)) and (inside <= room).all():
            best = min(best, max(float(table[g]) for table, g in zip(tables, gpus, strict=True)))
    result = solve_allocation(tables, limits, of, held=held, rooms=rooms)
    assert result.status == ("Optimal" if np.isfinite(best) else "Infeasible")
    assert not np.isfinite(best) or result.latency == pytest.approx(best)


@st.composite
def paths(draw: st.DrawFn) -> tuple[list[PathStage], list[int]]:
    """Up to four stages on up to 32 GPUs in one or two pools; latencies fall with GPUs, fewer requests come by."""
    random = np.random.default_rng(draw(st.integers(0, 10**9)))
    count, pools = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    limits = [draw(st.integers(2, 32))] if pools == 1 else [draw(st.integers(2, 20)), draw(st.integers(2, 12))]
    steps = {1: 32, 2: 24, 3: 20, 4: 18}[count]
    visits, stages = np.ones(100, dtype=bool), []
    for _ in range(count):
        gpus = np.unique(random.integers(1, 33, steps))
        scale = np.minimum.accumulate(random.uniform(2, 20) / gpus ** random.uniform(0.3, 1.0))
        seconds = scale[:, None] * random.lognormal(0, 0.5, 100)[None, :] * visits
        stages.append(PathStage(gpus, seconds, int(random.integers(0, pools))))
        visits = visits & (random.random(100) < 0.6)
    return stages, limits


def everything(stages: list[PathStage], limits: list[int], percentile: float) -> tuple[np.ndarray, np.ndarray]:
    """GPUs by stage and percentile of every allocation within the limits."""
    grids = np.meshgrid(*(np.arange(len(stage.gpus)) for stage in stages), indexing="ij")
    choices = np.stack([grid.ravel() for grid in grids], axis=1)
    gpus = np.stack([stage.gpus[choices[:, j]] for j, stage in enumerate(stages)], axis=1)
    for pool, limit in enumerate(limits):
        mine = np.array([stage.pool == pool for stage in stages])
        kept = gpus[:, mine].sum(axis=1) <= limit
        choices, gpus = choices[kept], gpus[kept]
    latency = np.empty(len(choices))
    for start in range(0, len(choices), 4096):
        block = slice(start, start + 4096)
        total = sum(stage.seconds[choices[block, j]] for j, stage in enumerate(stages))
        kth = min(99, int(percentile))
        latency[block] = np.partition(total, kth, axis=1)[:, kth]
    return gpus, latency


@settings(max_examples=400, deadline=None)
@given(case=paths(), percentile=st.sampled_from([50, 90, 95, 99]))
def test_end_to_end_equals_brute_force_up_to_32_gpus(
    case: tuple[list[PathStage], list[int]], percentile: float
) -> None:
    stages, limits = case
    _, latency = everything(stages, limits, percentile)
    found = allocate_path(stages, limits, percentile=percentile)
    if not len(latency):
        assert found is None
        return
    assert found is not None
    assert found.exhaustive
    assert found.latency == pytest.approx(latency.min(), rel=1e-12)
    assert found.bound == pytest.approx(found.latency, rel=1e-12)


@settings(max_examples=400, deadline=None)
@given(case=paths(), ceiling=st.floats(1.0, 40.0))
def test_the_cheapest_end_to_end_equals_brute_force_up_to_32_gpus(
    case: tuple[list[PathStage], list[int]], ceiling: float
) -> None:
    stages, limits = case
    prices = [2.0, 3.0][: len(limits)]
    gpus, latency = everything(stages, limits, 95)
    found = allocate_path(stages, limits, percentile=95, prices=prices, ceilings=[Ceiling(95, ceiling)])
    if not len(latency):
        assert found is None
        return
    assert found is not None
    good = latency <= ceiling
    if not good.any():
        return
    cost = gpus @ np.array([prices[stage.pool] for stage in stages])
    chosen = sum(int(stage.gpus[k]) * prices[stage.pool] for stage, k in zip(stages, found.choice, strict=True))
    assert found.exhaustive
    assert found.latency <= ceiling
    assert chosen == pytest.approx(cost[good].min())
