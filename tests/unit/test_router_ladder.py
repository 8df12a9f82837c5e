"""Steps along the ladder, simulated: down under overload, back when it is over, and no flapping."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.policy import Endpoint, OverloadPolicy, RouterPolicy, StagePolicy, encode_policy
from cascadia_router.balancing import ReplicaTable
from cascadia_router.ladder import Ladder, Lateness
from cascadia_router.ladder_watch import LadderWatch
from cascadia_router.metrics import Metrics
from cascadia_router.policy_store import PolicyStore
from cascadia_router.window import Window

TRACE = Path(__file__).resolve().parents[3] / "shared/data/traces"
LIMIT = 20.0


class Second(NamedTuple):
    time: int
    steps: int
    late: bool


def simulate(arrivals: Sequence[float], capacities: Sequence[float], ladder: Ladder) -> list[Second]:
    """A fluid queue: arrivals by second, capacity by the rung in force; a request is late once the wait is long."""
    backlog, seconds = 0.0, []
    for time, count in enumerate(arrivals):
        capacity = capacities[ladder.steps]
        backlog = max(0.0, backlog + count - capacity)
        wait = backlog / capacity
        load = sum(arrivals[max(0, time - 29) : time + 1]) / min(time + 1, 30)
        ladder.decide(time, overloaded=wait > LIMIT, calm=wait < LIMIT / 2, load=load, depth=len(capacities) - 1)
        seconds.append(Second(time, ladder.steps, wait > LIMIT))
    return seconds


def moves(seconds: Sequence[Second]) -> list[tuple[int, int]]:
    """(time, direction) of each step."""
    pairs = itertools.pairwise(seconds)
    return [(after.time, after.steps - before.steps) for before, after in pairs if after.steps != before.steps]


def test_a_burst_is_stepped_down_for_and_back_up_after() -> None:
    arrivals = [10.0] * 300 + [20.0] * 300 + [10.0] * 900
    seconds = simulate(arrivals, [12.0, 18.0, 25.0], Ladder())
    steps = moves(seconds)
    assert [direction for _, direction in steps] == [1, 1, -1, -1]
    assert steps[1][0] - steps[0][0] >= Ladder.DOWN_SECONDS
    assert steps[2][0] >= 600, "not before the burst is over"
    assert seconds[-1].steps == 0
    assert not any(second.late for second in seconds[700:])


def test_steady_overload_is_not_tried_against_again_and_again() -> None:
    """Load that the plan's own vector cannot carry, for a day: ever rarer trials, most of the time below."""
    seconds = simulate([15.0] * 86_400, [12.0, 18.0], Ladder())
    steps = moves(seconds)
    ups = [time for time, direction in steps if direction < 0]
    assert len(ups) <= 24
    later = [after - before for before, after in itertools.pairwise(ups[8:])]
    assert min(later) >= Ladder.LONGEST_PATIENCE_SECONDS
    assert sum(second.late for second in seconds) / len(seconds) < 0.02


def test_lost_capacity_that_comes_back_is_found() -> None:
    """The load is as ever, and still the vector above becomes possible: a replica has come back."""
    ladder = Ladder()
    simulate([10.0] * 600, [8.0, 14.0], ladder)
    assert ladder.steps == 1
    # It goes on from here, with the capacity restored.
    times = []
    for time in range(600, 4000):
        ladder.decide(time, overloaded=False, calm=True, load=10.0, depth=1)
        times.append(ladder.steps)
    assert times[-1] == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0, 100)), max_size=300), st.integers(0, 4))
def test_steps_are_single_bounded_and_not_too_fast(looks: list[tuple[bool, bool, float]], depth: int) -> None:
    ladder, before, since = Ladder(), 0, -100.0
    for time, (overloaded, calm, load) in enumerate(looks):
        steps = ladder.decide(time, overloaded=overloaded, calm=calm and not overloaded, load=load, depth=depth)
        assert 0 <= steps <= depth
        assert abs(steps - before) <= 1
        if steps != before:
            assert time - since >= (Ladder.DOWN_SECONDS if steps > before else Ladder.UP_SECONDS)
            since = time
        before = steps


def recorded() -> list[float]:
    """Arrivals by second of a recorded trace, scaled so that their mean is 10."""
    for path in sorted(TRACE.rglob("*conv*.csv")) if TRACE.is_dir() else []:
        lines = path.read_text().splitlines()[1:]
        counts: dict[int, int] = {}
        first: int | None = None
        for line in lines:
            hour, minute, second = line.split(",")[0].split(" ")[1].split("T")[-1].split(":")[:3]
            moment = int(hour) * 3600 + int(minute) * 60 + int(float(second))
            first = moment if first is None else first
            counts[moment - first] = counts.get(moment - first, 0) + 1
        series = [counts.get(time, 0) for time in range(max(counts) + 1)]
        mean = sum(series) / len(series)
        return [10.0 * each / mean for each in series]
    pytest.skip(f"no recorded trace below {TRACE}")


