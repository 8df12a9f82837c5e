"""Drift: false alarms and power by simulation, worked messages, merging."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cascadia_api.plan import PlanDemand
from cascadia_api.report import EDGES, Histogram, StageReport, WorkloadReport
from cascadia_solver.drift import (
    DriftTest,
    EffectFloors,
    MergedReport,
    assess,
    chi_square_tail,
    looks_per_week,
    merge_reports,
)

RATE, WINDOW = 12.0, 60.0
NO_FLOORS = EffectFloors(rate=0.0, length=0.0, score_share=0.0, dispersion=1.0)


class Traffic:
    """Poisson arrivals, log-normal lengths, beta scores; the plan's demand is its exact quantiles."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        big = np.random.default_rng(99)
        inputs, outputs, scores = self._draw(big, 400_000)
        levels = (0.05, 0.25, 0.5, 0.75, 0.95)
        self.demand = PlanDemand(
            requests_per_second=RATE,
            input_tokens_mean=float(inputs.mean()),
            output_tokens_mean=float(outputs.mean()),
            input_token_quantiles=[float(q) for q in np.quantile(inputs, levels)],
            output_token_quantiles=[float(q) for q in np.quantile(outputs, levels)],
            score_deciles=[float(q) for q in np.quantile(scores, np.arange(1, 10) / 10)],
            source="Manifest",
        )

    @staticmethod
    def _draw(
        rng: np.random.Generator, count: int, length: float = 1.0, hardness: float = 0.0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        inputs = np.exp(rng.normal(math.log(900), 0.7, count))
        outputs = np.exp(rng.normal(math.log(130 * length), 0.9, count))
        scores = rng.beta(6 - hardness, 2 + hardness, count)
        return inputs, outputs, scores

    def look(self, *, rate: float = 1.0, length: float = 1.0, hardness: float = 0.0) -> MergedReport:
        arrivals = int(self.rng.poisson(RATE * rate * WINDOW))
        inputs, outputs, scores = self._draw(self.rng, arrivals, length, hardness)
        stage = stage_report("small", requests=arrivals)
        stage.input_tokens = histogram("tokens", inputs)
        stage.output_tokens = histogram("tokens", outputs)
        stage.scores = histogram("score", scores)
        return merge_reports([workload_report(arrivals=arrivals), workload_report(stage=stage)])


def histogram(edges: str, values: np.ndarray) -> Histogram:
    counts, _ = np.histogram(values, [0.0, *EDGES[edges], np.inf])
    return Histogram(edges=edges, counts=counts.tolist(), sum=float(values.sum()))  # type: ignore[arg-type]


def empty(edges: str) -> Histogram:
    return Histogram(edges=edges, counts=[0] * (len(EDGES[edges]) + 1))  # type: ignore[arg-type]


def stage_report(name: str, requests: int = 0) -> StageReport:
    return StageReport(
        stage=name,
        requests=requests,
        input_tokens=empty("tokens"),
        output_tokens=empty("tokens"),
        service_ms=empty("latencyMs"),
        scores=empty("score"),
    )


def workload_report(arrivals: int = 0, stage: StageReport | None = None, window: float = WINDOW) -> WorkloadReport:
    return WorkloadReport(
        plan_id="p-0123456789ab",
        policy_revision=1,
        window_seconds=window,
        window_end=0.0,
        arrivals=arrivals,
        answered_by={"small": arrivals} if arrivals else {},
        end_to_end_ms=empty("latencyMs"),
        time_to_first_token_ms=empty("latencyMs"),
        stage=stage,
    )


def by_name(tests: tuple[DriftTest, ...]) -> dict[str, DriftTest]:
    return {test.name: test for test in tests}


def test_p_values_are_honest_where_nothing_has_changed() -> None:
    """Without floors each test alarms at its level: here 1 in 20, over 600 looks (3 standard errors are 0.027)."""
    traffic, alarms = Traffic(seed=1), dict.fromkeys(("ArrivalRate", "InputTokens", "OutputTokens", "Score"), 0)
    looks = 600
    for _ in range(looks):
        verdict = assess(traffic.demand, traffic.look(), first_stage="small", looks_per_week=5, floors=NO_FLOORS)
        for test in verdict.tests:
            assert test.level == pytest.approx(0.05)
            alarms[test.name] += test.drifted
    assert all(count / looks < 0.077 for count in alarms.values()), alarms
    assert all(count > 0 for count in alarms.values()), alarms


def test_a_week_of_looks_raises_no_alarm() -> None:
    """At the level of one look a minute with the default floors: none in 1,000 looks."""
    traffic = Traffic(seed=2)
    weekly = looks_per_week(60)
    assert weekly == 10_080
    assert not any(
        assess(traffic.demand, traffic.look(), first_stage="small", looks_per_week=weekly).drifted for _ in range(1000)
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ArrivalRate", {"rate": 1.5}),
        ("ArrivalRate", {"rate": 0.6}),
        ("OutputTokens", {"length": 1.5}),
        ("Score", {"hardness": 1.5}),
    ],
)
def test_real_changes_are_found_in_one_window(name: str, change: dict[str, float]) -> None:
    """A minute at 12/s shows a change of rate by half, of answers by half, or clearly harder requests."""
    traffic = Traffic(seed=3)
    found = 0
    for _ in range(40):
        verdict = assess(traffic.demand, traffic.look(**change), first_stage="small", looks_per_week=looks_per_week(60))
        found += by_name(verdict.tests)[name].drifted
    assert found >= 38


