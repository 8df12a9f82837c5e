"""Partly used nodes: what fits on them is exactly what a search over placements finds, and plans keep to it."""

from __future__ import annotations

import math
from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.errors import InfeasibleError, InputError
from cascadia_api.plan import Plan
from cascadia_solver.design import Route, design, routed
from cascadia_solver.inputs import PlanningInputs, traffic_of
from cascadia_solver.knapsack import _tables_in_room, best_counts
from cascadia_solver.packing import POD_SIZES, gpus_by_pod_size, pod_gpus, replica_nodes, room_on
from cascadia_solver.planner import _problem, plan_cascade
from cascadia_solver.search import _widths, lower_bound
from cascadia_solver.sites import pool_budgets
from tests.support.planning import cascade, probit_table

TABLE = probit_table(1500, 7)


@cache
def placeable(pods: tuple[int, ...], free: tuple[int, ...]) -> bool:
    """Whether some placement of the pods exists: all are tried."""
    if not pods:
        return True
    return any(
        placeable(pods[1:], tuple(sorted((*free[:n], room - pods[0], *free[n + 1 :]))))
        for n, room in enumerate(free)
        if room >= pods[0]
    )


@settings(max_examples=120, deadline=None)
@given(
    free=st.lists(st.integers(0, 16), max_size=5),
    replicas=st.lists(st.tuples(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 3)), max_size=4),
    per_node=st.sampled_from([4, 6, 8, 12, 16]),
)
def test_replicas_fit_exactly_if_some_placement_exists(
    free: list[int], replicas: list[tuple[int, int]], per_node: int
) -> None:
    pods = [pod_gpus(g, per_node) for g, count in replicas for _ in range(count * (g // pod_gpus(g, per_node)))]
    fits = bool((gpus_by_pod_size(replicas, per_node) <= room_on(free)).all())
    assert fits == placeable(tuple(sorted(pods)), tuple(sorted(free)))


def test_pods_are_those_of_the_statefulsets() -> None:
    for tensor, pipeline, per_node in product((1, 2, 4, 8, 16), (1, 2, 4, 8), (4, 8, 16)):
        gpus = tensor * pipeline
        assert gpus // replica_nodes(tensor, pipeline, per_node) == pod_gpus(gpus, per_node)


@settings(max_examples=60, deadline=None)
@given(
    values=st.dictionaries(st.sampled_from([1, 2, 4, 8, 16]), st.integers(1, 40).map(float), min_size=1),
    free=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    least=st.integers(1, 2),
)
def test_the_best_replicas_on_partly_used_nodes_equal_brute_force(
    values: dict[int, float], free: list[int], least: int
) -> None:
    gpus = sum(free)
    room = {size: int(room_on(free)[POD_SIZES.index(pod_gpus(size, 8))]) for size in values}
    sizes = sorted(values)
    best = max(
        (
            sum(count * values[size] for size, count in zip(sizes, counts, strict=True))
            for counts in product(*(range(gpus // size + 1) for size in sizes))
            if sum(counts) >= least
            and (gpus_by_pod_size(list(zip(sizes, counts, strict=True)), 8) <= room_on(free)).all()
        ),
        default=-np.inf,
    )
    of, rates = np.array(sizes), np.array([[values[size]] for size in sizes])
    *_, table = _tables_in_room(of, rates, np.array([room[size] for size in sizes]), gpus, least)
    assert table[least, gpus, 0] == best
    if np.isfinite(best):
        counts = best_counts(values, gpus, least, room)
        assert sum(counts.values()) >= least
        assert sum(count * values[size] for size, count in counts.items()) == best
        assert (gpus_by_pod_size(list(counts.items()), 8) <= room_on(free)).all()


def pods_of(plan: Plan, per_node: int = 8) -> list[int]:
    pods = []
    for stage in plan.live_stages:
        for group in stage.replicas:
            gpus = group.tensor_parallel * group.pipeline_parallel
            pod = pod_gpus(gpus, per_node)
            pods += [pod] * (group.count * gpus // pod)
    return sorted(pods)


def on_nodes(*free: int, rate: str = "6", **fields: object) -> PlanningInputs:
    manifest = cascade(rate=rate, objective={"minQuality": "0.8"}, gpus=64, **fields)  # type: ignore[arg-type]
    return PlanningInputs(manifest, TABLE, free_by_node={"h100": free})


@cache
def whole_nodes() -> Plan:
    return plan_cascade(on_nodes(8, 8, 8, 8))


@pytest.mark.parametrize("free", [(8, 8, 4, 4, 4, 4), (8, 6, 6, 6, 3, 3)])
def test_plans_fit_on_the_nodes_as_they_are(free: tuple[int, ...]) -> None:
    plan = plan_cascade(on_nodes(*free))
    assert plan.gpus <= sum(free)
    assert placeable(tuple(pods_of(plan)), tuple(sorted(free)))
    assert plan.plan_id != whole_nodes().plan_id


def test_whole_nodes_are_planned_as_if_nothing_were_known_of_nodes() -> None:
    known = whole_nodes()
    manifest = cascade(rate="6", objective={"minQuality": "0.8"}, gpus=32)
    blind = plan_cascade(PlanningInputs(manifest, TABLE))
    assert known.stages == blind.stages


def test_fragments_cost_latency_and_are_never_better_than_whole_nodes() -> None:
    whole, parts = whole_nodes(), plan_cascade(on_nodes(*(4,) * 8))
    assert max(pods_of(parts)) <= 4
    assert parts.latency.p95_ms >= whole.latency.p95_ms * 0.98


@pytest.mark.parametrize("minimize", ["Latency", "Cost"])
def test_on_partly_used_nodes_the_gap_is_to_a_bound_that_nothing_undercuts(minimize: str) -> None:
    manifest = cascade(rate="6", objective={"minQuality": "0.8", "minimize": minimize}, gpus=64)
    inputs = PlanningInputs(manifest, TABLE, free_by_node={"h100": (8, 8, 4, 4, 4, 2, 2)})
    plan = plan_cascade(inputs)
    assert plan.solver.status == "Feasible"
    traffic = traffic_of(inputs)
    problem = _problem(inputs, traffic)
    stages = tuple(index for index, stage in enumerate(plan.stages) if stage.gpus)
    thresholds = tuple(-math.inf if (h := plan.stages[m].threshold) is None else h for m in stages[:-1])
    route = Route(stages, thresholds, (0,) * len(stages), 0.0, 0.0)
    sites = [problem.sites.at[model, 0] for model in stages]
    found = []
    for widest in _widths(sites):
        given = routed(route, sites, problem.sample, problem.limits, problem.percentile, problem.made, widest)
        prices = problem.prices if problem.cheapest else None
        made = design(given, problem.limits, percentile=95, prices=prices, ceilings=[], rooms=problem.rooms)
        if made is not None:
            found.append((made.cost(problem.prices) if problem.cheapest else made.estimate, made))
    values = [value for value, _ in found]
    assert len(values) >= 2
    assert 0 < lower_bound(problem, found[0][1], max(values)) <= min(values)
    assert 0 <= plan.solver.gap < 0.5


def test_a_model_too_large_for_any_free_node_is_left_out_and_says_so() -> None:
    plan = plan_cascade(on_nodes(4, 4, 4, 4, 4, 4))
    assert plan.stages[2].gpus == 0
    assert "planned without large: " in plan.warnings[0]
    assert "nodes with 8 free ones together have 0" in plan.warnings[0]
    forced = on_nodes(4, 4, model_fields={"large": {"minReplicas": 1}})
    with pytest.raises(InfeasibleError, match="nodes with 8 free ones together have 0"):
        plan_cascade(forced)


def test_nodes_of_six_gpus_waste_two_of_a_tp4_pod() -> None:
    pool = {"name": "odd", "gpu": "H100-SXM-80GB", "maxGpus": 12, "gpusPerNode": 6, "pricePerGpuHour": "2.5"}
    (budget,) = pool_budgets(cascade(pools=[pool]).spec, None)
    assert budget.room is not None
    assert budget.room[2] == 8
    plan = plan_cascade(PlanningInputs(cascade(rate="2", objective={"minQuality": "0.8"}, pools=[pool]), TABLE))
    assert placeable(tuple(pods_of(plan, 6)), (6, 6))


def test_free_gpus_of_unknown_pools_and_negative_ones_are_refused() -> None:
    spec = cascade().spec
    with pytest.raises(InputError, match="the pool a100; the manifest has h100"):
        pool_budgets(spec, None, {"a100": [8]})
    with pytest.raises(InputError, match="cannot be negative"):
        pool_budgets(spec, None, {"h100": [8, -1]})
