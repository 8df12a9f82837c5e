"""Whether the traffic is still what the plan assumed: tested, not guessed.

Four figures are compared with the plan's demand: the arrival rate, the lengths of prompts and of the
first live stage's answers, and that stage's scores. Drift is called only where a test is both
*significant* and *large*:

* Significance is controlled over all tests and repeated looks by Bonferroni: each test has the level
  1 / (looks a week times tests), so that traffic that has not changed is expected to raise at most one
  false alarm a week, however the looks overlap.
* Large is an effect-size floor: with enough requests the slightest change is significant and none is
  worth moving replicas for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cascadia_api.plan import PlanDemand
from cascadia_api.report import EDGES, Histogram, StageReport, WorkloadReport, merge_histograms

__all__ = [
    "DriftTest",
    "DriftVerdict",
    "EffectFloors",
    "MergedReport",
    "assess",
    "chi_square_tail",
    "looks_per_week",
    "merge_reports",
]

LENGTH_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of `PlanDemand.input_token_quantiles` and `output_token_quantiles`."""
SCORE_LEVELS = tuple(k / 10 for k in range(1, 10))
"""Of `PlanDemand.score_deciles`."""
_TESTS = 4
_LEAST_REQUESTS = 200
"""Fewer are not tested: the rarest bins (5 %) then hold 10, enough for the chi-square tail."""
_LEAST_KNOWN = 0.95
"""Share of the scored answers whose lengths must be known: those of the rejected alone would mislead."""
_SECONDS_PER_WEEK = 7 * 86_400


@dataclass(frozen=True, slots=True)
class EffectFloors:
    """The least change that counts as drift.

    Attributes:
        rate: Relative change of the arrival rate.
        length: Relative change of a mean length.
        score_share: Change of the share of scores below some value, 0 to 1.
        dispersion: Variance of arrival counts over their mean that is taken as normal: requests come
            in bursts, and a Poisson test (1) would take each for a change of rate.
    """

    rate: float = 0.2
    length: float = 0.2
    score_share: float = 0.08
    dispersion: float = 2.0


@dataclass(frozen=True, slots=True)
class MergedReport:
    """The reports of all routers of a cascade, added up.

    Attributes:
        requests_per_second: Client requests that entered, per service second.
        window_seconds: Longest window reported, service seconds.
        arrivals: Client requests that entered.
        failures: Of these, answered with a 5xx or not at all.
        interrupted: Of these, ended by an error after the first byte.
        refused: Of these, refused by the router.
        answered_by: Answers per stage that gave them.
        end_to_end_ms: As measured where requests enter; None without reports.
        time_to_first_token_ms: The same, to the first byte.
        in_flight: Requests held now.
        stages: What the routers saw at their own stages, by stage.
    """

    requests_per_second: float
    window_seconds: float
    arrivals: int
    failures: int
    interrupted: int
    refused: int
    answered_by: Mapping[str, int]
    end_to_end_ms: Histogram | None
    time_to_first_token_ms: Histogram | None
    in_flight: int
    stages: Mapping[str, StageReport]


@dataclass(frozen=True, slots=True)
class DriftTest:
    """One figure, tested.

    Attributes:
        name: ``ArrivalRate``, ``InputTokens``, ``OutputTokens`` or ``Score``.
        statistic: The test's statistic: z of the rate, else chi-square.
        p_value: Probability of a statistic as extreme under the plan's demand.
        level: Level at which it counts, after correction for tests and looks.
        effect: Relative change of the rate or mean length, or change of share for the score; signed.
        drifted: Whether it is significant and large.
        message: All of that in one sentence.
    """

    name: str
    statistic: float
    p_value: float
    level: float
    effect: float
    drifted: bool
    message: str


@dataclass(frozen=True, slots=True)
class DriftVerdict:
    """What one look at the traffic says.

    Attributes:
        drifted: Whether any test found drift.
        tests: The tests that had enough requests.
    """

    drifted: bool
    tests: tuple[DriftTest, ...]

    @property
    def message(self) -> str:
        """What drifted, with statistics and levels; otherwise that nothing did."""
        found = [test.message for test in self.tests if test.drifted]
        if found:
            return "; ".join(found)
        return "the traffic is what the plan assumed" if self.tests else "too few requests to test"


def looks_per_week(interval_seconds: float) -> float:
    """Number of looks a week at one every `interval_seconds`."""
    return _SECONDS_PER_WEEK / interval_seconds


