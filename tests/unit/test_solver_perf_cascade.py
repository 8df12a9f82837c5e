"""Stages and cascades in simulation: conservation, order, skipping, saturation."""

from __future__ import annotations

import numpy as np
import pytest

from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.roofline import Shape, step_model
from cascadia_solver.simulation import StageReplicas, simulate_cascade, simulate_replica, simulate_stage

H100 = gpu_facts("H100-SXM-80GB")
SMALL = step_model(model_facts("meta-llama/Llama-3.1-8B-Instruct"), H100, Shape(1, 1), "bf16")
LARGE = step_model(model_facts("meta-llama/Llama-3.1-70B-Instruct"), H100, Shape(4, 1), "bf16")
NONE = StageReplicas([], [])
ONE_SMALL, ONE_LARGE = StageReplicas([SMALL], [1.0]), StageReplicas([LARGE], [1.0])


def load(n: int, rate: float, seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return (
        np.cumsum(random.exponential(1.0 / rate, n)),
        random.lognormal(6.5, 0.8, n).clip(1, 8000).astype(int),
        random.lognormal(5.0, 0.6, n).clip(1, 2000).astype(int),
    )


def test_a_cascade_of_one_stage_is_the_stage() -> None:
    arrivals, inputs, outputs = load(500, 4.0)
    first, finish = simulate_replica(SMALL, arrivals, inputs, outputs)
    times = simulate_cascade([ONE_SMALL], arrivals, inputs, outputs[:, None], np.zeros(500, int), scorer_seconds=9.0)
    assert np.array_equal(times.end_to_end, finish - arrivals)  # the last stage is not scored
    assert np.array_equal(times.time_to_first_token, first - arrivals)
    assert np.array_equal(times.stage_service[0], finish - arrivals)


def test_escalated_requests_pay_for_every_stage_scorer_and_hop() -> None:
    arrivals, inputs, outputs = load(400, 3.0)
    both = np.stack([outputs, outputs // 2 + 1], axis=1)
    exits = (np.arange(400) % 3 == 0).astype(int)
    times = simulate_cascade(
        [ONE_SMALL, ONE_LARGE], arrivals, inputs, both, exits, scorer_seconds=0.05, hop_seconds=0.01
    )
    assert [len(service) for service in times.stage_service] == [400, int(exits.sum())]
    accepted = exits == 0
    assert times.end_to_end[accepted] == pytest.approx(times.stage_service[0][accepted] + 0.05)
    assert np.array_equal(times.time_to_first_token[accepted], times.end_to_end[accepted])
    paid = times.stage_service[0][~accepted] + 0.05 + 0.01 + times.stage_service[1]
    assert times.end_to_end[~accepted] == pytest.approx(paid)
    assert np.all(times.time_to_first_token[~accepted] < times.end_to_end[~accepted])
    assert not any(times.saturated)


def test_a_stage_that_accepts_every_answer_streams_it_whatever_stands_behind() -> None:
    """As the routers do: replicas that have to be there (minReplicas) hold no answer back."""
    arrivals, inputs, outputs = load(300, 3.0)
    both = np.stack([outputs, outputs], axis=1)
    alone = simulate_cascade([ONE_SMALL, NONE], arrivals, inputs, both, np.zeros(300, int))
    idle = simulate_cascade([ONE_SMALL, ONE_LARGE], arrivals, inputs, both, np.zeros(300, int), scorer_seconds=9.0)
    assert np.array_equal(idle.end_to_end, alone.end_to_end)
    assert np.array_equal(idle.time_to_first_token, alone.time_to_first_token)
    assert np.all(idle.time_to_first_token[outputs > 1] < idle.end_to_end[outputs > 1])


def test_stages_without_replicas_are_skipped() -> None:
    arrivals, inputs, outputs = load(200, 3.0)
    three = np.stack([outputs, outputs, outputs], axis=1)
    exits = np.where(np.arange(200) % 2 == 0, 0, 2)
    times = simulate_cascade([ONE_SMALL, NONE, ONE_LARGE], arrivals, inputs, three, exits)
    two = simulate_cascade([ONE_SMALL, ONE_LARGE], arrivals, inputs, three[:, :2], exits // 2)
    assert np.array_equal(times.end_to_end, two.end_to_end)
    assert len(times.stage_service[1]) == 0
    assert times.utilisation[1] == 0.0
    with pytest.raises(ValueError, match=r"those with replicas are \[0, 2\]"):
        simulate_cascade([ONE_SMALL, NONE, ONE_LARGE], arrivals, inputs, three, np.ones(200, int))


def test_more_replicas_and_weights_take_the_load() -> None:
    arrivals, inputs, outputs = load(3000, 12.0)
    one = simulate_stage(ONE_SMALL, arrivals, inputs, outputs)
    two = simulate_stage(StageReplicas([SMALL, SMALL], [1.0, 1.0]), arrivals, inputs, outputs)
    assert np.percentile(two.finish - arrivals, 95) < np.percentile(one.finish - arrivals, 95)
    # A replica that is given nearly no weight is nearly not there.
    skewed = simulate_stage(StageReplicas([SMALL, SMALL], [1.0, 1e-3]), arrivals, inputs, outputs)
    assert np.percentile(skewed.finish - arrivals, 50) == pytest.approx(
        np.percentile(one.finish - arrivals, 50), rel=0.1
    )


def test_saturation_is_growth_and_not_a_busy_moment() -> None:
    arrivals, inputs, outputs = load(4000, 10.0)
    calm = simulate_stage(ONE_SMALL, arrivals, inputs, outputs)
    assert not calm.saturated
    assert 0.5 < calm.utilisation <= 1.0
    assert simulate_stage(ONE_SMALL, arrivals / 8.0, inputs, outputs).saturated


def test_a_request_that_no_replica_can_hold_never_ends() -> None:
    tight = SMALL._replace(kv_capacity_tokens=1000.0)
    times = simulate_stage(StageReplicas([tight], [1.0]), [0.0, 0.0, 0.1], [100, 990, 100], [10, 11, 10])
    assert np.isfinite(times.finish).tolist() == [True, False, True]
    assert times.saturated
    # A roomier sibling takes it.
    times = simulate_stage(StageReplicas([tight, SMALL], [1.0, 1.0]), [0.0, 0.0, 0.1], [100, 990, 100], [10, 11, 10])
    assert np.isfinite(times.finish).all()
    # What never leaves the first stage never reaches the second.
    cascade = simulate_cascade(
        [StageReplicas([tight], [1.0]), ONE_LARGE], [0.0, 1.0], [990, 10], [[11, 11], [10, 10]], [1, 1]
    )
    assert np.isfinite(cascade.end_to_end).tolist() == [False, True]
    assert cascade.saturated == [True, True]


def test_senseless_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="ascend"):
        simulate_replica(SMALL, [1.0, 0.0], [1, 1], [1, 1])
    with pytest.raises(ValueError, match="2 arrivals, 1 prompts"):
        simulate_replica(SMALL, [0.0, 1.0], [1], [1, 1])
    with pytest.raises(ValueError, match="without replicas"):
        simulate_stage(NONE, [0.0], [1], [1])
    with pytest.raises(ValueError, match="positive"):
        StageReplicas([SMALL], [0.0])
    with pytest.raises(ValueError, match="1 replicas, but 2 weights"):
        StageReplicas([SMALL], [1.0, 1.0])
    assert len(simulate_replica(SMALL, [], [], [])[0]) == 0
