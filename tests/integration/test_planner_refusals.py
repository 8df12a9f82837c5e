"""Why there is no plan: with the numbers that are missing, and a nearest plan that really is one."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from cascadia_api.cascade import LatencyTarget
from cascadia_api.errors import InfeasibleError
from cascadia_solver.evaluation import PathTimes
from cascadia_solver.infeasible import latency_out_of_reach
from cascadia_solver.planner import PlanningInputs, plan_cascade
from tests.support.planning import cascade, probit_table

TABLE = probit_table(1500, 7)


def test_quality_out_of_reach_says_what_is_reachable_and_which_set_would_do() -> None:
    with pytest.raises(InfeasibleError) as caught:
        plan_cascade(PlanningInputs(cascade(objective={"minQuality": "0.89"}), probit_table(300, 7)))
    assert caught.value.reason == "QualityOutOfReach"
    shortfall, requests = caught.value.shortfalls
    assert shortfall.what == "quality lower bound"
    assert shortfall.available < 0.89 == shortfall.needed
    assert requests.available == 300 < requests.needed
    assert f"too small: it has 300 requests, and about {requests.needed:,} would do" in str(caught.value)
    assert caught.value.nearest.startswith("minQuality 0.8")


def test_too_few_gpus_says_how_many_are_needed_and_what_they_would_carry() -> None:
    with pytest.raises(InfeasibleError) as caught:
        plan_cascade(PlanningInputs(cascade(gpus=8, rate="30"), TABLE))
    assert caught.value.reason == "InsufficientGPUs"
    (shortfall,) = caught.value.shortfalls
    assert (shortfall.what, shortfall.available) == ("GPUs of pool h100", 8)
    assert shortfall.needed > 8
    # What it says is needed is enough.
    assert plan_cascade(PlanningInputs(cascade(gpus=int(shortfall.needed), rate="30"), TABLE)).gpus <= shortfall.needed
    rate, _, words = caught.value.nearest.partition(" ")
    assert words == "requests/s on the GPUs that there are"
    assert plan_cascade(PlanningInputs(cascade(gpus=8, rate=rate), TABLE)).gpus <= 8


PAIR = ("small", "medium")
PAIR_TABLE = probit_table(600, 7, accuracies=(0.72, 0.86), models=PAIR)


def pair(gpus: int, rate: str, floor: str = "0.78", **fields: Any) -> PlanningInputs:
    manifest = cascade(models=PAIR, gpus=gpus, rate=rate, objective={"minQuality": floor}, **fields)
    return PlanningInputs(manifest, PAIR_TABLE)


def test_a_need_of_many_times_the_gpus_is_told_in_full() -> None:
    with pytest.raises(InfeasibleError) as caught:
        plan_cascade(pair(8, "800"))
    (shortfall,) = caught.value.shortfalls
    needed = int(shortfall.needed)
    assert needed > 64
    assert re.search(r"need at least \d+ GPUs of pool h100, has 8 \(", str(caught.value))
    # Among so many GPUs other thresholds are certified: the number was tried.
    assert f" {needed} " in str(caught.value)
    assert plan_cascade(pair(needed, "800")).gpus <= needed
    # However far off the rate was that was asked for, the highest is found as closely.
    rate, _, words = caught.value.nearest.partition(" ")
    assert words == "requests/s on the GPUs that there are"
    with pytest.raises(InfeasibleError) as nearer:
        plan_cascade(pair(8, f"{1.5 * float(rate):g}"))
    assert float(nearer.value.nearest.partition(" ")[0]) == pytest.approx(float(rate), rel=0.02)


def test_where_no_rate_helps_the_nearest_floor_is_told() -> None:
    """The larger model fits on none of the GPUs: slower traffic makes no difference, a lower floor does."""
    with pytest.raises(InfeasibleError) as caught:
        plan_cascade(pair(1, "5"))
    floor, _, words = caught.value.nearest.removeprefix("minQuality ").partition(" ")
    assert words == "on the GPUs that there are"
    assert 0.6 < float(floor) < 0.78
    assert plan_cascade(pair(1, "5", floor)).gpus == 1


def test_replicas_that_have_to_be_are_named_among_what_to_lower() -> None:
    forced = pair(4, "5", model_fields={"medium": {"minReplicas": 3}})
    with pytest.raises(
        InfeasibleError, match=r"minReplicas 3\); add GPUs, or lower the rate, minQuality or minReplicas"
    ):
        plan_cascade(forced)


def test_a_floor_that_what_fits_may_miss_by_a_hair_is_said_to_be_uncertain() -> None:
    """At the edge of the budget, where larger thresholds keep the floor: no bound above the floor is called too low."""
    with pytest.raises(InfeasibleError) as caught:
        plan_cascade(PlanningInputs(cascade(gpus=20, rate="33.7"), TABLE))
    assert caught.value.reason == "InsufficientGPUs"
    assert "(20 of pool h100) can carry is not certain to keep the floor at confidence 0.95" in str(caught.value)
    rate = caught.value.nearest.removesuffix(" requests/s on the GPUs that there are")
    assert plan_cascade(PlanningInputs(cascade(gpus=20, rate=rate), TABLE)).gpus <= 20


def test_a_model_that_fits_nowhere_is_planned_without_or_refused() -> None:
    small = plan_cascade(PlanningInputs(cascade(gpus=4, rate="5", objective={"minQuality": "0.8"}), TABLE))
    assert small.stages[2].gpus == 0
    assert any(warning.startswith("planned without large") for warning in small.warnings)
    with pytest.raises(InfeasibleError, match="GPUs of pool h100, has 4"):
        plan_cascade(PlanningInputs(cascade(gpus=4, rate="5"), TABLE))
    with pytest.raises(InfeasibleError, match="no GPU is available: pool h100 has 0"):
        plan_cascade(PlanningInputs(cascade(), TABLE, available_gpus={"h100": 0}))


def test_a_floor_that_needs_a_stage_which_no_gpu_can_hold_says_why() -> None:
    """Not that 4,097 GPUs would do: the largest model is in fp8, which an A100 has not."""
    pool = {"name": "a100", "gpu": "A100-SXM-80GB", "maxGpus": 32, "pricePerGpuHour": "2.5"}
    with pytest.raises(
        InfeasibleError, match=r"large is none of these: .*A100-SXM-80GB has no fp8 arithmetic"
    ) as caught:
        plan_cascade(PlanningInputs(cascade(pools=[pool], objective={"minQuality": "0.87"}), TABLE))
    assert caught.value.reason == "PrecisionUnsupported"
    assert caught.value.nearest.startswith("minQuality 0.8")


def test_a_latency_target_out_of_reach_gives_the_best_figure() -> None:
    target = {"metric": "EndToEnd", "percentile": 95, "milliseconds": 900}
    with pytest.raises(InfeasibleError) as caught:
        plan_cascade(PlanningInputs(cascade(objective={"targets": [target]}), TABLE))
    assert caught.value.reason == "LatencyOutOfReach"
    assert caught.value.shortfalls[0].what == "EndToEnd p95 ms"
    assert caught.value.shortfalls[0].available > 5000


@pytest.mark.parametrize(
    ("metric", "milliseconds", "minimize"), [("EndToEnd", 900, "Latency"), ("TimeToFirstToken", 100, "Cost")]
)
def test_the_nearest_target_that_is_named_can_be_planned(metric: str, milliseconds: int, minimize: str) -> None:
    target = {"metric": metric, "percentile": 95, "milliseconds": milliseconds}
    with pytest.raises(InfeasibleError) as caught:
        plan_cascade(PlanningInputs(cascade(objective={"targets": [target], "minimize": minimize}), TABLE))
    what, _, nearest = caught.value.nearest.rpartition(" ")
    assert what == f"{metric} p95 ms"
    within = target | {"milliseconds": int(nearest)}
    plan_cascade(PlanningInputs(cascade(objective={"targets": [within], "minimize": minimize}), TABLE))


def test_a_target_that_is_met_too_narrowly_is_told_with_the_error_it_is_met_by() -> None:
    seconds = np.random.default_rng(3).normal(1.0, 0.2, 40_000)
    times = PathTimes(seconds, seconds, seconds, saturated=False)
    found = times.percentile(95) * 1e3
    target = LatencyTarget(metric="EndToEnd", percentile=95, milliseconds=int(found) + 1)
    kept = target.model_copy(update={"metric": "TimeToFirstToken", "milliseconds": 5000})
    refusal = latency_out_of_reach(times, [kept, target], deviations=1.645)
    assert f"p95 ms {int(found) + 1} is asked, the best found is {found:.0f} ± " in str(refusal)
    [missing] = refusal.shortfalls
    assert missing.available > missing.needed
    missed = target.model_copy(update={"milliseconds": int(found)})
    assert f"is asked, {int(found) + 1} is the best found" in str(latency_out_of_reach(times, [missed], deviations=0))


def test_a_lost_request_is_late_and_hides_no_missed_target() -> None:
    """One that is longer than the cache of every replica never ends: of 40,000 that is no p95."""
    seconds = np.random.default_rng(3).normal(1.0, 0.2, 40_000)
    whole = PathTimes(seconds, seconds, seconds, saturated=False)
    seconds = np.append(seconds[:-1], np.inf)
    times = PathTimes(seconds, seconds, seconds, saturated=True)
    missed = LatencyTarget(metric="EndToEnd", percentile=99, milliseconds=900)
    kept = LatencyTarget(metric="TimeToFirstToken", percentile=95, milliseconds=1500)
    for deviations in (0.0, 1.645):
        assert times.excess([missed], deviations=deviations) > 0.5
        assert times.excess([kept], deviations=deviations) == 0
    assert times.standard_error(95) == pytest.approx(whole.standard_error(95), rel=0.05)
    assert PathTimes(np.full(2000, np.inf), seconds, seconds, saturated=True).excess([missed]) == np.inf
