"""Thresholds alone: another load or floor on the replicas that stand."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from cascadia_api.errors import InfeasibleError, InputError
from cascadia_api.plan import Plan
from cascadia_solver.planner import PlanningInputs, plan_cascade
from cascadia_solver.rethreshold import replan_thresholds
from tests.support.planning import cascade, probit_table

TABLE = probit_table(1500, 7)
FIELDS = {"small": {"minReplicas": 1}, "medium": {"minReplicas": 1}, "large": {"minReplicas": 1}}


@cache
def standing() -> Plan:
    return plan_cascade(PlanningInputs(cascade(model_fields=FIELDS), TABLE))


def test_the_replicas_stay_and_the_floor_is_kept() -> None:
    for floor in ("0.82", "0.85", "0.87"):
        manifest = cascade(model_fields=FIELDS, objective={"minQuality": floor})
        plan = replan_thresholds(PlanningInputs(manifest, TABLE), standing())
        assert [stage.replicas for stage in plan.stages] == [stage.replicas for stage in standing().stages]
        assert plan.plan_id != standing().plan_id
        assert plan.quality.lower_bound is not None
        assert plan.quality.lower_bound >= float(floor)
        assert plan.thresholds == [stage.threshold for stage in plan.stages]
        assert plan.thresholds in [step.thresholds for step in plan.ladder]
        assert plan.latency.p50_ms <= plan.latency.p95_ms <= plan.latency.p99_ms
        assert Plan.model_validate(plan.for_json()) == plan


def test_a_higher_floor_escalates_more_and_takes_longer() -> None:
    low, high = (
        replan_thresholds(
            PlanningInputs(cascade(model_fields=FIELDS, objective={"minQuality": floor}), TABLE), standing()
        )
        for floor in ("0.80", "0.87")
    )
    assert sum(stage.reach for stage in high.stages) > sum(stage.reach for stage in low.stages)
    assert high.latency.p95_ms > low.latency.p95_ms


def test_the_estimate_is_near_the_simulation_of_the_same_plan() -> None:
    again = replan_thresholds(PlanningInputs(cascade(model_fields=FIELDS), TABLE), standing())
    assert again.latency.p95_ms <= 1.15 * standing().latency.p95_ms  # nothing slower is chosen than what there is
    loads = [stage.utilization for stage in again.stages]
    assert all(load is not None and 0 <= load < 1 for load in loads)


def test_more_load_than_the_replicas_carry_is_refused_with_numbers() -> None:
    with pytest.raises(InfeasibleError) as caught:
        replan_thresholds(PlanningInputs(cascade(model_fields=FIELDS, rate="900"), TABLE), standing())
    assert caught.value.reason == "Overloaded"
    assert caught.value.shortfalls[0].available < 900 == caught.value.shortfalls[0].needed


def test_a_floor_out_of_reach_is_told_from_overload() -> None:
    manifest = cascade(model_fields=FIELDS, objective={"minQuality": "0.97"})
    with pytest.raises(InfeasibleError, match=r"minQuality 0\.97 is out of reach"):
        replan_thresholds(PlanningInputs(manifest, TABLE), standing())


def test_a_plan_of_other_models_or_pools_is_refused() -> None:
    with pytest.raises(InputError, match="the plan is of the models"):
        replan_thresholds(PlanningInputs(cascade(models=("small", "large"))), standing())
    pools = [{"name": "other", "gpu": "H100-SXM-80GB", "maxGpus": 32}]
    with pytest.raises(InputError, match="on pool 'h100', which the manifest does not have"):
        replan_thresholds(PlanningInputs(cascade(pools=pools, model_fields=FIELDS), TABLE), standing())


def test_under_overload_the_ladder_goes_down_to_the_lower_floor() -> None:
    objective = {"minQualityOverloaded": "0.75"}
    plan = plan_cascade(PlanningInputs(cascade(model_fields=FIELDS, objective=objective), TABLE))
    rates = [step.max_requests_per_second for step in plan.ladder]
    means = np.array([float(step.quality_mean) for step in plan.ladder])
    own = plan.ladder.index(next(step for step in plan.ladder if step.thresholds == plan.thresholds))
    assert rates == sorted(rates)
    assert means.min() >= 0.75
    # Below the floor's own last rung: steps that keep the lower floor on their mean, whose bound is not the floor.
    beyond = [(step.quality_lower_bound or 0.0) < 0.85 for step in plan.ladder]
    assert beyond == sorted(beyond)
    assert (beyond[own], beyond[-1]) == (False, True)
    assert means[-1] < means[own]
    assert rates[-1] > standing().ladder[-1].max_requests_per_second
