import itertools
import math
import statistics
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_local.comparison import filling_words, period_at_work
from cascadia_local.measurements import Measurements, measure, percentile
from cascadia_local.traffic import (
    ARRIVAL_CV,
    Answered,
    PlannedRequest,
    Progress,
    TrafficUpdate,
    phase_requests,
    read_requests,
    write_requests,
)
from tests.support.embedded import phase, plan_of


def gaps(requests: list[PlannedRequest]) -> list[float]:
    return [after.at - before.at for before, after in itertools.pairwise(requests)]


def test_synthetic_traffic_has_the_stated_statistics() -> None:
    requests = list(itertools.islice(phase_requests(phase(5.0), seed=3), 20_000))
    assert 1 / statistics.mean(gaps(requests)) == pytest.approx(5.0, rel=0.03)
    assert statistics.stdev(gaps(requests)) * 5.0 == pytest.approx(ARRIVAL_CV, rel=0.03)
    prompts = [request.input_tokens for request in requests]
    assert statistics.mean(prompts) == pytest.approx(500, rel=0.03)
    assert percentile(prompts, 0.95) == pytest.approx(1200, rel=0.05)
    assert max(prompts) <= 3000


def test_traffic_is_a_function_of_phase_and_seed() -> None:
    def first(seed: int, name: str = "one") -> list[PlannedRequest]:
        return list(itertools.islice(phase_requests(phase(5.0, name=name), seed=seed), 100))

    assert first(1) == first(1)
    assert first(1) != first(2)
    assert {r.key for r in first(1)}.isdisjoint(r.key for r in first(1, "two")), "phases ask different questions"


def test_a_trace_gives_lengths_and_burstiness_and_the_phase_the_rate(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [
        PlannedRequest(at=at, key="", input_tokens=10 + n, output_tokens=n + 1) for n, at in enumerate((5.0, 6.0, 9.0))
    ]
    write_requests(path, rows)
    assert list(read_requests(str(path))) == rows
    traced = msgspec.structs.replace(phase(1.0, hardness=0.5), trace=str(path))
    requests = list(itertools.islice(phase_requests(traced, seed=0), 7))
    assert [r.input_tokens for r in requests] == [10, 11, 12, 10, 11, 12, 10]
    assert gaps(requests) == pytest.approx([0.5, 1.5, 1.0, 0.5, 1.5, 1.0])
    assert {r.hardness for r in requests} == {0.5}


def answer(**fields: object) -> Answered:
    return Answered(**({"sent_at": 0.0, "seconds": 1.0} | fields))  # type: ignore[arg-type]


def test_measure_counts_reach_by_path_and_overhead_by_single_stage_answers() -> None:
    measured = measure(
        [
            answer(sent_at=0.0, seconds=1.0, path="small", stage="small", quality=1.0, engine_seconds=0.9),
            answer(sent_at=1.0, seconds=3.0, path="small>large", stage="large", quality=0.0, engine_seconds=1.0),
            answer(sent_at=2.0, seconds=9.0, failure="lost"),
        ]
    )
    assert (measured.requests, measured.failed) == (3, 1)
    assert measured.per_second == pytest.approx(1.0)
    assert measured.reach == {"small": 1.0, "large": 0.5}
    assert measured.seconds_p50 == pytest.approx(2.0), "failures have no latency"
    assert measured.quality == pytest.approx(0.5)
    assert measured.overhead_p50 == pytest.approx(0.1)


def test_nothing_measured_is_nan_not_zero() -> None:
    measured = measure([])
    assert measured.requests == 0
    assert all(math.isnan(v) for v in (measured.seconds_p95, measured.quality, measured.per_second))


def test_recent_answers_are_those_that_ended_in_the_last_service_minute() -> None:
    measurements = Measurements()
    measurements.add([answer(sent_at=0.0, seconds=5.0), answer(sent_at=50.0, seconds=5.0)], now=60.0)
    assert len(measurements.recent) == 2
    measurements.add([answer(sent_at=70.0, failure="x")], now=100.0)
    assert [a.sent_at for a in measurements.recent] == [50.0, 70.0]
    assert len(measurements.failures) == 1
    assert measurements.between(40.0, 60.0).requests == 1


@settings(max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.sampled_from([0.05, 0.25, 0.5, 0.75, 0.95]))
def test_percentile_is_the_inclusive_quantile(values: list[float], share: float) -> None:
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    assert percentile(values, share) == pytest.approx(cuts[round(20 * share) - 1], abs=1e-6)


def test_updates_survive_the_pipe() -> None:
    update = TrafficUpdate(answers=[answer(path="small", quality=0.5)], progress=Progress(sent=3))
    assert msgspec.json.decode(msgspec.json.encode(update), type=TrafficUpdate) == update


def test_what_is_compared_with_a_plan_was_sent_to_a_cascade_at_work() -> None:
    """As long as a slow request of the plan takes (9 s), engines fill; after the last request they drain."""
    plan = plan_of([(1, 1)], [(4, 1)])
    measurements = Measurements()
    measurements.add([Answered(sent_at=float(t), seconds=1.0, path="small") for t in range(100)], now=100.0)
    period = period_at_work("the trace", plan, measurements, 0.0, 100.0)
    assert (period.measured.requests, period.left_out) == (82, 18)
    assert "18 requests sent while engines filled or drained are left out" in filling_words([period])
    short = period_at_work("the trace", plan, measurements, 0.0, 30.0)
    assert (short.measured.requests, short.left_out) == (30, 0)
    assert "too short to leave out the requests that found engines idle" in filling_words([short])
    assert period_at_work("the trace", plan, measurements, 200.0, 300.0).measured.requests == 0
