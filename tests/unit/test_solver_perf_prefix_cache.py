"""Hits of the prefix cache: what they save in predictions, plans and engines, and what they do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadia_api.errors import InputError
from cascadia_solver.batcher import Batcher
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.closed_loop import closed_loop
from cascadia_solver.engine_settings import ConfiguredSource, EngineSettings, with_settings
from cascadia_solver.engine_window import EngineWindow, slowdown
from cascadia_solver.evaluation import path_times
from cascadia_solver.inputs import PlanningInputs, traffic_of
from cascadia_solver.lengths import length_profile
from cascadia_solver.operating_point import load_curves
from cascadia_solver.planner import plan_cascade
from cascadia_solver.prediction import Prediction, predict
from cascadia_solver.roofline import Roofline, Shape, step_model
from cascadia_solver.simulation import simulate_replica
from cascadia_solver.standing import simulate_plan
from cascadia_solver.steptime import StepModel, cached_tokens, step_seconds
from tests.support.planning import cascade, probit_table

H100 = gpu_facts("H100-SXM-80GB")
L8, L70 = model_facts("meta-llama/Llama-3.1-8B-Instruct"), model_facts("meta-llama/Llama-3.1-70B-Instruct")
STEP = step_model(L8, H100, Shape(1, 1), "bf16")


def hits(share: float) -> StepModel:
    return STEP._replace(prefix_hit=share)


def predicted(percent: float, **load: float) -> Prediction:
    return predict(L70, H100, Shape(4, 1), "bf16", 4096, 211, prefix_cache_hit=percent, **load)  # type: ignore[arg-type]


def planning_inputs(**workload: int) -> PlanningInputs:
    manifest = cascade(
        models=("small", "medium"),
        gpus=16,
        rate="4",
        objective={"minQuality": "0.75"},
        model_fields={name: {"minReplicas": 1} for name in ("small", "medium")},
        workload=dict(workload),
    )
    return PlanningInputs(manifest, probit_table(600, 7, models=("small", "medium"), accuracies=(0.72, 0.86)))


@given(share=st.floats(0.0, 1.0), prompt=st.integers(1, 200_000))
def test_the_last_token_of_a_prompt_is_always_computed(share: float, prompt: int) -> None:
    cached = cached_tokens(hits(share), float(prompt))
    assert 0 <= cached <= min(share * prompt, prompt - 1)
    assert cached >= min(share * prompt, prompt) - 1


def test_all_hits_leave_one_token_that_attends_to_the_whole_prompt() -> None:
    first, finish = simulate_replica(hits(1.0), [0.0], [3000], [1])
    one = STEP.first_token_seconds + step_seconds(STEP, 1.0, 3000.0, 0.0, 0.0)
    assert first[0] == finish[0] == pytest.approx(one, rel=1e-12)
    assert one < 0.5 * simulate_replica(STEP, [0.0], [3000], [1])[0][0]


@pytest.mark.parametrize("load", [{"rate": 2.0}, {"concurrency": 8}], ids=["rate", "clients"])
def test_latencies_fall_with_hits(load: dict[str, float]) -> None:
    made = [predicted(percent, **load) for percent in (0, 30, 60, 100)]
    for name in ("ttft", "e2e"):
        for percentile in ("p50_ms", "p95_ms"):
            falling = [getattr(getattr(each, name), percentile) for each in made]
            assert all(np.diff(falling) < 0), (name, percentile, falling)
    assert len({each.kv_capacity_tokens for each in made}) == 1
    assert made[1].extrapolates == ("30 % of prompt tokens from the prefix cache, the same share of every prompt",)


def test_no_hits_change_nothing() -> None:
    assert with_settings(Roofline(), EngineSettings()) == Roofline()
    assert predicted(0, rate=2.0) == predict(L70, H100, Shape(4, 1), "bf16", 4096, 211, rate=2.0)
    without, zero = planning_inputs(), planning_inputs(prefixCacheHitPercent=0)
    assert all(source is zero.cost for source in zero.sources)
    assert plan_cascade(zero).plan_id == plan_cascade(without).plan_id


@pytest.mark.parametrize("percent", [-1.0, 100.5, float("nan")])
def test_a_share_beyond_all_is_refused(percent: float) -> None:
    with pytest.raises(InputError, match=r"prefix-cache-hit: .* is not between 0 and 100 %"):
        predicted(percent, rate=2.0)


def test_cached_tokens_take_their_room_in_the_cache() -> None:
    held = []
    for share in (0.0, 0.8):
        batcher = Batcher(hits(share))
        batcher.submit("a", 0.0, 5000, 100)
        batcher.next_event(0.0)
        batcher.advance(1e-6)
        held.append(batcher.kv_tokens)
    assert held == [5060, 5060]


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_closed_forms_know_the_hits(share: float) -> None:
    step, profile = hits(share), length_profile([2000], [200])
    curves, plain = load_curves([step], [profile], 50), load_curves([STEP], [profile], 50)
    _, alone = simulate_replica(step, [0.0], [2000], [200])
    assert curves.latency[0, 0, 0] == pytest.approx(alone[0], rel=0.02)
    assert closed_loop(step, 1, 2000, 200).end_to_end == pytest.approx(alone[0], rel=0.01)
    # At a third of what the replica carries, the curve is near the simulation; it carries more than without hits.
    rate = curves.rate[0, 0, -1] / 3
    arrivals = np.cumsum(np.random.default_rng(5).exponential(1.0 / rate, 4000))
    _, finish = simulate_replica(step, arrivals, np.full(4000, 2000), np.full(4000, 200))
    expected = np.interp(rate, curves.rate[0, 0], curves.latency[0, 0])
    assert expected == pytest.approx(np.median(finish - arrivals), rel=0.1)
    assert curves.rate[0, 0, -1] > 1.1 * plain.rate[0, 0, -1]


def test_hits_that_are_planned_with_do_not_pass_for_a_faster_engine() -> None:
    window = EngineWindow(2.0, 4000.0, 200.0, 3.0, 0.1, 0.012)
    with_hits, without = slowdown(hits(0.7), window), slowdown(STEP, window)
    assert with_hits is not None
    assert without is not None
    assert with_hits.prefill > 1.5 * without.prefill


def test_plans_are_made_and_replayed_with_the_manifests_hits() -> None:
    given_inputs, none = planning_inputs(prefixCacheHitPercent=60), planning_inputs()
    assert set(given_inputs.sources) == {ConfiguredSource(Roofline(), EngineSettings(60))}
    plan, plain = plan_cascade(given_inputs), plan_cascade(none)
    assert plan.plan_id != plain.plan_id
    assert plan.latency.time_to_first_token_p95_ms < plain.latency.time_to_first_token_p95_ms
    assert plan.latency.p95_ms < plain.latency.p95_ms
    traffic = traffic_of(given_inputs)
    times, exits = simulate_plan(given_inputs.cascade.spec, traffic.facts, plan, traffic.sample, given_inputs.sources)
    seen = path_times(times, traffic.sample, exits).percentile(95, "EndToEnd") * 1e3
    assert plan.latency.p95_ms == pytest.approx(seen, rel=0.005)
