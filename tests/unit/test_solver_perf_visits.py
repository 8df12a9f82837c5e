"""Requests on their way into a stage and out of it: what one compiled pass does is what plain arrays say."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.roofline import Shape, step_model
from cascadia_solver.simulation import StageReplicas, simulate_cascade, simulate_stage
from cascadia_solver.stage_visits import Journeys, Visit, let_in, let_out, merged

H100 = gpu_facts("H100-SXM-80GB")
SMALL = step_model(model_facts("meta-llama/Llama-3.1-8B-Instruct"), H100, Shape(1, 1), "bf16")
LARGE = step_model(model_facts("meta-llama/Llama-3.1-70B-Instruct"), H100, Shape(4, 1), "bf16")


def journeys_of(n: int, seed: int) -> Journeys:
    """Requests at one of two stages: times with ties, some of which never come."""
    random = np.random.default_rng(seed)
    at = random.integers(0, 20, n) / 4.0
    at[random.random(n) < 0.1] = np.inf
    lengths = random.lognormal(4.0, 1.0, (n, 2))
    exits = random.integers(0, 2, n)
    return Journeys(random.integers(1, 900, n), lengths, exits, at, *np.full((2, n), np.inf))


@given(n=st.integers(0, 60), seed=st.integers(0, 10_000), gate=st.sampled_from([1.0, 16.0, math.inf]))
@settings(max_examples=40, deadline=None)
def test_visitors_bring_what_they_ask_of_the_stage(n: int, seed: int, gate: float) -> None:
    journeys = journeys_of(n, seed)
    comes = np.random.default_rng(seed + 1).random(n) < 0.7
    visit = let_in(journeys, comes, 0, gate)
    wanted = np.flatnonzero(comes & np.isfinite(journeys.at_stage))
    assert np.array_equal(visit.visitors, wanted)
    assert np.array_equal(visit.came, journeys.at_stage[wanted])
    assert np.array_equal(visit.prompts, journeys.prompts[wanted])
    whole = np.maximum(np.rint(journeys.answers[wanted, 0]), 1)
    accepted = journeys.exits[wanted] == 0
    assert np.array_equal(visit.answers, np.where(accepted, whole, np.minimum(whole, gate)))
    assert visit.all_come == bool(np.isfinite(journeys.at_stage[comes]).all())
    assert visit.ascending == bool((np.diff(visit.came) >= 0).all())


@given(n=st.integers(1, 40), others=st.integers(0, 80), seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_others_are_put_where_they_come_and_after_whoever_comes_then(n: int, others: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    came, prompts, answers = random.integers(0, 20, n) / 4.0, np.arange(n), np.arange(n) + 1000
    order = np.argsort(came, kind="stable")
    others_at = np.sort(random.integers(0, 20, others) / 4.0)
    like = random.integers(0, n, others)
    when, of_prompts, of_answers, place = merged(
        Visit(np.arange(n), came, prompts, answers, True, False), order, others_at, like
    )
    every = np.concatenate([came[order], others_at])
    by_time = np.argsort(every, kind="stable")
    of = np.concatenate([order, order[like]])[by_time]
    assert np.array_equal(when, every[by_time])
    assert np.array_equal(of_prompts, prompts[of])
    assert np.array_equal(of_answers, answers[of])
    assert np.array_equal(by_time[place], np.argsort(order))


def test_answers_go_to_the_clients_or_their_requests_on() -> None:
    exits = np.array([0, 1, 0])
    journeys = Journeys(
        np.ones(3, np.int64), np.ones((3, 2)), exits, np.array([1.0, 2.0, 3.0]), *np.full((2, 3), np.inf)
    )
    visit = Visit(
        np.arange(3), journeys.at_stage.copy(), journeys.prompts, np.array([11, 4, 1]), all_come=True, ascending=True
    )
    first_token, finish = np.array([2.0, 3.0, 4.0]), np.array([7.0, 4.5, 4.0])
    own = let_out(journeys, visit, first_token, finish, 0, False, 6.0, 0.25, 0.5)
    assert np.array_equal(own, [[6.0, 2.5, 1.0], [1.0, 1.0, 1.0], [0.5, 0.5, 0.0]])
    assert np.array_equal(journeys.end, [7.25, np.inf, 4.25])
    assert np.array_equal(journeys.at_stage, [1.0, 5.25, 3.0])  # scored, and passed on
    # Five of the ten tokens that come after the first one are waited for, then the score; a short answer, at its end.
    assert np.array_equal(journeys.first_byte, [4.75, np.inf, 4.25])
    let_out(journeys, visit, first_token, finish, 1, True, math.inf, 0.25, 0.5)
    assert (journeys.end[1], journeys.first_byte[1]) == (4.5, 3.0)  # the last stage streams, and is not scored


def test_a_crowded_stage_behind_another_serves_visitors_in_the_order_they_come() -> None:
    random = np.random.default_rng(3)
    n = 400
    arrivals, inputs = np.sort(random.random(n)) * 20, random.integers(1, 2000, n)
    outputs, exits = random.integers(1, 400, (n, 2)), np.ones(n, np.int64)
    first, second = StageReplicas([SMALL] * 2, [1.0] * 2), StageReplicas([LARGE] * 6, [1.0] * 6)
    times = simulate_cascade([first, second], arrivals, inputs, outputs, exits, crowd=[1.0, 3.0], hop_seconds=0.0)
    alone = simulate_cascade([first, second], arrivals, inputs, outputs, exits, crowd=[1.0, 1.0], hop_seconds=0.0)
    came = arrivals + times.stage_service[0]
    assert np.any(np.diff(came) < 0)
    order = np.argsort(came, kind="stable")
    plain = simulate_stage(second, came[order], inputs[order], outputs[order, 1])
    assert np.allclose((alone.end_to_end + arrivals)[order], plain.finish)
    assert times.end_to_end.mean() > alone.end_to_end.mean()  # three times as many are there
