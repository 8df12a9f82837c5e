"""Planning again beside a plan in force: thresholds alone where that is enough."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from cascadia_api.errors import InfeasibleError
from cascadia_api.plan import Plan
from cascadia_solver.evaluation import path_times
from cascadia_solver.inputs import traffic_of
from cascadia_solver.planner import PlanningInputs, plan_cascade
from cascadia_solver.replanning import good_enough, replan, thresholds_alone
from cascadia_solver.standing import simulate_plan
from tests.support.planning import cascade, probit_table

TABLE = probit_table(1500, 7)


@cache
def standing(minimize: str = "Latency") -> Plan:
    return plan_cascade(PlanningInputs(cascade(objective={"minimize": minimize}), TABLE))


def shapes(plan: Plan) -> list[object]:
    return [stage.replicas for stage in plan.stages]


def test_a_load_within_what_the_replicas_carry_moves_none() -> None:
    inputs = PlanningInputs(cascade(rate="10.4"), TABLE)
    plan = replan(inputs, standing())
    assert plan.replicas_of is not None
    assert plan.replicas_of.plan_id == standing().plan_id
    assert float(plan.replicas_of.requests_per_second) == pytest.approx(10.0)
    assert shapes(plan) == shapes(standing())
    assert float(plan.demand.requests_per_second) == pytest.approx(10.4)
    assert [point.chosen for point in plan.frontier].count(True) == 1
    assert len(plan.frontier) > 8
    assert any(f"the replicas are those of {standing().plan_id}" in warning for warning in plan.warnings)
    # Once more beside that: the replicas are still those of the first plan, and the way there does not matter.
    again = replan(PlanningInputs(cascade(rate="10.2"), TABLE), plan)
    assert again.replicas_of == plan.replicas_of
    assert again.plan_id == replan(PlanningInputs(cascade(rate="10.2"), TABLE), standing()).plan_id


def test_another_floor_is_met_by_thresholds_where_the_frontier_promises_little() -> None:
    inputs = PlanningInputs(cascade(objective={"minQuality": "0.855"}), TABLE)
    plan = replan(inputs, standing())
    assert plan.replicas_of is not None
    assert plan.quality.lower_bound is not None
    assert plan.quality.lower_bound >= 0.855


def test_a_floor_that_other_replicas_serve_better_is_planned_for_anew() -> None:
    inputs = PlanningInputs(cascade(objective={"minQuality": "0.7", "minimize": "Cost"}), TABLE)
    plan = replan(inputs, standing("Cost"))
    assert plan.replicas_of is None
    assert plan.gpus < standing("Cost").gpus
    fallen = PlanningInputs(cascade(rate="4"), TABLE)
    assert not good_enough(fallen.cascade.spec, standing(), replan_alone(fallen))


def replan_alone(inputs: PlanningInputs) -> Plan:
    found = thresholds_alone(inputs, standing())
    assert found is not None
    return found


def test_what_the_replicas_cannot_do_is_planned_for_anew() -> None:
    overload = PlanningInputs(cascade(rate="900"), TABLE)
    assert thresholds_alone(overload, standing()) is None
    with pytest.raises(InfeasibleError):  # of a whole plan, which had to be tried
        replan(overload, standing())
    limits = {"large": {"parallelism": {"maxTensorParallel": 8}}, "medium": {"minReplicas": 6}}
    assert thresholds_alone(PlanningInputs(cascade(model_fields=limits), TABLE), standing()) is None
    fewer = PlanningInputs(cascade(), TABLE, available_gpus={"h100": standing().gpus - 1})
    assert thresholds_alone(fewer, standing()) is None


def test_targets_are_verified_by_simulation() -> None:
    def aiming(milliseconds: int) -> PlanningInputs:
        target = {"metric": "TimeToFirstToken", "percentile": 95, "milliseconds": milliseconds}
        return PlanningInputs(cascade(objective={"targets": [target]}), TABLE)

    loose = thresholds_alone(aiming(60_000), standing())
    assert loose is not None
    assert loose.latency.source.startswith("event-jump simulation of 10000 requests")
    first = loose.latency.time_to_first_token_p95_ms
    assert first is not None
    assert thresholds_alone(aiming(int(first * 0.9)), standing()) is None
    simulated = thresholds_alone(replace(aiming(60_000), cascade=cascade()), standing())
    assert simulated is not None
    assert simulated.latency == loose.latency


def test_latencies_of_thresholds_alone_are_simulated_along_the_path_and_of_each_stage() -> None:
    given = PlanningInputs(cascade(rate="10.4"), TABLE)
    plan = thresholds_alone(given, standing())
    assert plan is not None
    assert plan.latency.source.startswith("event-jump simulation of 10000 requests")
    traffic = traffic_of(given)
    times, exits = simulate_plan(
        given.cascade.spec, traffic.facts, plan, traffic.sample, given.sources, settle_seconds=30.0
    )
    wanted = path_times(times, traffic.sample, exits)
    assert plan.latency.p95_ms / 1e3 == pytest.approx(wanted.percentile(95), rel=0.01)
    for stage, service in zip(plan.stages, times.stage_service, strict=True):
        assert (stage.latency is None) == (not stage.gpus)
        if stage.gpus:
            assert stage.p95_ms is not None
            assert stage.p95_ms / 1e3 == pytest.approx(np.quantile(service, 0.95), rel=0.03)
    assert Plan.model_validate(plan.for_json()) == plan
