"""Replica sets: knapsack, split of load, agreement with simulation."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.cascade import TokenLengths
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.knapsack import best_counts, replica_mixes
from cascadia_solver.lengths import length_profile
from cascadia_solver.operating_point import load_curves
from cascadia_solver.parallelism import StageTable, latency_levels, rates_at, useful_options
from cascadia_solver.shapes import replica_options
from cascadia_solver.simulation import StageReplicas, simulate_stage
from cascadia_solver.workload import log_normal_lengths, poisson_arrivals

RANDOM = np.random.default_rng(11)
INPUTS = RANDOM.permutation(log_normal_lengths(TokenLengths(mean=1155, p95=3100), 6000))
OUTPUTS = RANDOM.permutation(log_normal_lengths(TokenLengths(mean=211, p95=500), 6000))
PROFILE = length_profile(INPUTS, OUTPUTS)


@cache
def stage(most_gpus: int = 32, least_replicas: int = 1) -> StageTable:
    options = replica_options(
        model_facts("meta-llama/Llama-3.1-70B-Instruct"), gpu_facts("H100-SXM-80GB"), "bf16", max_gpus=most_gpus
    )
    options = useful_options(options, PROFILE, 95)
    curves = load_curves([option.step for option in options], [PROFILE], 95)
    return StageTable(options, curves, latency_levels([curves]), most_gpus, least_replicas)


def test_useless_shapes_are_dropped_and_useful_ones_kept() -> None:
    shapes = {str(option.shape) for option in stage().options}
    assert {"TP4xPP1", "TP8xPP1"} <= shapes
    assert "TP1xPP8" not in shapes


def test_latency_falls_with_gpus_and_rises_with_the_rate() -> None:
    by_rate = np.stack([stage().latency_by_gpus(0, rate) for rate in (1.0, 4.0, 9.0, 20.0)])
    finite = np.where(np.isfinite(by_rate), by_rate, 1e9)
    assert (np.diff(finite, axis=1) <= 0).all()
    assert (np.diff(finite, axis=0) >= 0).all()
    assert np.isinf(by_rate[3, 4])
    assert np.isinf(by_rate[:, 0]).all()


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(0.2, 40.0), gpus=st.integers(1, 32))
def test_replica_sets_fit_and_share_out_the_rate(rate: float, gpus: int) -> None:
    latency = stage().latency_by_gpus(0, rate)[gpus]
    if not np.isfinite(latency):
        with pytest.raises(ValueError, match="GPUs carry"):
            stage().replicas(0, rate, gpus)
        return
    found = stage().replicas(0, rate, gpus)
    assert found.gpus <= gpus
    assert sum(r * n for r, n in zip(found.rates, found.counts, strict=True)) == pytest.approx(rate)
    assert found.capacity >= rate * (1 - 1e-9)
    # A little slower than the table where a group that would idle was left out.
    assert latency * 0.99 <= found.latency <= latency * 1.15


def test_replicas_of_unlike_shapes_share_odd_numbers_of_gpus() -> None:
    found = stage().replicas(0, 12.0, 12)
    shapes = {str(o.shape): n for o, n in zip(found.options, found.counts, strict=True)}
    assert shapes == {"TP4xPP1": 1, "TP8xPP1": 1}
    slow, fast = found.rates
    assert 0 < slow < fast


@pytest.mark.parametrize("rate", [9.0, 12.0])
def test_unlike_replicas_beat_every_uniform_set_and_an_even_split(rate: float) -> None:
    """On 12 GPUs one TP8 and one TP4 by the plan's weights, simulated, against three TP4, one TP8 and so on."""
    arrivals = poisson_arrivals(rate, len(INPUTS), np.random.default_rng(1))

    def p95(replicas: StageReplicas) -> float:
        times = simulate_stage(replicas, arrivals, INPUTS, OUTPUTS)
        return float(np.quantile(times.finish - arrivals, 0.95))

    found = stage().replicas(0, rate, 12)
    pairs = list(zip(found.options, found.counts, found.rates, strict=True))
    steps = [option.step for option, count, _ in pairs for _ in range(count)]
    mixed = p95(StageReplicas(steps, [r for _, count, r in pairs for _ in range(count)]))
    assert {option.gpus for option in found.options} == {4, 8}
    uniform = [
        p95(StageReplicas([option.step] * (12 // option.gpus), [1.0] * (12 // option.gpus)))
        for option in stage().options
        if option.gpus <= 12
    ]
    assert mixed < min(uniform)
    assert mixed < p95(StageReplicas(steps, [1.0] * len(steps)))


@pytest.mark.parametrize(
    ("rate", "gpus"), [(2.0, 8), (4.0, 8), (6.0, 8), (9.0, 12), (12.0, 12), (12.0, 16), (20.0, 16), (40.0, 32)]
)
def test_estimates_agree_with_simulation_up_to_sixty_percent_of_the_load(rate: float, gpus: int) -> None:
    """Of conversations, one replica or several, alike or not. Beyond, and with long prompts, it takes simulation."""
    found = stage().replicas(0, rate, gpus)
    assert rate <= 0.61 * found.capacity
    steps = [o.step for o, n in zip(found.options, found.counts, strict=True) for _ in range(n)]
    weights = [r for r, n in zip(found.rates, found.counts, strict=True) for _ in range(n)]
    arrivals = poisson_arrivals(rate, len(INPUTS), np.random.default_rng(1))
    times = simulate_stage(StageReplicas(steps, weights), arrivals, INPUTS, OUTPUTS)
    assert not times.saturated
    seconds = times.finish - arrivals
    wait, prefill, decode = found.parts
    estimate = wait + prefill * INPUTS + decode * OUTPUTS
    assert estimate.mean() == pytest.approx(seconds.mean(), rel=0.05)
    for percentile in (50, 90, 95):
        assert np.percentile(estimate, percentile) == pytest.approx(np.percentile(seconds, percentile), rel=0.05)
    # What replicas are compared by is read off classes of lengths, not off each request.
    assert found.latency == pytest.approx(np.percentile(seconds, 95), rel=0.08)


def test_answers_of_one_token_have_operating_points() -> None:
    """As of a classifier: the time of a request is its prompt, whatever little it decodes."""
    profile = length_profile(INPUTS, np.ones_like(OUTPUTS))
    options = useful_options(
        replica_options(
            model_facts("meta-llama/Llama-3.1-8B-Instruct"), gpu_facts("H100-SXM-80GB"), "bf16", max_gpus=2
        ),
        profile,
        95,
    )
    curves = load_curves([option.step for option in options], [profile], 95)
    assert (curves.rate[..., -1] > 0).all()
    table = StageTable(options, curves, latency_levels([curves]), 1, 1)
    for load in (0.1, 0.8):
        rate = load * float(curves.rate[0, 0, -1])
        arrivals = poisson_arrivals(rate, len(INPUTS), np.random.default_rng(1))
        times = simulate_stage(StageReplicas([options[0].step], [1.0]), arrivals, INPUTS, np.ones_like(OUTPUTS))
        assert not times.saturated
        if load < 0.5:
            seconds = float(np.percentile(times.finish - arrivals, 95))
            assert table.replicas(0, rate, 1).latency == pytest.approx(seconds, rel=0.15)


def test_least_replicas_are_kept() -> None:
    table = stage(32, 3)
    latency = table.latency_by_gpus(0, 5.0)
    assert np.isinf(latency[:6]).all()
    for gpus in (12, 20, 32):
        assert sum(table.replicas(0, 5.0, gpus).counts) >= 3


@settings(max_examples=60, deadline=None)
@given(
    values=st.dictionaries(st.sampled_from([1, 2, 4, 8]), st.floats(0, 10), min_size=1, max_size=3),
    gpus=st.integers(1, 14),
    least=st.integers(1, 3),
)
def test_the_knapsack_equals_brute_force(values: dict[int, float], gpus: int, least: int) -> None:
    sizes = sorted(values)
    best = -np.inf
    for counts in product(*(range(gpus // size + 1) for size in sizes)):
        if sum(n * s for n, s in zip(counts, sizes, strict=True)) <= gpus and sum(counts) >= least:
            best = max(best, sum(n * values[s] for n, s in zip(counts, sizes, strict=True)))
    if not np.isfinite(best):
        return
    found = best_counts(values, gpus, least)
    assert sum(size * n for size, n in found.items()) <= gpus
    assert sum(found.values()) >= least
    assert sum(values[size] * n for size, n in found.items()) == pytest.approx(best)


def test_the_gpus_needed_are_the_fewest_that_carry_the_rate() -> None:
    table = stage(32, 2)
    rates = np.array([0.0, 0.3, 5.0, 17.0, 1e6])
    needed = table.gpus_needed(0, rates)
    for level, row in enumerate(needed):
        carried = table.carried[:, 0, level]
        for rate, gpus in zip(rates, row, strict=True):
            enough = np.flatnonzero(carried >= rate)
            assert gpus == (enough[0] if len(enough) else len(carried))


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.sampled_from([1, 2, 4, 8, 16]), min_size=1, max_size=5), gpus=st.integers(1, 200))
def test_mixes_of_replicas_fill_the_gpus(sizes: list[int], gpus: int) -> None:
    mixes = replica_mixes(tuple(sizes), gpus)
    used = mixes @ np.array(sizes)
    assert (used <= gpus).all()
    assert (gpus - used < min(sizes)).all()
    assert len(np.unique(mixes, axis=0)) == len(mixes)
    for place, size in enumerate(sizes):
        if gpus >= size and gpus % size < min(sizes):  # of one shape alone
            assert (mixes[:, place] == gpus // size)[np.delete(mixes, place, axis=1).sum(axis=1) == 0].any()


@pytest.mark.parametrize("gpus", [16, 24, 32])
def test_alternatives_carry_the_rate_and_the_first_is_the_best_set(gpus: int) -> None:
    table = stage(32, 2)
    rate = 0.6 * float(table.carried[gpus, 0, -1])
    sets = table.alternatives(0, rate, gpus, 5)
    assert len({(s.options, s.counts) for s in sets}) == len(sets) > 1
    assert all(s.gpus <= gpus and s.capacity >= rate and sum(s.counts) >= 2 for s in sets)
    assert all(sum(n * r for n, r in zip(s.counts, s.rates, strict=True)) == pytest.approx(rate) for s in sets)
    assert sets[0].latency == pytest.approx(table.replicas(0, rate, gpus).latency, rel=0.02)
    assert [s.latency for s in sets] == sorted(s.latency for s in sets)


def test_rates_and_parts_between_operating_points_are_numpys_interpolation() -> None:
    options = stage().options
    shorter = length_profile(INPUTS[:3000] / 2, OUTPUTS[:3000] / 2)
    curves = load_curves([option.step for option in options], [PROFILE, shorter], 95)
    levels = latency_levels([curves])
    rates = rates_at(curves, levels)
    for p, r in np.ndindex(*rates.shape[:2]):
        wanted = np.interp(levels, curves.latency[p, r], curves.rate[p, r], left=0.0)
        assert np.array_equal(rates[p, r], wanted)
    table = StageTable(options, curves, levels, 8, 1)
    densest = (rates / np.array([option.gpus for option in options])[None, :, None]).argmax(axis=1)
    for p, level in np.ndindex(*densest.shape):
        r = densest[p, level]
        wanted = [np.interp(rates[p, r, level], curves.rate[p, r], curves.parts[p, r, :, k]) for k in range(3)]
        assert np.array_equal(table.parts[p, level], wanted)