def merge_reports(reports: Iterable[WorkloadReport]) -> MergedReport:
    """Add up the reports of a cascade's routers.

    Rates are added, each over its own window: a router that has just started reports a shorter one.
    """
    reports = list(reports)
    answered: dict[str, int] = {}
    by_stage: dict[str, list[StageReport]] = {}
    for report in reports:
        for stage, count in report.answered_by.items():
            answered[stage] = answered.get(stage, 0) + count
        if report.stage is not None:
            by_stage.setdefault(report.stage.stage, []).append(report.stage)
    return MergedReport(
        requests_per_second=sum(r.arrivals / r.window_seconds for r in reports if r.window_seconds > 0),
        window_seconds=max((r.window_seconds for r in reports), default=0.0),
        arrivals=sum(r.arrivals for r in reports),
        failures=sum(r.failures for r in reports),
        interrupted=sum(r.interrupted for r in reports),
        refused=sum(r.refused for r in reports),
        answered_by=answered,
        end_to_end_ms=merge_histograms([r.end_to_end_ms for r in reports]) if reports else None,
        time_to_first_token_ms=merge_histograms([r.time_to_first_token_ms for r in reports]) if reports else None,
        in_flight=sum(r.in_flight for r in reports),
        stages={stage: _merge_stage(stage, parts) for stage, parts in by_stage.items()},
    )


def _merge_stage(stage: str, parts: Sequence[StageReport]) -> StageReport:
    return StageReport(
        stage=stage,
        requests=sum(p.requests for p in parts),
        accepted=sum(p.accepted for p in parts),
        escalated=sum(p.escalated for p in parts),
        scorer_errors=sum(p.scorer_errors for p in parts),
        engine_errors=sum(p.engine_errors for p in parts),
        input_tokens=merge_histograms([p.input_tokens for p in parts]),
        output_tokens=merge_histograms([p.output_tokens for p in parts]),
        service_ms=merge_histograms([p.service_ms for p in parts]),
        scores=merge_histograms([p.scores for p in parts]),
    )


def assess(
    demand: PlanDemand,
    report: MergedReport,
    *,
    first_stage: str,
    looks_per_week: float,
    floors: EffectFloors = EffectFloors(),
) -> DriftVerdict:
    """Test whether the traffic has drifted from what a plan was made for.

    Args:
        demand: The plan's demand.
        report: What the routers saw in one window.
        first_stage: The plan's first live stage: every request is prompted there, and
            the plan's score deciles and answer lengths are its.
        looks_per_week: How often this is asked (see the function of this name).
        floors: The least change that counts.

    Returns:
        The verdict. A figure seen fewer than 200 times, or unknown to the plan, is not tested.
    """
    level = 1.0 / (looks_per_week * _TESTS)
    tests: list[DriftTest | None] = [_rate(demand, report, level, floors)]
    stage = report.stages.get(first_stage)
    if stage is not None and _lengths_are_of_all(stage):
        tests += [
            _length(
                "InputTokens", demand.input_tokens_mean, demand.input_token_quantiles, stage.input_tokens, level, floors
            ),
            _length(
                "OutputTokens",
                demand.output_tokens_mean,
                demand.output_token_quantiles,
                stage.output_tokens,
                level,
                floors,
            ),
        ]
    if stage is not None:
        tests.append(_score(demand.score_deciles, stage.scores, level, floors))
    run = tuple(test for test in tests if test is not None)
    return DriftVerdict(drifted=any(test.drifted for test in run), tests=run)


def _lengths_are_of_all(stage: StageReport) -> bool:
    """Whether lengths are known of (nearly) all scored answers: of those that a gate rejected they are not."""
    return stage.output_tokens.count() >= _LEAST_KNOWN * stage.scores.count()


def _rate(demand: PlanDemand, report: MergedReport, level: float, floors: EffectFloors) -> DriftTest | None:
    """Compare counts after Anscombe's transform, in which a (scaled) Poisson count has unit variance."""
    planned, seen = demand.requests_per_second, report.requests_per_second
    expected = planned * report.window_seconds
    if max(expected, report.arrivals) < _LEAST_REQUESTS:
        return None
    count = seen * report.window_seconds
    statistic = 2 * (math.sqrt(count / floors.dispersion + 0.375) - math.sqrt(expected / floors.dispersion + 0.375))
    p_value = math.erfc(abs(statistic) / math.sqrt(2))
    effect = seen / planned - 1
    words = f"arrival rate {seen:.3g}/s against {planned:.3g}/s planned ({effect:+.0%}; z = {statistic:.1f}"
    return _test("ArrivalRate", statistic, p_value, level, effect, floors.rate, words)


