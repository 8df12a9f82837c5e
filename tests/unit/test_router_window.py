"""The workload report adds up what was counted in its window, and samples carry their probability."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.report import CalibrationSample, WorkloadReport
from cascadia_router.metrics import BucketCounts, Metrics, exposition
from cascadia_router.window import MAX_SAMPLES, Window


def report(window: Window, now: float, seconds: float) -> WorkloadReport:
    return window.report(now, seconds, window_end=0.0, plan_id="p", policy_revision=1, stage="small")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 30), max_size=40), st.floats(1, 300))
def test_a_report_counts_what_happened_in_the_window_it_states(pauses: list[float], seconds: float) -> None:
    window, now, times = Window(100.0), 100.0, []
    for pause in pauses:
        now += pause
        times.append(now)
        window.slice(now).arrivals += 1
        window.slice(now).answered_by["small"] += 1
        window.slice(now).output_tokens.observe(4)
    said = report(window, now, seconds)
    since = now - said.window_seconds
    expected = [when for when in times if when >= since - 1e-6]
    assert said.arrivals == len(expected)
    assert said.answered_by == ({"small": len(expected)} if expected else {})
    assert said.stage is not None
    assert said.stage.output_tokens.count() == len(expected)
    assert said.stage.output_tokens.sum == 4 * len(expected)
    assert said.window_seconds <= min(seconds + 2.0, now - 100.0) + 1e-6
    assert said.window_seconds >= min(seconds, now - 100.0) - 1e-6


def test_old_slices_are_dropped() -> None:
    window = Window(0.0, longest_seconds=20)
    for second in range(10_000):
        window.slice(float(second)).arrivals += 1
    assert len(window._slices) <= 12
    assert report(window, 9_999.0, 1e9).arrivals <= 24


def sample(probability: float, name: str = "r") -> CalibrationSample:
    return CalibrationSample(
        request_id=name, stage="small", score=0.5, output_tokens=1, input_tokens=1, inclusion_probability=probability
    )


def test_samples_beyond_the_limit_are_thinned_and_say_so() -> None:
    window = Window(0.0, seed=1)
    for index in range(1000):
        window.keep_sample(1.0, sample(0.5, str(index)))
    chosen = report(window, 1.5, 60).samples
    assert len(chosen) == MAX_SAMPLES
    assert {each.inclusion_probability for each in chosen} == {0.5 * MAX_SAMPLES / 1000}
    assert report(window, 500.0, 60).samples == []


def test_draws_follow_their_probability() -> None:
    window = Window(0.0, seed=7)
    drawn = sum(window.draws(0.2) for _ in range(5000))
    assert 850 < drawn < 1150
    assert not any(window.draws(0.0) for _ in range(100))
    assert all(window.draws(1.0) for _ in range(100))


def test_histograms_are_cumulative_in_the_text() -> None:
    metrics = Metrics()
    for value in (0.0, 0.05, 0.06, 2.0):
        metrics.scores.observe(value)
    metrics.requests["client", 'odd "name"\n', "answered"] += 2
    text = exposition(
        metrics, stage="small", waiting=0, access_log_dropped=0,
        in_flight=3, policy_revision=7, policy_rejected=0, ladder_position=None, ready=True,
        replicas=[("large", "large-0", 4, False)],
    ).decode()  # fmt: skip
    lines = text.splitlines()
    assert 'cascadia_router_scores_bucket{stage="small",le="0.05"} 2' in lines
    assert 'cascadia_router_scores_bucket{stage="small",le="0.1"} 3' in lines
    assert 'cascadia_router_scores_bucket{stage="small",le="+Inf"} 4' in lines
    assert 'cascadia_router_scores_sum{stage="small"} 2.11' in lines
    assert r'cascadia_router_requests_total{port="client",stage="odd \"name\"\n",outcome="answered"} 2' in lines
    assert 'cascadia_router_endpoint_available{stage="large",replica="large-0"} 0' in lines
    assert not any(line.startswith("cascadia_router_ladder_position ") for line in lines)


def test_prometheus_can_read_the_text() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    text = exposition(
        Metrics(), stage="small", waiting=0, access_log_dropped=0,
        in_flight=0, policy_revision=1, policy_rejected=0, ladder_position=0, ready=False,
        replicas=[("s", "r", 0, True)],
    ).decode()  # fmt: skip
    families = {family.name: family for family in parser.text_string_to_metric_families(text)}
    assert families["cascadia_router_requests"].type == "counter"
    assert families["cascadia_router_request_seconds"].type == "histogram"
    assert families["cascadia_router_ready"].samples[0].value == 0


def test_edges_are_inclusive_above() -> None:
    counts = BucketCounts((1.0, 2.0))
    for value in (1.0, 1.5, 2.0, 9.0):
        counts.observe(value)
    assert counts.counts == [1, 2, 1]
    assert json.dumps(counts.sum) == "13.5"
