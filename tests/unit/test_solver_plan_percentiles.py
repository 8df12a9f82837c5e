"""Percentiles in plans: of each metric, along the path and of each stage, with the scorer's time."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from cascadia_api.plan import Percentiles, Plan
from cascadia_solver.evaluation import path_times
from cascadia_solver.inputs import PlanningInputs, traffic_of
from cascadia_solver.planner import plan_cascade
from cascadia_solver.standing import simulate_plan
from tests.support.planning import cascade, probit_table

TABLE = probit_table(600, 7)
LIVE = {name: {"minReplicas": 1} for name in ("small", "medium")}


def inputs(scorer: dict[str, Any] | None = None, **objective: Any) -> PlanningInputs:
    manifest = cascade(
        models=("small", "medium"),
        gpus=16,
        rate="4",
        objective={"minQuality": "0.75", **objective},
        routing={"scorer": scorer or {"type": "LogProb"}},
        model_fields=LIVE,
    )
    table = probit_table(600, 7, models=("small", "medium"), accuracies=(0.72, 0.86))
    return PlanningInputs(manifest, table)


@cache
def plan() -> Plan:
    return plan_cascade(inputs())


def figures(of: Percentiles | None) -> list[float]:
    assert of is not None
    return [of.p50_ms, of.p90_ms, of.p95_ms, of.p99_ms]


def test_every_metric_has_every_percentile_along_the_path_and_of_each_stage() -> None:
    latency = plan().latency
    path = [figures(latency.time_to_first_token), figures(latency.time_per_output_token)]
    stages = []
    for stage in plan().live_stages:
        assert stage.latency is not None
        of = stage.latency
        stages += [figures(of.end_to_end), figures(of.time_to_first_token), figures(of.time_per_output_token)]
        assert of.end_to_end.p95_ms == stage.p95_ms
        assert all(np.array(figures(of.time_to_first_token)) <= figures(of.end_to_end))
        assert of.time_per_output_token.p50_ms > 0
    assert all(sorted(of) == of for of in [*path, *stages])
    assert latency.time_to_first_token_p95_ms == path[0][2]
    # Of answers that are held back, clients see the first token last; the largest model's stream.
    first = plan().live_stages[0]
    assert first.latency is not None
    assert latency.time_to_first_token is not None
    assert latency.time_to_first_token.p50_ms > first.latency.time_to_first_token.p50_ms
    assert Plan.model_validate(plan().for_json()) == plan()


@pytest.mark.parametrize(("metric", "field"), [("TimeToFirstToken", "time_to_first_token"), ("EndToEnd", "")])
def test_they_are_those_of_an_independent_simulation(metric: str, field: str) -> None:
    given = inputs()
    traffic = traffic_of(given)
    settle = plan().latency.p95_ms / 1e3
    times, exits = simulate_plan(
        given.cascade.spec, traffic.facts, plan(), traffic.sample, given.sources, settle_seconds=settle
    )
    seen = path_times(times, traffic.sample, exits)
    wanted = getattr(plan().latency, field) if field else plan().latency
    for percentile in (50, 90, 95, 99):
        assert seen.percentile(percentile, metric) * 1e3 == pytest.approx(
            getattr(wanted, f"p{percentile}_ms"), rel=0.005
        )


def test_the_scorers_time_is_part_of_the_path_and_not_of_a_stage() -> None:
    slow = inputs({"type": "LogProb", "latencyMs": 700})
    assert traffic_of(slow).sample.scorer_seconds == 0.7
    traffic, quick = traffic_of(slow), traffic_of(inputs())
    found = []
    for sample in (quick.sample, traffic.sample):
        times, exits = simulate_plan(slow.cascade.spec, traffic.facts, plan(), sample, slow.sources)
        found.append((path_times(times, sample, exits), exits, times))
    (before, exits, plain), (after, _, scored) = found
    accepted = exits == 0
    assert after.end_to_end[accepted] - before.end_to_end[accepted] == pytest.approx(0.7)
    assert after.first_token[accepted] - before.first_token[accepted] == pytest.approx(0.7)
    assert scored.stage_service[0] == pytest.approx(plain.stage_service[0])
    anew = plan_cascade(slow)
    assert anew.plan_id != plan().plan_id
    assert anew.latency.p50_ms > plan().latency.p50_ms + 600
