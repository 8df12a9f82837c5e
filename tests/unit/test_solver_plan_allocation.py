"""Allocation: the exact search, the MILP and brute force agree; the end-to-end search equals brute force."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pulp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_solver import path_allocation
from cascadia_solver.allocation import Allocation, max_stage_allocation
from cascadia_solver.milp import SolverName, solve_allocation
from cascadia_solver.path_allocation import Ceiling, PathStage, allocate_path, path_bound, trim_allocation


def tables(seed: int, stages: int, gpus: int) -> list[np.ndarray]:
    """Latency tables as they come: infinite at first, falling in steps, not always monotone."""
    random = np.random.default_rng(seed)
    result = []
    for _ in range(stages):
        table = np.round(random.uniform(5, 50) / (1 + np.arange(gpus + 1)) ** random.uniform(0.2, 1.2), 2)
        table += np.round(random.choice([0, 0.5], gpus + 1), 2)
        table[: int(random.integers(1, 5))] = np.inf
        result.append(table)
    return result


def brute_force(found: list[np.ndarray], limits: list[int], pools: list[int]) -> Allocation | None:
    best: Allocation | None = None
    for gpus in product(*(range(len(table)) for table in found)):
        used = [sum(g for g, p in zip(gpus, pools, strict=True) if p == pool) for pool in range(len(limits))]
        latency = max(float(table[g]) for table, g in zip(found, gpus, strict=True))
        if any(u > limit for u, limit in zip(used, limits, strict=True)) or not np.isfinite(latency):
            continue
        if best is None or (latency, sum(gpus)) < (best.latency, sum(best.gpus)):
            best = Allocation(gpus, latency)
    return best


cases = st.tuples(st.integers(0, 10**6), st.integers(1, 3), st.integers(3, 12), st.integers(1, 2))


@settings(max_examples=60, deadline=None)
@given(case=cases)
def test_the_exact_search_equals_brute_force(case: tuple[int, int, int, int]) -> None:
    seed, stages, gpus, pool_count = case
    found = tables(seed, stages, gpus)
    pools = [k % pool_count for k in range(stages)]
    limits = [gpus, gpus // 2][:pool_count]
    exact = max_stage_allocation(found, limits, pools)
    assert exact == brute_force(found, limits, pools)


@settings(max_examples=12, deadline=None)
@given(case=st.tuples(st.integers(0, 10**6), st.integers(1, 4), st.integers(4, 40), st.integers(1, 2)))
def test_the_milp_agrees_with_the_exact_search(case: tuple[int, int, int, int]) -> None:
    seed, stages, gpus, pool_count = case
    found = tables(seed, stages, gpus)
    pools = [k % pool_count for k in range(stages)]
    limits = [gpus, gpus // 2][:pool_count]
    exact = max_stage_allocation(found, limits, pools)
    result = solve_allocation(found, limits, pools)
    if exact is None:
        assert result.status == "Infeasible"
    else:
        assert result.status == "Optimal"
        assert result.latency == pytest.approx(exact.latency)
        assert max(t[g] for t, g in zip(found, result.gpus, strict=True)) == result.latency


def test_a_budget_in_money_is_kept() -> None:
    table = np.array([np.inf, 10.0, 5.0, 3.0, 2.0])
    free = solve_allocation([table, table], [8], prices=[2.0])
    tight = solve_allocation([table, table], [8], prices=[2.0], budget=8.0)
    assert (free.gpus, free.latency) == ((4, 4), 2.0)  # only these are as fast
    assert (sum(tight.gpus), tight.latency) == (4, 5.0)
    assert solve_allocation([table, table], [8], prices=[2.0], budget=3.0).status == "Infeasible"


SOLVERS = ("CBC", "HiGHS")


def with_solver(solver: str) -> SolverName:
    if solver == "HiGHS":
        pytest.importorskip("highspy")
        return "HiGHS"
    return "CBC"


@pytest.mark.parametrize("name", SOLVERS)
def test_infeasible_and_timed_out_are_told_apart(name: str) -> None:
    solver, table = with_solver(name), np.array([np.inf, np.inf, 3.0])
    assert solve_allocation([table, table], [3], solver=solver).status == "Infeasible"
    assert solve_allocation([np.full(4, np.inf)], [3], solver=solver).status == "Infeasible"
    assert solve_allocation([table, table], [4], solver=solver).status == "Optimal"
    random = np.random.default_rng(3)
    hard = [np.concatenate([[np.inf], np.sort(random.uniform(1, 99, 300))[::-1]]) for _ in range(6)]
    stopped = solve_allocation(hard, [300], deadline_seconds=1e-9, solver=solver)
    assert stopped.status == "TimedOut"
    exact = max_stage_allocation(hard, [300])
    assert exact is not None
    assert stopped.latency >= exact.latency, "what it has by then is no proof"


def test_a_solver_that_fails_is_told_from_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = np.array([np.inf, np.inf, 3.0])
    crashing = tmp_path / "cbc"
    crashing.write_text("#!/bin/sh\nexit 3\n")
    crashing.chmod(0o755)
    for binary in ("/nowhere/cbc", str(crashing)):
        monkeypatch.setattr(pulp.PULP_CBC_CMD, "pulp_cbc_path", binary)
        failed = solve_allocation([table, table], [4])
        assert failed.status == "Failed"
        assert "cbc" in failed.detail


def test_a_solver_that_is_not_installed_is_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(self: object, problem: pulp.LpProblem) -> int:  # what PuLP does without highspy
        raise pulp.PulpSolverError("HiGHS: Not Available")

    monkeypatch.setattr(pulp.HiGHS, "actualSolve", absent)
    table = np.array([np.inf, np.inf, 3.0])
    missing = solve_allocation([table, table], [4], solver="HiGHS")
    assert missing.status == "Failed"
    assert "HiGHS" in missing.detail


def path_stages(seed: int, count: int, steps: int, pools: int) -> list[PathStage]:
    """Stages whose requests' latencies fall with GPUs, with fewer and fewer requests coming by."""
    random = np.random.default_rng(seed)
    visits = np.ones(200, dtype=bool)
    stages = []
    for place in range(count):
        gpus = np.unique(random.integers(1, 12, steps))
        scale = random.uniform(2, 20) / gpus ** random.uniform(0.3, 1.0)
        seconds = scale[:, None] * random.lognormal(0, 0.5, 200)[None, :] * visits
        stages.append(PathStage(np.sort(gpus), seconds, place % pools))
        visits = visits & (random.random(200) < 0.6)
    return stages