def test_small_changes_are_not_worth_a_plan_however_significant() -> None:
    """Ten minutes' worth of requests make +10 % significant; the floor of 20 % refuses it."""
    demand = Traffic().demand
    arrivals = int(RATE * 600 * 1.1)
    report = merge_reports([workload_report(arrivals=arrivals, window=600.0)])
    (test,) = assess(demand, report, first_stage="small", looks_per_week=looks_per_week(60)).tests
    assert test.p_value < test.level
    assert test.effect == pytest.approx(0.1, abs=1e-3)
    assert not test.drifted


def test_bursts_are_not_drift() -> None:
    """Counts with twice the variance of a Poisson process, as real traces have, stay within the level."""
    demand, rng, alarms = Traffic().demand, np.random.default_rng(5), 0
    mean = RATE * WINDOW
    floors = EffectFloors(rate=0.0)
    for arrivals in rng.negative_binomial(mean, 0.5, 1000):
        report = merge_reports([workload_report(arrivals=int(arrivals))])
        alarms += assess(demand, report, first_stage="small", looks_per_week=5, floors=floors).drifted
    assert alarms / 1000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_messages_carry_statistic_and_level() -> None:
    traffic = Traffic(seed=4)
    verdict = assess(
        traffic.demand, traffic.look(rate=1.6, hardness=2.0), first_stage="small", looks_per_week=looks_per_week(60)
    )
    assert verdict.drifted
    tests = by_name(verdict.tests)
    rate, score = tests["ArrivalRate"], tests["Score"]
    assert f"z = {rate.statistic:.1f}" in rate.message
    assert "12/s planned" in rate.message
    assert f"level {rate.level:.1e}" in rate.message
    assert "scores are lower than planned" in score.message
    assert score.effect > 0.08
    assert rate.message in verdict.message
    assert score.message in verdict.message


def test_too_few_requests_say_nothing() -> None:
    verdict = assess(
        Traffic().demand,
        merge_reports([workload_report(arrivals=3, window=1.0)]),
        first_stage="small",
        looks_per_week=1,
    )
    assert not verdict.drifted
    assert verdict.tests == ()
    assert verdict.message == "too few requests to test"
    nothing = merge_reports([])
    assert nothing.end_to_end_ms is None
    assert (
        assess(
            Traffic().demand.model_copy(update={"requests_per_second": 1.0}),
            nothing,
            first_stage="small",
            looks_per_week=1,
        ).tests
        == ()
    )


def test_silence_is_a_change_of_rate() -> None:
    """No requests at all where 720 were expected is drift, not a lack of data."""
    verdict = assess(
        Traffic().demand, merge_reports([workload_report()]), first_stage="small", looks_per_week=looks_per_week(60)
    )
    assert verdict.drifted
    assert by_name(verdict.tests)["ArrivalRate"].effect == pytest.approx(-1)


