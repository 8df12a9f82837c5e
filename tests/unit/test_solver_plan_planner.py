"""The planner as a whole: its plans keep what they promise, and it says why there is none."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from cascadia_api.errors import InfeasibleError, InputError, PlanningTimeoutError
from cascadia_api.plan import Plan
from cascadia_api.report import SCORE_EDGES, TOKEN_EDGES, Histogram
from cascadia_solver.calibration import CalibrationSet, parse_calibration
from cascadia_solver.importers import import_zeroeval
from cascadia_solver.inputs import traffic_of
from cascadia_solver.observed import ObservedDemand
from cascadia_solver.plan_document import what_decided
from cascadia_solver.planner import PlanningInputs, plan_cascade
from cascadia_solver.replay import exit_stages
from cascadia_solver.trace import parse_trace
from tests.support.planning import MODELS, cascade, data_file, probit_table

TABLE = probit_table(1500, 7)


@cache
def chat_plan(rate: str = "10", gpus: int = 32, minimize: str = "Latency") -> Plan:
    manifest = cascade(rate=rate, gpus=gpus, objective={"minimize": minimize})
    return plan_cascade(PlanningInputs(manifest, TABLE))


def check(plan: Plan, table: CalibrationSet, gpus: int, floor: float) -> None:
    """What every plan promises."""
    live = plan.live_stages
    assert [stage.name for stage in plan.stages] == list(table.models)
    assert plan.gpus <= gpus
    assert live[0].reach == 1.0
    assert all(a.reach >= b.reach for a, b in pairwise(live))
    assert live[-1].threshold is None
    for stage in plan.stages:
        assert plan.thresholds[plan.stages.index(stage)] == stage.threshold
        groups = stage.replicas
        assert stage.gpus == sum(g.tensor_parallel * g.pipeline_parallel * g.count for g in groups)
        if stage.gpus:
            assert sum(g.weight * g.count for g in groups) == pytest.approx(1.0)
            assert stage.pool is not None
    stages = [k for k, stage in enumerate(plan.stages) if stage.gpus]
    thresholds = [-np.inf if plan.thresholds[k] is None else float(plan.thresholds[k] or 0) for k in stages[:-1]]
    answered = exit_stages(stages, thresholds, table.scores)
    if plan.demand.source != "Observed":
        assert plan.quality.mean == pytest.approx(table.quality[np.arange(len(table)), answered].mean())
    bound = plan.quality.lower_bound
    assert (plan.quality.mean if bound is None else bound) >= floor
    assert bound is None or bound < plan.quality.mean
    latency = plan.latency
    assert latency.p50_ms <= latency.p90_ms <= latency.p95_ms <= latency.p99_ms
    own = [step for step in plan.ladder if step.thresholds == plan.thresholds]
    assert len(own) == 1
    assert own[0].max_requests_per_second >= plan.demand.requests_per_second
    assert all((step.quality_lower_bound or step.quality_mean) >= floor for step in plan.ladder)
    rates = [step.max_requests_per_second for step in plan.ladder]
    assert rates == sorted(rates)
    assert [point.chosen for point in plan.frontier].count(True) == 1
    assert 0 <= plan.solver.gap < 0.05
    assert Plan.model_validate(plan.for_json()) == plan


def test_a_cascade_of_three_models_beats_the_largest_alone() -> None:
    plan = chat_plan()
    check(plan, TABLE, 32, 0.85)
    assert len(plan.live_stages) >= 2
    assert plan.gpus >= 24
    assert plan.solver.status == "Optimal"
    assert plan.solver.threshold_vectors >= 1000
    alone = next(other for other in plan.alternatives if other.name == "large alone")
    assert alone.p95_ms is not None
    assert alone.p95_ms > 1.2 * plan.latency.p95_ms
    assert plan.cost_per_hour == pytest.approx(2.5 * plan.gpus)
    assert plan.warnings == []


def test_the_frontier_holds_no_beaten_point() -> None:
    points = [(p.p95_ms, p.cost_per_hour or 0, -(p.quality_lower_bound or 0)) for p in chat_plan().frontier]
    assert len(points) > 8
    for a in points:
        assert not any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in points)


def test_the_same_inputs_give_the_same_plan_and_id() -> None:
    again = plan_cascade(PlanningInputs(cascade(objective={"minQuality": "0.850"}), TABLE))
    first = chat_plan()
    assert again.plan_id == first.plan_id
    assert again.model_copy(update={"solver": first.solver}) == first


@pytest.mark.parametrize(
    "change",
    [
        {"cascade": cascade(objective={"minQuality": "0.84"})},
        {"cascade": cascade(rate="11")},
        {"calibration": probit_table(1500, 8)},
        {"available_gpus": {"h100": 24}},
    ],
)
def test_what_matters_changes_the_id(change: dict[str, Any]) -> None:
    inputs = replace(PlanningInputs(cascade(), TABLE), **change)
    assert plan_cascade(inputs).plan_id != chat_plan().plan_id


def test_what_does_not_matter_leaves_the_id() -> None:
    manifest = cascade(model_fields={"small": {"engine": {"image": "other:1"}}})
    assert plan_cascade(PlanningInputs(manifest, TABLE, available_gpus={"h100": 99})).plan_id == chat_plan().plan_id


def test_less_cost_is_found_when_cost_is_minimised() -> None:
    plan = chat_plan(minimize="Cost")
    check(plan, TABLE, 32, 0.85)
    assert plan.gpus < chat_plan().gpus
    assert plan.latency.p95_ms > chat_plan().latency.p95_ms


def test_the_cheapest_plan_keeps_its_latency_target() -> None:
    target = {"metric": "EndToEnd", "percentile": 95, "milliseconds": 18_000}
    manifest = cascade(objective={"minimize": "Cost", "targets": [target]})
    plan = plan_cascade(PlanningInputs(manifest, TABLE))
    check(plan, TABLE, 32, 0.85)
    assert plan.latency.p95_ms <= 18_000
    assert chat_plan(minimize="Cost").gpus <= plan.gpus <= chat_plan().gpus


def test_a_time_to_first_token_target_is_kept_by_simulation() -> None:
    target = {"metric": "TimeToFirstToken", "percentile": 95, "milliseconds": 4000}
    plan = plan_cascade(PlanningInputs(cascade(objective={"targets": [target]}), TABLE))
    assert plan.latency.time_to_first_token_p95_ms is not None
    assert plan.latency.time_to_first_token_p95_ms <= 4000


def test_a_low_floor_needs_no_cascade() -> None:
    plan = plan_cascade(PlanningInputs(cascade(objective={"minQuality": "0.6"}), TABLE))
    assert [stage.name for stage in plan.live_stages] == ["small"]
    assert plan.thresholds == [None, None, None]


def test_least_replicas_keep_a_stage_alive() -> None:
    fields = {"small": {"minReplicas": 1}, "medium": {"minReplicas": 2}, "large": {"minReplicas": 1}}
    plan = plan_cascade(PlanningInputs(cascade(model_fields=fields), TABLE))
    check(plan, TABLE, 32, 0.85)
    assert len(plan.live_stages) == 3
    assert sum(group.count for group in plan.stages[1].replicas) >= 2


def test_no_escalation_leaves_one_model() -> None:
    plan = plan_cascade(PlanningInputs(cascade(routing={"maxEscalations": 0}), TABLE))
    assert [stage.name for stage in plan.live_stages] == ["large"]


def test_two_pools_are_used_by_eligibility_and_price() -> None:
    pools = [
        {"name": "h100", "gpu": "H100-SXM-80GB", "maxGpus": 32, "pricePerGpuHour": "2.5"},
        {"name": "l40s", "gpu": "L40S-48GB", "maxGpus": 16, "pricePerGpuHour": "0.8"},
    ]
    manifest = cascade(
        pools=pools,
        objective={"minimize": "Cost"},
        model_fields={"large": {"pools": ["h100"]}, "medium": {"pools": ["h100"]}},
    )
    plan = plan_cascade(PlanningInputs(manifest, TABLE))
    check(plan, TABLE, 48, 0.85)
    used = {pool["name"]: sum(s.gpus for s in plan.live_stages if s.pool == pool["name"]) for pool in pools}
    assert used["h100"] <= 32
    assert used["l40s"] <= 16
    assert plan.cost_per_hour == pytest.approx(2.5 * used["h100"] + 0.8 * used["l40s"])
    assert plan.stages[0].gpus == 0 or plan.stages[0].pool == "l40s"
    assert float(plan.cost_per_hour or 0) <= float(chat_plan(minimize="Cost").cost_per_hour or 0)


def test_a_prior_claims_no_bound_and_says_so() -> None:
    plan = plan_cascade(PlanningInputs(cascade(objective={"minQuality": "0.8"})))
    assert plan.quality.source == "Prior"
    assert plan.quality.lower_bound is None
    assert float(plan.quality.mean) >= 0.8
    assert any("prior" in warning for warning in plan.warnings)


def test_answers_of_one_token_are_planned() -> None:
    manifest = cascade(
        models=("small", "medium"),
        gpus=4,
        objective={"minQuality": "0.7"},
        workload={"outputTokens": {"mean": 1, "p95": 1}},
    )
    plan = plan_cascade(PlanningInputs(manifest))
    assert plan.live_stages[0].name == "small"
    assert plan.ladder[-1].max_requests_per_second > 10
    assert 0 < plan.latency.p50_ms < 1000


def test_inputs_that_do_not_belong_together_are_refused() -> None:
    two = cascade(models=("small", "large"))
    with pytest.raises(InputError, match="of the models small, medium, large, the manifest has small, large"):
        plan_cascade(PlanningInputs(two, TABLE))
    with pytest.raises(InputError, match=r"its scores are 'logprob-mean', spec\.routing\.scorer is 'logprob-min'"):
        plan_cascade(PlanningInputs(cascade(routing={"scorer": {"statistic": "Minimum"}}), TABLE))
    with pytest.raises(InputError, match="available GPUs name the pool a100; the manifest has h100"):
        plan_cascade(PlanningInputs(cascade(), TABLE, available_gpus={"a100": 4}))
    with pytest.raises(InputError, match="requests per second are -1"):
        plan_cascade(PlanningInputs(cascade(), TABLE, requests_per_second=-1.0))


def test_the_best_plan_so_far_is_returned_at_the_deadline() -> None:
    plan = plan_cascade(PlanningInputs(cascade(), TABLE), deadline_seconds=0.0)
    assert plan.solver.status == "TimedOut"
    assert any("deadline" in warning for warning in plan.warnings)
    assert plan.quality.lower_bound is not None
    assert plan.quality.lower_bound >= 0.85


def test_a_deadline_is_no_verdict_on_what_is_feasible() -> None:
    tight = {"minimize": "Cost", "targets": [{"metric": "EndToEnd", "percentile": 95, "milliseconds": 6800}]}
    manifest = cascade(rate="6", objective={"minQuality": "0.8", **tight})
    assert plan_cascade(PlanningInputs(manifest, TABLE)).latency.p95_ms <= 6800
    with pytest.raises(PlanningTimeoutError, match=r"within the latency targets was found in 0 s; there may"):
        plan_cascade(PlanningInputs(manifest, TABLE), deadline_seconds=0.0)


def test_progress_is_told_in_order() -> None:
    told: list[tuple[str, float]] = []
    plan_cascade(PlanningInputs(cascade(), TABLE), progress=lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def histogram(values: np.ndarray, edges: str) -> Histogram:
    bounds = {"tokens": TOKEN_EDGES, "score": SCORE_EDGES}[edges]
    counts = np.bincount(np.searchsorted(bounds, values), minlength=len(bounds) + 1)
    return Histogram(edges=edges, counts=[int(c) for c in counts], sum=float(values.sum()))  # type: ignore[arg-type]


def test_a_re_plan_for_harder_requests_escalates_more() -> None:
    manifest = cascade(objective={"minQuality": "0.82"}, model_fields={"small": {"minReplicas": 1}})
    table = probit_table(3000, 7)
    before = plan_cascade(PlanningInputs(manifest, table))
    random = np.random.default_rng(0)
    harder = table.scores[random.random(len(table)) < (1.15 - table.scores[:, 0]), 0]
    seen = ObservedDemand(
        14.0, "small", histogram(random.uniform(800, 1500, 4000), "tokens"),
        histogram(random.uniform(100, 400, 4000), "tokens"), histogram(harder, "score"),
    )  # fmt: skip
    after = plan_cascade(PlanningInputs(manifest, table, observed=seen))
    assert after.demand.source == "Observed"
    assert after.demand.requests_per_second == 14.0
    assert after.plan_id != before.plan_id
    own, later = before.stages[0], after.stages[0]
    assert own.gpus
    assert later.gpus
    escalated = [sum(stage.reach for stage in plan.stages[1:]) for plan in (before, after)]
    assert escalated[1] > escalated[0]
    assert after.quality.lower_bound is not None
    assert after.quality.lower_bound >= 0.82


LEVEL = "its p95 is 1.68 s against 1.67 s, within 1%"


@pytest.mark.parametrize(
    ("seconds", "costs", "gpus", "cheapest", "words"),
    [
        ((9.8, 7.1), (10.0, 20.0), (4, 8), False, "its p95 is 9.8 s against 7.1 s"),
        ((0.068, 0.054), (1.0, 1.0), (4, 4), False, "its p95 is 0.07 s against 0.05 s"),
        (
            (1.68, 1.67),
            (3.0, 2.0),
            (4, 4),
            False,
            f"{LEVEL}; it costs 3.00 an hour against 2.00",
        ),
        (
            (1.68, 1.67),
            (2.0, 2.0),
            (5, 4),
            False,
            f"{LEVEL}; it takes 5 GPUs against 4",
        ),
        ((1.0, 2.0), (3.0, 2.0), (4, 4), True, "it costs 3.00 an hour against 2.00"),
        ((1.74, 1.66), (1.0, 1.0), (1, 1), True, "it costs as much; its p95 is 1.74 s against 1.66 s"),
    ],
)
def test_an_alternative_is_told_by_what_decided(
    seconds: tuple[float, float], costs: tuple[float, float], gpus: tuple[int, int], cheapest: bool, words: str
) -> None:
    assert what_decided("p95", seconds, costs, gpus, cheapest=cheapest) == words


def test_the_prediction_is_the_simulation_of_the_traffic() -> None:
    traffic = traffic_of(PlanningInputs(cascade(), TABLE))
    plan = chat_plan()
    assert len(traffic.sample) >= 10_000
    assert plan.demand.input_tokens_mean == pytest.approx(1155, rel=0.01)
    stages = [k for k, stage in enumerate(plan.stages) if stage.gpus]
    thresholds = [float(plan.thresholds[k] or 0) for k in stages[:-1]]
    answered = exit_stages(stages, thresholds, traffic.sample.scores)
    for k in stages:
        assert plan.stages[k].reach == pytest.approx((answered >= k).mean())


def test_real_traffic_and_real_results_make_a_plan() -> None:
    names = dict(
        zip(
            MODELS,
            ("Meta-Llama-3.1-8B-Instruct", "Meta-Llama-3.1-70B-Instruct", "Llama-3.1-405B-Instruct-Turbo"),
            strict=True,
        )
    )
    with data_file("quality", "zeroeval_gsm8k.csv").open() as file:
        table, _ = parse_calibration(
            import_zeroeval(file, names, auroc=0.8), models=list(MODELS), scorer="logprob-mean"
        )
    with data_file("traces", "AzureLLMInferenceTrace_conv.csv").open("rb") as raw:
        trace, problems = parse_trace(raw)
    assert len(trace) + len(problems) == 19_366
    assert trace.requests_per_second == pytest.approx(5.53, abs=0.02)
    plan = plan_cascade(PlanningInputs(cascade(objective={"minQuality": "0.92"}), table, trace))
    check(plan, table, 32, 0.92)
    assert plan.demand.source == "Trace"
    assert plan.demand.input_tokens_mean == pytest.approx(1155, rel=0.02)


def test_replicas_hold_the_longest_requests() -> None:
    plan = chat_plan()
    shapes = {(g.tensor_parallel, g.pipeline_parallel) for s in plan.live_stages[1:] for g in s.replicas}
    assert (2, 1) not in shapes  # 70B on two H100 fits, with a cache of some 4,500 tokens
    long = cascade(gpus=2, models=("medium",), rate="0.1", objective={"minQuality": "0.5"})
    with pytest.raises(InfeasibleError, match="need at least 4 GPUs of pool h100, has 2"):
        plan_cascade(PlanningInputs(long, probit_table(300, 1, models=("medium",), accuracies=(0.86,))))