def _length(
    name: str,
    planned_mean: float,
    quantiles: Sequence[float],
    seen: Histogram,
    level: float,
    floors: EffectFloors,
) -> DriftTest | None:
    count = seen.count()
    bins = _bins(quantiles, LENGTH_LEVELS, seen)
    if count < _LEAST_REQUESTS or len(bins) < 2:
        return None
    statistic = _chi_square(bins, count)
    mean = seen.sum / count
    effect = mean / planned_mean - 1
    what = "prompt" if name == "InputTokens" else "answer"
    words = (
        f"mean {what} length {mean:.0f} tokens against {planned_mean:.0f} planned "
        f"({effect:+.0%}; chi-square = {statistic:.1f}"
    )
    return _test(name, statistic, chi_square_tail(statistic, len(bins) - 1), level, effect, floors.length, words)


def _score(deciles: Sequence[float], seen: Histogram, level: float, floors: EffectFloors) -> DriftTest | None:
    count = seen.count()
    bins = _bins(deciles, SCORE_LEVELS, seen)
    if count < _LEAST_REQUESTS or len(bins) < 2:
        return None
    statistic = _chi_square(bins, count)
    effect = planned_below = seen_below = 0.0
    for planned, share in bins[:-1]:
        planned_below += planned
        seen_below += share
        effect = max(effect, seen_below - planned_below, key=abs)
    side = "lower" if effect > 0 else "higher"
    words = (
        f"first-stage scores are {side} than planned (a share of {abs(effect):.0%} of the answers has moved; "
        f"chi-square = {statistic:.1f}"
    )
    return _test(
        "Score", statistic, chi_square_tail(statistic, len(bins) - 1), level, effect, floors.score_share, words
    )


def _test(
    name: str, statistic: float, p_value: float, level: float, effect: float, floor: float, words: str
) -> DriftTest:
    return DriftTest(
        name=name,
        statistic=statistic,
        p_value=p_value,
        level=level,
        effect=effect,
        drifted=p_value < level and abs(effect) >= floor,
        message=f"{words}, p = {p_value:.1e} at level {level:.1e}, floor {floor:.0%})",
    )


def _bins(quantiles: Sequence[float], levels: Sequence[float], seen: Histogram) -> list[tuple[float, float]]:
    """Planned and seen shares of the bins between quantiles.

    A quantile that repeats, or that is not below the histogram's last edge, sits on an atom (a cap on
    lengths, a score of exactly 1): its level is not the share below it, so it divides no bins.
    """
    if len(quantiles) != len(levels) or not seen.count():
        return []
    last = EDGES[seen.edges][-1]
    usable = [
        (quantile, level)
        for quantile, level in zip(quantiles, levels, strict=True)
        if quantile < last and sum(quantile == other for other in quantiles) == 1
    ]
    bins, planned_below, seen_below = [], 0.0, 0.0
    for quantile, level in usable:
        share = _share_below(seen, quantile)
        bins.append((level - planned_below, share - seen_below))
        planned_below, seen_below = level, share
    return [*bins, (1 - planned_below, 1 - seen_below)]


def _share_below(seen: Histogram, value: float) -> float:
    """Share of values below `value`, linear within its bucket."""
    edges, below, low = EDGES[seen.edges], 0.0, 0.0
    for edge, count in zip(edges, seen.counts, strict=False):
        if value <= edge:
            return (below + count * max(value - low, 0.0) / (edge - low)) / seen.count()
        below, low = below + count, edge
    return below / seen.count()


def _chi_square(bins: Sequence[tuple[float, float]], count: int) -> float:
    """Pearson's statistic of seen against planned shares."""
    return count * sum((share - planned) ** 2 / planned for planned, share in bins)


def chi_square_tail(statistic: float, degrees: int) -> float:
    """Probability that a chi-square variable exceeds `statistic` (finite sums: Abramowitz & Stegun 26.4.4-5)."""
    if statistic <= 0:
        return 1.0
    half = statistic / 2
    if degrees % 2:
        tail, term = math.erfc(math.sqrt(half)), math.sqrt(half / math.pi) * 2 * math.exp(-half)
        first = 3
    else:
        tail, term = math.exp(-half), half * math.exp(-half)
        first = 4
    for order in range(first, degrees + 1, 2):
        tail += term
        term *= statistic / order
    return min(tail, 1.0)