def test_scores_of_exactly_one_are_an_atom_not_drift() -> None:
    """A third of the scores at 1.0 puts three deciles on it: they divide no bins."""
    rng = np.random.default_rng(6)

    def draw() -> np.ndarray:
        scores = rng.uniform(0.2, 1.0, 720)
        scores[rng.random(720) < 0.3] = 1.0
        return scores

    many = np.concatenate([draw() for _ in range(200)])
    deciles = [float(q) for q in np.quantile(many, np.arange(1, 10) / 10)]
    assert deciles[-1] == deciles[-2] == 1.0
    demand = Traffic().demand.model_copy(update={"score_deciles": deciles})
    for _ in range(100):
        stage = stage_report("small", 720)
        stage.scores = histogram("score", draw())
        report = merge_reports([workload_report(stage=stage)])
        tests = by_name(assess(demand, report, first_stage="small", looks_per_week=looks_per_week(60)).tests)
        assert not tests["Score"].drifted


def test_a_plan_without_scores_is_not_tested_for_them() -> None:
    demand = Traffic().demand.model_copy(update={"score_deciles": []})
    verdict = assess(demand, Traffic(seed=7).look(), first_stage="small", looks_per_week=5)
    assert {test.name for test in verdict.tests} == {"ArrivalRate", "InputTokens", "OutputTokens"}


def test_a_step_along_the_ladder_is_no_drift() -> None:
    """Routers that accept more say so; the same traffic gives the same verdict, whatever became of it."""
    verdicts = []
    for steps, accepted in ((0, 0.6), (2, 0.95)):
        traffic = Traffic(seed=5)
        arrivals = int(RATE * WINDOW)
        inputs, outputs, scores = traffic._draw(traffic.rng, arrivals)
        first, last = stage_report("small", requests=arrivals), stage_report("large", round(arrivals * (1 - accepted)))
        first.accepted, first.escalated = round(arrivals * accepted), round(arrivals * (1 - accepted))
        first.input_tokens, first.output_tokens = histogram("tokens", inputs), histogram("tokens", outputs)
        first.scores = histogram("score", scores)
        entry = workload_report(arrivals=arrivals)
        entry.ladder_steps = steps
        merged = merge_reports([entry, workload_report(stage=first), workload_report(stage=last)])
        verdicts.append(assess(traffic.demand, merged, first_stage="small", looks_per_week=looks_per_week(60)))
    assert verdicts[0] == verdicts[1]
    assert not verdicts[0].drifted


def test_reports_add_up() -> None:
    """Rates over each router's own window; stages by name; histograms by bucket."""
    first, second, other = stage_report("small", 10), stage_report("small", 5), stage_report("large", 2)
    first.scores.counts[40], second.scores.counts[40] = 10, 5
    report = merge_reports(
        [
            workload_report(arrivals=600, stage=first),
            workload_report(arrivals=100, stage=second, window=10.0),
            workload_report(stage=other),
        ]
    )
    assert report.requests_per_second == pytest.approx(600 / 60 + 100 / 10)
    assert report.arrivals == 700
    assert report.answered_by == {"small": 700}
    assert report.stages["small"].requests == 15
    assert report.stages["small"].scores.counts[40] == 15
    assert report.stages["large"].requests == 2


@pytest.mark.parametrize(
    ("statistic", "degrees", "tail"),
    [(3.8415, 1, 0.05), (11.0705, 5, 0.05), (27.8772, 9, 0.001), (13.2767, 4, 0.01), (0.0, 5, 1.0)],
)
def test_chi_square_tail_agrees_with_tables(statistic: float, degrees: int, tail: float) -> None:
    assert chi_square_tail(statistic, degrees) == pytest.approx(tail, rel=1e-3)


def test_lengths_of_the_accepted_alone_are_not_tested() -> None:
    """A gate rejects answers before their lengths are known: the others' would look like a change."""
    stage = stage_report("small", 1000)
    stage.scores = histogram("score", np.full(1000, 0.9))
    stage.input_tokens = histogram("tokens", np.full(600, 5000.0))
    stage.output_tokens = histogram("tokens", np.full(600, 5.0))
    merged = merge_reports([workload_report(1000, stage)])
    verdict = assess(Traffic().demand, merged, first_stage="small", looks_per_week=5)
    assert {test.name for test in verdict.tests} <= {"ArrivalRate", "Score"}
