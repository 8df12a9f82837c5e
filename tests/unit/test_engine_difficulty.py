"""The difficulty model: stated accuracies, AUROCs, error correlation and lengths are what it draws."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import NormalDist, correlation, mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.errors import InputError
from cascadia_local.simulated_engine.calibration import LengthDistribution, sample_calibration
from cascadia_local.simulated_engine.completion_request import CompletionRequest
from cascadia_local.simulated_engine.difficulty import (
    DifficultyModel,
    ModelAbility,
    Outcome,
    ability_for_accuracy,
    default_abilities,
)
from cascadia_local.simulated_engine.outcomes import DrawnOutcomes, RecordedOutcomes
from cascadia_local.simulated_engine.recorded import decode_rows, encode_rows
from cascadia_solver.calibration import parse_calibration

DRAWS = 4000
CASCADE = default_abilities(["small", "medium", "large"])
INPUTS, OUTPUTS = LengthDistribution(mean=1155, p95=3100), LengthDistribution(mean=211, p95=500)


def draw(ability: ModelAbility, *, hardness: float = 0.0) -> list[Outcome]:
    model = DifficultyModel(ability, seed=3)
    return [model.outcome(b"request-%d" % n, hardness=hardness, base_tokens=200) for n in range(DRAWS)]


def auroc(outcomes: list[Outcome]) -> float:
    """Share of (right, wrong) pairs that the score orders rightly: the Mann-Whitney statistic."""
    ranked = sorted((outcome.score, outcome.quality) for outcome in outcomes)
    right = sum(quality > 0 for _, quality in ranked)
    ranks = sum(rank for rank, (_, quality) in enumerate(ranked, start=1) if quality > 0)
    return (ranks - right * (right + 1) / 2) / (right * (len(ranked) - right))


def accuracy(outcomes: list[Outcome]) -> float:
    return mean(outcome.quality for outcome in outcomes)


def tolerance(share: float) -> float:
    """Four standard errors of a share of all draws."""
    return 4 * math.sqrt(share * (1 - share) / DRAWS)


@pytest.mark.parametrize("ability", CASCADE, ids=lambda ability: ability.name)
def test_default_cascade_is_as_stated(ability: ModelAbility) -> None:
    stated = {"small": (0.72, 0.80), "medium": (0.86, 0.85), "large": (0.90, 0.87)}[ability.name]
    outcomes = draw(ability)
    assert accuracy(outcomes) == pytest.approx(stated[0], abs=tolerance(stated[0]))
    assert auroc(outcomes) == pytest.approx(stated[1], abs=0.03)
    assert ability.auroc == pytest.approx(stated[1], abs=0.005)


def test_errors_of_different_models_are_correlated() -> None:
    qualities = [[outcome.quality for outcome in draw(ability)] for ability in CASCADE]
    for first, second in combinations(qualities, 2):
        assert 0.3 <= correlation(first, second) <= 0.5


def test_without_correlation_errors_are_independent() -> None:
    models = [DifficultyModel(ability, correlation=0.0) for ability in CASCADE[:2]]
    first, second = ([model.outcome(b"%d" % n, base_tokens=9).quality for n in range(DRAWS)] for model in models)
    assert abs(correlation(first, second)) < 4 / math.sqrt(DRAWS)


@pytest.mark.parametrize("hardness", [-0.5, 0.5, 1.5])
def test_hardness_shifts_accuracy_by_the_probit(hardness: float) -> None:
    small = CASCADE[0]
    expected = NormalDist().cdf(small.ability - hardness)
    harder = draw(small, hardness=hardness)
    assert accuracy(harder) == pytest.approx(expected, abs=tolerance(expected))
    # The scores move with it: that is what drift detection sees.
    assert (mean(o.score for o in harder) < mean(o.score for o in draw(small))) == (hardness > 0)


def test_small_models_write_longer_answers_to_hard_requests() -> None:
    small, large = draw(CASCADE[0]), draw(CASCADE[2])
    lengths = {quality: mean(o.output_tokens for o in small if o.quality == quality) for quality in (0.0, 1.0)}
    assert lengths[0.0] > 1.15 * lengths[1.0]
    assert mean(o.output_tokens for o in small) == pytest.approx(200 * CASCADE[0].verbosity, rel=0.03)
    assert mean(o.output_tokens for o in large) == pytest.approx(200 * CASCADE[2].verbosity, rel=0.03)


def test_outcomes_depend_on_key_seed_and_model_only() -> None:
    small, again = DifficultyModel(CASCADE[0], seed=1), DifficultyModel(CASCADE[0], seed=1)
    assert small.outcome(b"a", base_tokens=50) == again.outcome(b"a", base_tokens=50)
    assert small.outcome(b"a", base_tokens=50) != small.outcome(b"b", base_tokens=50)
    assert small.outcome(b"a", base_tokens=50) != DifficultyModel(CASCADE[0], seed=2).outcome(b"a", base_tokens=50)


@given(key=st.binary(max_size=40), hardness=st.floats(-20, 20), base=st.none() | st.integers(1, 1_000_000))
@settings(max_examples=50)
def test_every_outcome_is_in_range(key: bytes, hardness: float, base: int | None) -> None:
    outcome = DifficultyModel(CASCADE[0]).outcome(key, hardness=hardness, base_tokens=base)
    assert 0 < outcome.score < 1
    assert outcome.quality in (0.0, 1.0)
    assert outcome.output_tokens >= 1


@given(share=st.floats(0.01, 0.99))
@settings(max_examples=50)
def test_ability_inverts_accuracy(share: float) -> None:
    assert NormalDist().cdf(ability_for_accuracy(share)) == pytest.approx(share)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_default_abilities_rise_with_the_stage(count: int) -> None:
    abilities = default_abilities([f"m{k}" for k in range(count)])
    assert [a.ability for a in abilities] == sorted(a.ability for a in abilities)
    assert abilities[-1].ability == pytest.approx(ability_for_accuracy(0.90))


def test_calibration_rows_are_what_the_engines_would_answer_and_the_planner_reads_them() -> None:
    rows = sample_calibration(CASCADE, 200, seed=5, inputs=INPUTS, outputs=OUTPUTS, model_seed=7)
    calibration, problems = parse_calibration(
        encode_rows(rows).splitlines(), models=["small", "medium", "large"], scorer="logprob-mean"
    )
    assert not problems
    assert list(calibration.ids) == [f"calibration-5-{n}" for n in range(200)]

    engine = DifficultyModel(CASCADE[1], seed=7)
    for row, score, quality in zip(rows, calibration.scores[:, 1], calibration.quality[:, 1], strict=True):
        outcome = engine.outcome(row.id.encode(), base_tokens=100)
        assert (outcome.score, outcome.quality) == (score, quality)


def test_recorded_answers_are_looked_up_by_row() -> None:
    rows = list(
        decode_rows(encode_rows(sample_calibration(CASCADE, 3, seed=5, inputs=INPUTS, outputs=OUTPUTS)).splitlines())
    )
    recorded = RecordedOutcomes(rows, "small", "logprob-mean", DrawnOutcomes(DifficultyModel(CASCADE[0])))
    request = CompletionRequest(b"k", "calibration-5-1", 0.0, None, 9, 30, None, False, False, False, 0)
    expected = rows[1].answers["small"]
    assert recorded.outcome(request) == (
        rows[1].input_tokens,
        Outcome(expected.scores["logprob-mean"] or 0, expected.quality, int(expected.output_tokens)),
    )
    drawn = DrawnOutcomes(DifficultyModel(CASCADE[0])).outcome(request)
    assert recorded.outcome(request._replace(row="unknown")) == drawn
    assert recorded.outcome(request._replace(row=None)) == drawn

    unscored = RecordedOutcomes(rows, "small", "another-scorer", DrawnOutcomes(DifficultyModel(CASCADE[0])))
    assert unscored.outcome(request)[1] == recorded.outcome(request)[1]._replace(score=drawn[1].score)


def test_a_bad_recorded_line_is_named() -> None:
    with pytest.raises(InputError, match=r"line 2: .*quality"):
        list(decode_rows([b"", b'{"id":"a","inputTokens":3,"answers":{"small":{"scores":{},"outputTokens":2}}}']))


def test_lengths_have_the_stated_mean_and_percentile() -> None:
    mu, sigma = OUTPUTS.parameters()
    assert math.exp(mu + sigma**2 / 2) == pytest.approx(211)
    assert math.exp(mu + NormalDist().inv_cdf(0.95) * sigma) == pytest.approx(500)


@pytest.mark.parametrize(("mean_tokens", "p95"), [(0.0, 5.0), (10.0, 9.0), (10.0, 60.0)])
def test_impossible_lengths_are_refused(mean_tokens: float, p95: float) -> None:
    with pytest.raises(InputError, match="lengths"):
        LengthDistribution(mean=mean_tokens, p95=p95).parameters()
