"""The batcher and its compiled twin against a plain step loop written down independently."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_solver.batcher import Batcher
from cascadia_solver.simulation import StageReplicas, simulate_closed_loop, simulate_replica, simulate_stage
from cascadia_solver.steptime import StepModel, step_seconds

Times = dict[int, float]

PLAIN = StepModel(
    token_seconds=3.1e-5,
    logits_seconds=1.7e-6,
    weight_seconds=6.3e-3,
    expert_seconds=0.0,
    expert_miss=0.0,
    prefill_pair_seconds=1.3e-9,
    prefill_window_pair_seconds=0.0,
    decode_context_seconds=4.9e-8,
    decode_window_seconds=0.0,
    window_tokens=0.0,
    transfer_token_seconds=1.1e-6,
    overhead_seconds=5.7e-4,
    prefill_share=1.0,
    decode_share=1.0,
    kv_capacity_tokens=900.0,
    max_running=5.0,
    chunk_tokens=64.0,
)
WINDOWED = PLAIN._replace(
    decode_window_seconds=2.3e-6, prefill_window_pair_seconds=3e-9, window_tokens=37.0, chunk_tokens=32.0
)
MIXTURE = PLAIN._replace(
    expert_seconds=9.7e-3, expert_miss=0.9, decode_share=0.25, prefill_share=0.4375, max_running=9.0
)
CACHED = PLAIN._replace(prefix_hit=0.37)
CACHED_WINDOWED = WINDOWED._replace(prefix_hit=1.0)
MODELS = [PLAIN, WINDOWED, MIXTURE, CACHED, CACHED_WINDOWED]


def take_prompts(
    step: StepModel,
    queue: deque[int],
    admitted: list[int],
    prefilled: dict[int, int],
    inputs: list[int],
    outputs: list[int],
) -> None:
    """Fill one step with prompt tokens, first come, first served."""
    budget = int(step.chunk_tokens)
    while budget > 0:
        partial = [r for r in admitted if prefilled[r] < inputs[r]]
        if partial:
            chunk = min(budget, inputs[partial[0]] - prefilled[partial[0]])
            prefilled[partial[0]] += chunk
            budget -= chunk
            continue
        # Cache is set aside for 60 % of an answer, as engines do that count on others ending first.
        reserved = [inputs[r] + max(1, int(0.6 * outputs[r])) for r in (*admitted, *list(queue)[:1])]
        if not queue or len(admitted) >= step.max_running:
            return
        if sum(reserved) > step.kv_capacity_tokens:
            return
        admitted.append(queue.popleft())


def step_loop(step: StepModel, arrivals: list[float], inputs: list[int], outputs: list[int]) -> tuple[Times, Times]:
    """One engine step after another, nothing clever."""
    first: Times = {}
    finish: Times = {}
    coming = deque(range(len(arrivals)))
    queue: deque[int] = deque()
    # What the prefix cache has is attended to but not computed, the last token of a prompt always is.
    prefilled = {r: min(int(step.prefix_hit * inputs[r]), inputs[r] - 1) for r in coming}
    produced = dict.fromkeys(coming, 0)
    admitted: list[int] = []
    now = 0.0
    while len(finish) < len(arrivals):
        if not queue and not admitted:
            now = max(now, arrivals[coming[0]])
        while coming and arrivals[coming[0]] <= now:
            queue.append(coming.popleft())
        decoding = [r for r in admitted if prefilled[r] == inputs[r]]
        context = sum(inputs[r] + produced[r] for r in decoding)
        before = dict(prefilled)
        take_prompts(step, queue, admitted, prefilled, inputs, outputs)
        chunks = [(r, prefilled[r] - before[r]) for r in admitted if prefilled[r] > before[r]]
        tokens = sum(chunk for _, chunk in chunks)
        pairs = float(sum(before[r] + position for r, chunk in chunks for position in range(1, chunk + 1)))
        ended_prompts = [r for r, _ in chunks if prefilled[r] == inputs[r]]
        now += step_seconds(step, float(tokens), pairs, float(len(decoding)), float(context))
        for request in decoding:
            produced[request] += 1
        for request in ended_prompts:
            produced[request] = 1
            first[request] = now
        for request in [*decoding, *ended_prompts]:
            if produced[request] == outputs[request]:
                finish[request] = now
                admitted.remove(request)
    return first, finish


def through_batcher(
    step: StepModel, arrivals: list[float], inputs: list[int], outputs: list[int], lateness: float = 0.0
) -> tuple[Times, Times]:
    batcher = Batcher(step)
    first: Times = {}
    finish: Times = {}

    def take(now: float) -> None:
        for event in batcher.advance(now):
            assert event.time <= now
            (first if event.kind == "first" else finish)[int(event.request_id)] = event.time

    now = 0.0
    for request, arrival in enumerate(arrivals):
        while lateness and (due := batcher.next_event(now)) is not None and max(now, due) + lateness < arrival:
            now = max(now, due) + lateness
            take(now)
        now = arrival
        batcher.submit(str(request), now, inputs[request], outputs[request])
    while (due := batcher.next_event(now)) is not None:
        now = max(now, due) + lateness
        take(now)
    assert (batcher.running, batcher.waiting, batcher.kv_tokens) == (0, 0, 0)
    return first, finish


@st.composite
def loads(draw: st.DrawFn) -> tuple[list[float], list[int], list[int]]:
    n = draw(st.integers(1, 25))
    # Multiples of an irrational-looking gap, so that no arrival meets a step boundary by rounding.
    gaps = draw(st.lists(st.integers(0, 60), min_size=n, max_size=n))
    arrivals = list(np.cumsum(np.array(gaps) * 0.00377123))
    inputs = draw(st.lists(st.integers(1, 200), min_size=n, max_size=n))
    outputs = draw(st.lists(st.integers(1, 60), min_size=n, max_size=n))
    return [float(a) for a in arrivals], inputs, outputs


@pytest.mark.parametrize("step", MODELS, ids=["plain", "windowed", "mixture", "hits", "all hits"])
@given(load=loads())
@settings(max_examples=60, deadline=None)
def test_batcher_and_simulation_equal_the_step_loop(
    step: StepModel, load: tuple[list[float], list[int], list[int]]
) -> None:
    arrivals, inputs, outputs = load
    first, finish = step_loop(step, arrivals, inputs, outputs)
    batched = through_batcher(step, arrivals, inputs, outputs)
    assert batched[0] == pytest.approx(first, rel=1e-9)
    assert batched[1] == pytest.approx(finish, rel=1e-9)
    simulated = simulate_replica(step, arrivals, inputs, outputs)
    assert list(simulated[0]) == [batched[0][r] for r in range(len(arrivals))]
    assert list(simulated[1]) == [batched[1][r] for r in range(len(arrivals))]


@pytest.mark.parametrize("step", MODELS, ids=["plain", "windowed", "mixture", "hits", "all hits"])
@pytest.mark.parametrize("seconds", [20.0, 400.0], ids=["queues", "mostly alone"])
def test_simulation_equals_the_batcher_where_answers_are_long(step: StepModel, seconds: float) -> None:
    random = np.random.default_rng(11)
    roomy = step._replace(kv_capacity_tokens=9000.0, max_running=40.0)
    arrivals = [float(t) for t in np.sort(random.uniform(0.0, seconds, 150))]
    inputs, outputs = random.integers(1, 400, 150).tolist(), random.integers(1, 2500, 150).tolist()
    first, finish = through_batcher(roomy, arrivals, inputs, outputs)
    simulated = simulate_replica(roomy, arrivals, inputs, outputs)
    assert list(simulated[0]) == [first[r] for r in range(150)]
    assert list(simulated[1]) == [finish[r] for r in range(150)]


@given(load=loads(), lateness=st.floats(1e-6, 0.05))
@settings(max_examples=40, deadline=None)
def test_calling_late_moves_no_event(load: tuple[list[float], list[int], list[int]], lateness: float) -> None:
    arrivals, inputs, outputs = load
    assert through_batcher(PLAIN, arrivals, inputs, outputs, lateness) == through_batcher(
        PLAIN, arrivals, inputs, outputs
    )


def test_no_event_comes_before_the_announced_time() -> None:
    batcher = Batcher(PLAIN)
    batcher.submit("a", 0.0, 150, 20)
    batcher.submit("b", 0.001, 10, 5)
    now, events = 0.001, []
    while (due := batcher.next_event(now)) is not None:
        assert due > now
        assert batcher.advance(due - 1e-9) == []
        now = due
        events += batcher.advance(now)
    assert [(event.kind, event.request_id) for event in events] == [
        ("first", "a"), ("first", "b"), ("finish", "b"), ("finish", "a"),
    ]  # fmt: skip
    assert batcher.next_event(now) is None


def test_progress_is_what_a_stream_would_have_shown() -> None:
    batcher = Batcher(PLAIN)
    batcher.submit("a", 0.0, 30, 40)
    due = batcher.next_event(0.0)
    assert due is not None
    assert batcher.generated("a", due - 1e-9) == 0
    assert batcher.generated("a", due) == 1
    assert [event.kind for event in batcher.advance(due)] == ["first"]
    end = batcher.next_event(due)
    assert end is not None
    seen = [batcher.generated("a", due + (end - due) * part / 390) for part in range(390)]
    seen.append(batcher.generated("a", end))
    assert seen == sorted(seen)
    assert set(seen) == set(range(1, 41))
    batcher.advance(end)
    with pytest.raises(KeyError):
        batcher.generated("a", end)


def test_cancelling_frees_the_place_and_is_silent() -> None:
    step = PLAIN._replace(max_running=1.0)
    batcher = Batcher(step)
    batcher.submit("running", 0.0, 10, 1000 - 110)
    batcher.submit("waiting", 0.0, 10, 5)
    batcher.submit("last", 0.0, 10, 5)
    batcher.advance(0.5)
    assert (batcher.running, batcher.waiting) == (1, 2)
    batcher.cancel("waiting", 0.5)
    assert batcher.waiting == 1
    batcher.cancel("running", 0.5)
    events = batcher.advance(10.0)
    assert [(event.kind, event.request_id) for event in events] == [("first", "last"), ("finish", "last")]
    # The step in flight ends, then the next request's prompt takes one step.
    assert 0.5 < events[0].time < 0.5 + 2 * step_seconds(step, 64.0, 2080.0, 1.0, 900.0)
    assert (batcher.running, batcher.kv_tokens) == (0, 0)
    batcher.cancel("last", 10.0)
    batcher.cancel("never seen", 10.0)


@given(load=loads(), victims=st.sets(st.integers(0, 24)), after=st.floats(0.0, 0.3))
@settings(max_examples=60, deadline=None)
def test_cancelled_requests_leave_nothing_behind(
    load: tuple[list[float], list[int], list[int]], victims: set[int], after: float
) -> None:
    arrivals, inputs, outputs = load
    batcher = Batcher(WINDOWED)
    finished = set()
    moments = sorted(
        [(arrival, 0, request) for request, arrival in enumerate(arrivals)]
        + [(arrivals[request] + after, 1, request) for request in victims if request < len(arrivals)]
    )
    for now, cancels, request in moments:
        finished |= {event.request_id for event in batcher.advance(now) if event.kind == "finish"}
        if cancels:
            batcher.cancel(str(request), now)
        else:
            batcher.submit(str(request), now, inputs[request], outputs[request])
    finished |= {event.request_id for event in batcher.advance(1e6) if event.kind == "finish"}
    assert {str(request) for request in range(len(arrivals)) if request not in victims} <= finished
    assert (batcher.running, batcher.waiting, batcher.kv_tokens) == (0, 0, 0)
    assert batcher.next_event(1e6) is None


def test_impossible_requests_are_refused() -> None:
    batcher = Batcher(PLAIN)
    with pytest.raises(ValueError, match="900 tokens"):
        batcher.submit("a", 0.0, 800, 101)
    with pytest.raises(ValueError, match="at least 1"):
        batcher.submit("a", 0.0, 0, 5)
    batcher.submit("a", 0.0, 5, 5)
    with pytest.raises(ValueError, match="already there"):
        batcher.submit("a", 0.0, 5, 5)


@given(load=loads(), weights=st.lists(st.sampled_from([1.0, 2.0, 0.5]), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_a_stage_is_its_replicas_behind_least_outstanding(
    load: tuple[list[float], list[int], list[int]], weights: list[float]
) -> None:
    arrivals, inputs, outputs = load
    steps = [MODELS[at % 3] for at in range(len(weights))]
    batchers = [Batcher(step) for step in steps]
    outstanding = [0] * len(weights)
    finish: Times = {}

    def take(now: float) -> None:
        for at, batcher in enumerate(batchers):
            for event in batcher.advance(now):
                if event.kind == "finish":
                    finish[int(event.request_id)] = event.time
                    outstanding[at] -= 1

    for request, now in enumerate(arrivals):
        take(now)
        at = min(range(len(weights)), key=lambda r: outstanding[r] / weights[r])
        batchers[at].submit(str(request), now, inputs[request], outputs[request])
        outstanding[at] += 1
    take(1e6)
    times = simulate_stage(StageReplicas(steps, weights), arrivals, inputs, outputs)
    assert list(times.finish) == [finish[r] for r in range(len(arrivals))]


def test_a_closed_loop_is_an_open_loop_with_its_own_arrivals() -> None:
    random = np.random.default_rng(7)
    inputs, outputs = random.integers(1, 200, 60), random.integers(1, 60, 60)
    arrivals, first, finish = simulate_closed_loop(PLAIN, 3, inputs, outputs)
    assert list(arrivals[:3]) == [0.0] * 3
    assert sorted(arrivals[3:]) == sorted(finish)[:57]
    again = simulate_replica(PLAIN, arrivals, inputs, outputs)
    assert list(again[0]) == list(first)
    assert list(again[1]) == list(finish)
