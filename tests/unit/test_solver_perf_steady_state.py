"""Cascades at work: simulated as if traffic had come before and goes on, whole or in slices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.roofline import Shape, step_model
from cascadia_solver.simulation import StageReplicas, StageTimes, simulate_cascade
from cascadia_solver.steady_state import at_work, replica_slice
from cascadia_solver.workload import RequestSample, poisson_arrivals

H100 = gpu_facts("H100-SXM-80GB")
SMALL = step_model(model_facts("meta-llama/Llama-3.1-8B-Instruct"), H100, Shape(1, 1), "bf16")
WIDE = step_model(model_facts("meta-llama/Llama-3.1-8B-Instruct"), H100, Shape(2, 1), "bf16")
MANY = StageReplicas([SMALL] * 40, [1.0] * 40)
FEW = StageReplicas([WIDE] * 12 + [SMALL] * 6, [1.5] * 12 + [1.0] * 6)


def traffic(n: int, rate: float, seed: int = 5) -> tuple[RequestSample, np.ndarray]:
    """Requests of two models and the one that answers each: a third of them the second."""
    random = np.random.default_rng(seed)
    outputs = random.lognormal(5.0, 0.6, (n, 2)).clip(1, 2000).round()
    exits = (random.random(n) < 1 / 3).astype(np.int64)
    sample = RequestSample(
        requests_per_second=rate,
        arrivals=poisson_arrivals(rate, n, random),
        input_tokens=random.lognormal(6.5, 0.8, n).clip(1, 8000).round(),
        output_tokens=outputs,
        scores=np.zeros((n, 2)),
        quality=np.ones((n, 2)),
        row=np.zeros(n, dtype=np.int64),
    )
    return sample, exits


def test_without_time_to_settle_it_is_the_plain_simulation() -> None:
    sample, exits = traffic(600, 20.0)
    times = at_work([MANY, FEW], sample, exits, settle_seconds=0.0)
    plain = simulate_cascade([MANY, FEW], sample.arrivals, sample.input_tokens, sample.output_tokens, exits)
    assert times.end_to_end == pytest.approx(plain.end_to_end)
    for own, wanted in zip(times.stage_service, plain.stage_service, strict=True):
        assert own == pytest.approx(wanted)


def test_margins_load_the_cascade_and_are_not_seen() -> None:
    sample, exits = traffic(900, 60.0)
    given = ([MANY, FEW], sample.arrivals, sample.input_tokens, sample.output_tokens, exits)
    every, inner = simulate_cascade(*given), simulate_cascade(*given, margin=200)
    assert np.array_equal(inner.end_to_end, every.end_to_end[200:700])
    assert np.array_equal(inner.stage_service[0], every.stage_service[0][200:700])
    before = int((exits[:200] == 1).sum())
    later = int((exits[200:700] == 1).sum())
    assert np.array_equal(inner.stage_first[1], every.stage_first[1][before : before + later])


@pytest.mark.parametrize("settle", [10.0, 30.0])
def test_ten_seconds_of_traffic_tell_what_a_minute_of_it_would(settle: float) -> None:
    """At 800 requests/s and latencies of seconds: a start from idle is over before the engines have filled."""
    sample, exits = traffic(8000, 800.0)
    long, long_exits = traffic(48_000, 800.0, seed=6)
    times = simulate_cascade(
        [MANY, FEW], long.arrivals, long.input_tokens, long.output_tokens, long_exits, margin=12_000
    )
    started = simulate_cascade([MANY, FEW], sample.arrivals, sample.input_tokens, sample.output_tokens, exits)
    found = at_work([MANY, FEW], sample, exits, settle_seconds=settle)
    assert len(found.end_to_end) == 8000
    assert [len(times) for times in found.stage_service] == [8000, int(exits.sum())]
    for percentile in (50, 95):
        wanted = np.percentile(times.end_to_end, percentile)
        assert np.percentile(found.end_to_end, percentile) == pytest.approx(wanted, rel=0.07)
        assert np.percentile(started.end_to_end, percentile) < 0.9 * wanted


def test_few_requests_at_a_stage_do_not_crowd_more_than_many_would() -> None:
    """Each of these 200 stands for many: would all of those come with it, chance would crowd the stage as much more."""
    fast, rare = StageReplicas([SMALL] * 80, [1.0] * 80), StageReplicas([SMALL] * 10, [1.0] * 10)
    slow = []
    for seed in range(6):
        sample, _ = traffic(1500, 1600.0, seed)
        exits = (np.random.default_rng(seed).random(1500) < 0.14).astype(np.int64)
        times = at_work([fast, rare], sample, exits, settle_seconds=60.0)
        assert times.saturated == [False, False]
        slow.append(np.percentile(times.stage_service[1], 95))
    long, _ = traffic(60_000, 1600.0, seed=6)
    exits = (np.random.default_rng(6).random(60_000) < 0.14).astype(np.int64)
    many = simulate_cascade([fast, rare], long.arrivals, long.input_tokens, long.output_tokens, exits, margin=15_000)
    assert np.mean(slow) == pytest.approx(np.percentile(many.stage_service[1], 95), rel=0.35)


@given(
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=3),
    thinning=st.floats(1.0, 50.0),
    weights=st.lists(st.floats(0.1, 10.0), min_size=3, max_size=3),
)
def test_slices_carry_the_load_of_the_whole(counts: list[int], thinning: float, weights: list[float]) -> None:
    steps = [SMALL, WIDE, SMALL._replace(chunk_tokens=4096)]
    kinds = list(zip(steps, weights, counts, strict=False))
    stage = StageReplicas(
        [step for step, _, count in kinds for _ in range(count)],
        [weight for _, weight, count in kinds for _ in range(count)],
    )
    kept, crowd = replica_slice(stage, thinning)
    # Traffic is thinned, then crowded: what each replica gets by its weight is what it gets in the whole.
    assert crowd / thinning / sum(kept.weights) == pytest.approx(1 / sum(stage.weights))
    assert crowd >= 1.0
    assert min(8, len(stage.steps)) <= len(kept.steps) <= len(stage.steps)
    assert len(kept.steps) >= math.floor(len(stage.steps) / thinning)
    assert set(zip(kept.steps, kept.weights, strict=True)) <= set(zip(stage.steps, stage.weights, strict=True))


def test_a_stage_without_replicas_has_no_slice_to_take() -> None:
    assert replica_slice(StageReplicas([], []), 3.0)[0].steps == []


def test_cascades_that_begin_alike_share_what_is_known() -> None:
    sample, exits = traffic(900, 200.0)
    other = StageReplicas([WIDE] * 10, [1.0] * 10)
    known: dict[bytes, StageTimes] = {}
    first = at_work([MANY, FEW], sample, exits, settle_seconds=6.0, known=known)
    assert len(known) == 2
    for second, added in [(FEW, 0), (other, 1), (other, 0)]:
        before = len(known)
        times = at_work([MANY, second], sample, exits, settle_seconds=6.0, known=known)
        assert len(known) - before == added
        anew = at_work([MANY, second], sample, exits, settle_seconds=6.0)
        assert np.array_equal(times.end_to_end, anew.end_to_end)
        assert np.array_equal(times.stage_service[0], first.stage_service[0])