@pytest.mark.parametrize("capacity", [8.0, 9.0, 10.5, 12.0])
def test_recorded_load_does_not_make_it_flap(capacity: float) -> None:
    seconds = simulate(recorded(), [capacity, capacity * 1.3, capacity * 1.8], Ladder())
    steps = moves(seconds)
    assert len(steps) <= len(seconds) / 150, "a few steps an hour"
    without = simulate(recorded(), [capacity], Ladder())
    assert sum(second.late for second in seconds) < 0.05 * sum(second.late for second in without)
    reversals = [after - before for (before, down), (after, up) in itertools.pairwise(steps) if down > 0 > up]
    assert all(between >= Ladder.UP_SECONDS for between in reversals)
    if capacity == 12.0:
        assert sum(second.steps > 0 for second in seconds) < 0.5 * len(seconds)


def test_what_is_late_is_counted_for_the_thresholds_in_force_only() -> None:
    lateness = Lateness(seconds=30.0)
    lateness.observe(1.0, [0.0], [1.0])
    assert lateness.counted(1.0) == (0, 0), "without a limit nothing is late"
    lateness.limit = 5.0
    lateness.observe(10.0, [0.0, 5.0, 9.0], [10.0, 5.0, 1.0])
    assert lateness.counted(10.0) == (3, 1)
    assert lateness.counted(41.0) == (0, 0)
    lateness.restart(42.0)
    lateness.observe(60.0, [30.0, 41.0, 43.0, 44.0], [30.0, 19.0, 17.0, 1.0])
    assert lateness.counted(60.0) == (2, 1), "those that came before the step do not count"


def policy(revision: int, threshold: float, **overload: float) -> bytes:
    stages = [
        StagePolicy(name=name, served_model_name=name, threshold=at, endpoints=[Endpoint(replica=name, address="a:1")])
        for name, at in (("small", threshold), ("large", None))
    ]
    ladder: list[list[float | None]] = [[0.9, None], [0.8, None], [0.5, None], [0.2, None]]
    return encode_policy(
        RouterPolicy(
            cascade="chat", policy_revision=revision, plan_id="p", stages=stages, ladder=ladder, max_in_flight=100,
            overload=OverloadPolicy(**overload),  # type: ignore[arg-type]
        )
    )  # fmt: skip


class Held:
    def __init__(self, entered: float | None) -> None:
        self.entered = entered


def test_a_router_steps_from_the_plans_own_vector_and_a_new_plan_starts_anew() -> None:
    store = PolicyStore(ReplicaTable(None, None))
    store.take(policy(1, 0.8, latency_seconds=5.0), "test")
    metrics = Metrics()
    watch = LadderWatch(store, Lateness(), Window(0.0), metrics)

    def look(since: int, until: int, held: list[Held]) -> float | None:
        for time in range(since, until):
            watch.look(float(time), held, len(held), 0)
        assert store.entry is not None
        return store.entry.stages[0].threshold

    strangers = [Held(None)] * 10
    assert look(0, 10, strangers) == 0.8
    assert look(10, 16, [*strangers, Held(0.0), Held(0.0), Held(0.0), Held(9.0)]) == 0.5, "three are overdue"
    assert look(16, 30, [Held(0.0)] * 3) == 0.5, "they came before the step"
    assert look(30, 36, [Held(17.0)] * 3) == 0.2
    assert look(36, 60, [Held(36.0)] * 3) == 0.2, "there is no lower one"
    assert store.entry is not None
    assert (store.entry.rung, store.entry.ladder_position(), store.current.ladder_position()) == (3, 3, 1)  # type: ignore[union-attr]
    assert metrics.ladder_steps == {"down": 2}
    store.take(policy(2, 0.8, latency_seconds=5.0), "test")
    assert (store.steps, store.entry.revision, store.entry.stages[0].threshold) == (2, 2, 0.2), "the same ladder"
    old = store.at(1, 2)
    assert old is not None
    assert (old.revision, old.stages[0].threshold) == (1, 0.5), "peers go by the entry's rung"
    assert store.at(99, 2) is store.current, "a rung of an unknown policy says nothing"
    assert store.at(2, 99) is store.current
    store.take(policy(3, 0.5, latency_seconds=5.0), "test")
    assert store.steps == 0
    assert look(60, 70, []) == 0.5, "another plan: its own thresholds"
    assert look(70, 80, [Held(None)] * 90) == 0.2, "too many are held"
    store.take(policy(4, 0.5, ladder=False), "test")
    assert store.steps == 1
    assert look(80, 82, [Held(None)] * 90) == 0.5, "the manifest wants no ladder any more"