def every_choice(stages: list[PathStage], limits: list[int]) -> list[tuple[int, ...]]:
    result = []
    for choice in product(*(range(len(stage.gpus)) for stage in stages)):
        used = [0] * len(limits)
        for stage, k in zip(stages, choice, strict=True):
            used[stage.pool] += int(stage.gpus[k])
        if all(u <= limit for u, limit in zip(used, limits, strict=True)):
            result.append(choice)
    return result


def quantile(stages: list[PathStage], choice: tuple[int, ...], percentile: float) -> float:
    total = sum(stage.seconds[k] for stage, k in zip(stages, choice, strict=True))
    return float(np.sort(total)[min(199, int(percentile / 100 * 200))])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), count=st.integers(1, 3), pools=st.integers(1, 2), percentile=st.sampled_from([50, 95])
)
def test_the_end_to_end_allocation_equals_brute_force(seed: int, count: int, pools: int, percentile: int) -> None:
    stages, limits = path_stages(seed, count, 6, pools), [14, 9][:pools]
    choices = every_choice(stages, limits)
    found = allocate_path(stages, limits, percentile=percentile)
    if not choices:
        assert found is None
        return
    assert found is not None
    assert found.exhaustive
    assert found.latency == pytest.approx(min(quantile(stages, choice, percentile) for choice in choices))
    assert found.bound == found.latency == quantile(stages, found.choice, percentile)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), ceiling=st.floats(2.0, 40.0))
def test_the_cheapest_allocation_within_a_ceiling_equals_brute_force(seed: int, ceiling: float) -> None:
    stages, limits, prices = path_stages(seed, 3, 5, 2), [14, 9], [2.0, 3.0]
    choices = every_choice(stages, limits)
    found = allocate_path(stages, limits, percentile=95, prices=prices, ceilings=[Ceiling(95, ceiling)])
    if not choices:
        assert found is None
        return

    def cost(choice: tuple[int, ...]) -> float:
        return sum(int(stage.gpus[k]) * prices[stage.pool] for stage, k in zip(stages, choice, strict=True))

    assert found is not None
    good = [choice for choice in choices if quantile(stages, choice, 95) <= ceiling]
    if good:
        assert quantile(stages, found.choice, 95) <= ceiling
        assert cost(found.choice) == pytest.approx(min(cost(choice) for choice in good))
    else:
        least = min(quantile(stages, choice, 95) for choice in choices)
        assert quantile(stages, found.choice, 95) == pytest.approx(least)


def test_the_local_search_is_close_to_brute_force_and_states_its_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path_allocation, "_EXHAUSTIVE", 0)
    monkeypatch.setattr(path_allocation, "_FEW_GPUS", 0)
    ratios = []
    for seed in range(40):
        stages, limits = path_stages(seed, 3, 8, 1), [18]
        choices = every_choice(stages, limits)
        if not choices:
            continue
        found = allocate_path(stages, limits, percentile=95)
        assert found is not None
        assert not found.exhaustive
        best = min(quantile(stages, choice, 95) for choice in choices)
        assert found.bound <= best * (1 + 1e-12)
        ratios.append(found.latency / best)
    assert len(ratios) > 20
    assert np.mean(ratios) < 1.01
    assert max(ratios) < 1.1


def test_gpus_that_hardly_matter_are_given_up() -> None:
    fast = np.array([[10.0], [5.0], [4.99], [4.98]]) * np.ones(50)
    stages = [PathStage(np.array([1, 2, 8, 16]), fast, 0)]
    assert trim_allocation(stages, (3,), percentile=95, slowest=5.03) == (1,)
    assert trim_allocation(stages, (3,), percentile=95, slowest=4.985) == (3,)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 3),
    limit=st.integers(6, 24),
    by_price=st.booleans(),
    evaluations=st.sampled_from([1, 8, 10_000]),
)
def test_no_allocation_undercuts_the_bound(seed: int, count: int, limit: int, by_price: bool, evaluations: int) -> None:
    stages = path_stages(seed, count, 6, 1)
    prices = [1.5] if by_price else None
    ceilings = [Ceiling(95, 12.0)] if by_price else []
    found = allocate_path(stages, [limit], percentile=95, prices=prices, ceilings=ceilings)
    if found is None or (by_price and found.latency > 12.0):
        return
    best = found.bound  # so few allocations are all tried
    bound = path_bound(
        stages, [limit], percentile=95, known=best * 1.5, prices=prices, ceilings=ceilings,
        tolerance=0.0, evaluations=evaluations,
    )  # fmt: skip
    assert bound <= best * (1 + 1e-9)
    if evaluations == 10_000:
        assert bound == pytest.approx(best)
