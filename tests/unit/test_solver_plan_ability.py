"""Requests that a stage cannot take: where they come from, and that plans send them on as the routers do."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.errors import InfeasibleError
from cascadia_api.plan import Plan
from cascadia_local.expectation import expect
from cascadia_solver.ability import able_models, drawn_needs, needs_mask, needs_shares
from cascadia_solver.calibration import CalibrationSet, parse_calibration
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.flat_calibration import lines_of_csv
from cascadia_solver.inputs import PlanningInputs, traffic_of
from cascadia_solver.planner import plan_cascade
from cascadia_solver.rethreshold import replan_thresholds
from cascadia_solver.shapes import replica_options
from cascadia_solver.simulation import StageReplicas, simulate_cascade
from cascadia_solver.trace import Trace, parse_trace
from tests.support.planning import cascade, probit_table

SMALL = {"source": {"huggingFace": {"repo": "meta-llama/Meta-Llama-3-8B-Instruct"}}}
"""Takes 8,192 tokens and no tools, the larger ones of the example 131,072 and tools."""


def mixed_cascade(**fields: Any) -> CascadeDeployment:
    return cascade(models=("small", "medium"), model_fields={"small": SMALL}, **fields)


def table(requests: int = 1500) -> CalibrationSet:
    return probit_table(requests, 7, accuracies=(0.72, 0.86), models=("small", "medium"))


def long_trace(share: float, needs: np.ndarray | None = None) -> Trace:
    """10 requests/s of which a share has prompts of 9,000 tokens."""
    random = np.random.default_rng(3)
    inputs = np.where(random.random(10_000) < share, 9_000.0, 800.0)
    outputs = np.maximum(1, np.rint(random.lognormal(5.2, 0.4, 10_000)))
    return Trace(np.arange(10_000) / 10, inputs, outputs, needs)


def test_needs_are_words_of_the_routers() -> None:
    assert needs_mask(["tools", "audio"]) == 5
    with pytest.raises(ValueError, match="needs names 'video'; a request may need tools, images, audio, json-schema"):
        needs_mask(["video"])
    drawn = drawn_needs({"tools": 0.25, "json-schema": 0.5}, 1000, np.random.default_rng(0))
    assert needs_shares(drawn) == {"tools": 0.25, "json-schema": 0.5}
    both = ((drawn & 1) > 0) & ((drawn & 8) > 0)
    assert 0.09 < both.mean() < 0.16


def test_a_request_is_taken_if_it_fits_the_window_and_asks_for_nothing_more() -> None:
    facts = [model_facts("meta-llama/Meta-Llama-3-8B-Instruct"), model_facts("meta-llama/Llama-3.1-70B-Instruct")]
    inputs, outputs = np.array([8000.0, 8000.0, 100.0]), np.array([[192.0, 9.0], [193.0, 9.0], [1.0, 1.0]])
    able = able_models(facts, inputs, outputs, np.array([0, 0, needs_mask(["tools"])], dtype=np.uint8))
    assert able is not None
    assert able.tolist() == [[True, True], [False, True], [False, True]]
    assert able_models(facts, inputs[:1], outputs[:1], None) is None


def test_sets_and_traces_may_say_what_requests_need() -> None:
    answer = {"scores": {"logprob-mean": 0.5}, "quality": 1.0, "outputTokens": 5}
    rows = [
        {
            "id": str(n),
            "inputTokens": 9,
            "answers": {"a": answer | {"scores": {"logprob-mean": n / 100}, "quality": n % 2}, "b": answer},
        }
        for n in range(60)
    ]
    plain, _ = parse_calibration([json.dumps(r) for r in rows], models=["a", "b"], scorer="logprob-mean")
    assert plain.needs is None
    rows[3]["needs"], rows[5]["needs"] = ["images", "tools"], ["telepathy"]
    some, problems = parse_calibration([json.dumps(r) for r in rows], models=["a", "b"], scorer="logprob-mean")
    assert some.needs is not None
    assert (some.needs[3], some.needs.sum()) == (3, 3)
    assert [(p.line, "telepathy" in p.message) for p in problems] == [(6, True)]
    assert replace(some, needs=None).digest != some.digest
    head = "id,inputTokens,needs,answers.a.quality,answers.a.outputTokens,answers.a.scores.logprob-mean"
    lines = lines_of_csv([head, *(f"{n},9,{'tools audio' if n == 7 else ''},{n % 2},5,{n / 100}" for n in range(60))])
    flat, problems = parse_calibration(lines, models=["a"], scorer="logprob-mean")
    assert not problems
    assert flat.needs is not None
    assert (flat.needs[7], flat.needs.sum()) == (5, 5)
    trace, _ = parse_trace(["TIMESTAMP,ContextTokens,GeneratedTokens,needs", "0,5,6,", "1000,5,6,tools images"])
    assert trace.needs is not None
    assert trace.needs.tolist() == [0, 3]
    record = {"timestampMs": 0, "inputTokens": 5, "outputTokens": 6}
    trace, _ = parse_trace([json.dumps(record), json.dumps(record | {"timestampMs": 9, "needs": ["json-schema"]})])
    assert trace.needs is not None
    assert trace.needs.tolist() == [0, 8]


def passed_by(plan: Plan) -> float:
    return plan.stages[0].skipped


def test_long_requests_pass_the_small_window_by() -> None:
    inputs = PlanningInputs(mixed_cascade(objective={"minQuality": "0.75"}), table(), long_trace(0.2))
    plan = plan_cascade(inputs)
    small, medium = plan.stages
    assert small.gpus
    assert small.skipped == pytest.approx(0.2, abs=0.02)
    assert small.reach == pytest.approx(1 - small.skipped)
    assert medium.reach >= small.skipped
    assert medium.skipped == 0
    assert plan.warnings == []
    # The simulation sends them past it: what a plan says is what an independent replay of it finds.
    traffic = traffic_of(inputs)
    found = expect(inputs.cascade, plan, traffic.sample, inputs.sources)
    assert found.reach == pytest.approx({"small": small.reach, "medium": medium.reach})
    assert found.end_to_end_ms[95] == pytest.approx(plan.latency.p95_ms, rel=0.02)
    # Without the window nobody would pay for them at the second stage.
    blind = plan_cascade(replace(inputs, trace=long_trace(0.0)))
    assert blind.stages[0].skipped == 0
    assert blind.stages[1].reach < medium.reach


def test_shares_of_the_manifest_pass_by_and_are_in_quality_and_its_bound() -> None:
    floor = {"minQuality": "0.78"}
    plain = plan_cascade(PlanningInputs(mixed_cascade(objective=floor), table()))
    tools = mixed_cascade(objective=floor, workload={"needs": {"tools": "0.4", "jsonSchema": "0.1"}})
    inputs = PlanningInputs(tools, table())
    plan = plan_cascade(inputs)
    assert plan.plan_id != plain.plan_id
    assert plan.stages[0].skipped == pytest.approx(0.4, abs=0.01)
    assert plan.quality.lower_bound is not None
    assert plan.quality.lower_bound >= 0.78
    # 40 % get the better model's answer anyway, so the others need less of it for the same floor.
    rows = traffic_of(inputs).table
    assert rows.able is not None
    skipping = ~rows.able[:, 0]
    threshold = plan.thresholds[0]
    small = ~skipping & (rows.scores[:, 0] >= (threshold if threshold is not None else -np.inf))
    assert plan.quality.mean == pytest.approx(np.where(small, rows.quality[:, 0], rows.quality[:, 1]).mean())
    again = replan_thresholds(inputs, plan)
    assert again.stages[0].reach == pytest.approx(0.6, abs=0.02)
    assert again.stages[0].skipped == pytest.approx(0.4, abs=0.02)


def test_what_nobody_can_take_is_refused_and_worth_nothing() -> None:
    trace = long_trace(0.0, needs_of(0.1, "images"))
    with pytest.raises(InfeasibleError, match=r"minQuality 0.85 is out of reach.*; 10.0% of .* no model can"):
        plan_cascade(PlanningInputs(mixed_cascade(), table(), trace))
    plan = plan_cascade(PlanningInputs(mixed_cascade(objective={"minQuality": "0.7"}), table(), trace))
    assert plan.live_stages[-1].skipped == pytest.approx(0.1, abs=0.01)
    assert "10.00% of the requests will be refused and count as worth nothing" in plan.warnings[0]


def needs_of(share: float, word: str) -> np.ndarray:
    return drawn_needs({word: share}, 10_000, np.random.default_rng(1))


def test_quality_is_of_the_requests_that_come_not_of_the_sets_shorter_ones() -> None:
    # The set's rows fit every window; 30 % of the traffic fits none, and its answers are worth nothing.
    trace = long_trace(0.3)
    trace = replace(trace, input_tokens=np.where(trace.input_tokens > 1000, 140_000.0, trace.input_tokens))
    rows = traffic_of(PlanningInputs(mixed_cascade(), table(), trace)).table
    assert rows.able is not None
    assert rows.able.any(axis=1).mean() == pytest.approx(0.7, abs=0.03)
    with pytest.raises(InfeasibleError, match=r"minQuality 0.8 is out of reach.*no model can take"):
        plan_cascade(PlanningInputs(mixed_cascade(objective={"minQuality": "0.8"}), table(), trace))
    plan = plan_cascade(PlanningInputs(mixed_cascade(objective={"minQuality": "0.5"}), table(), trace))
    assert plan.quality.mean < 0.7 * 0.9
    large = traffic_of(PlanningInputs(mixed_cascade(), table(30_000), trace)).table  # more rows than requests
    assert large.able is not None
    assert large.able.any(axis=1).mean() == pytest.approx(0.7, abs=0.03)


def test_what_is_refused_at_once_does_not_pass_for_a_fast_answer() -> None:
    trace = long_trace(0.6)
    trace = replace(trace, input_tokens=np.where(trace.input_tokens > 1000, 140_000.0, trace.input_tokens))
    manifest = cascade(models=("medium",), objective={"minQuality": "0.2"})
    plan = plan_cascade(PlanningInputs(manifest, probit_table(300, 7, accuracies=(0.86,), models=("medium",)), trace))
    (stage,) = plan.live_stages
    assert stage.skipped == pytest.approx(0.6, abs=0.02)
    assert stage.latency is not None
    assert plan.latency.p50_ms == stage.latency.end_to_end.p50_ms > 0
    assert plan.latency.p95_ms == stage.p95_ms


def test_a_prior_counts_skips_by_the_lengths_of_the_traffic() -> None:
    inputs = PlanningInputs(mixed_cascade(objective={"minQuality": "0.75"}), None, long_trace(0.3))
    rows = traffic_of(inputs).table
    assert rows.able is not None
    assert rows.able.mean(axis=0) == pytest.approx([0.7, 1.0], abs=0.03)
    assert plan_cascade(inputs).stages[0].skipped == pytest.approx(0.3, abs=0.02)


def test_a_model_that_can_take_nothing_is_left_out() -> None:
    roomy = mixed_cascade(gpus=64, objective={"minQuality": "0.8"})
    plan = plan_cascade(PlanningInputs(roomy, table(), long_trace(1.0)))
    assert [stage.gpus > 0 for stage in plan.stages] == [False, True]
    assert "planned without small: meta-llama/Meta-Llama-3-8B-Instruct: it can take none" in plan.warnings[0]


def test_the_simulation_passes_stages_by_and_refuses_at_once() -> None:
    facts = model_facts("meta-llama/Llama-3.1-8B-Instruct")
    step = replica_options(facts, gpu_facts("H100-SXM-80GB"), "bf16", max_gpus=1)[0].step
    arrivals = np.arange(4) * 100.0
    able = np.array([[True, True], [False, True], [True, False], [False, False]])
    exits = np.array([1, 1, 1, 1])
    inputs, outputs = np.full(4, 500.0), np.full((4, 2), 50.0)
    both = [StageReplicas([step], [1.0])] * 2
    times = simulate_cascade(both, arrivals, inputs, outputs, exits, able=able)
    alone = simulate_cascade(both, arrivals[:1], inputs[:1], outputs[:1], np.array([0]))
    once = float(alone.end_to_end[0])
    assert times.end_to_end == pytest.approx([2 * once + 0.002, once, once + 0.002, 0.0])
    assert [len(seconds) for seconds in times.stage_service] == [2, 2]
    assert not any(times.saturated)
