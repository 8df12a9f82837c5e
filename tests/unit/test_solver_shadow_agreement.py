"""Agreement from shadow samples: without bias, however unevenly they were drawn."""

import numpy as np
import pytest

from cascadia_api.report import CalibrationSample, NextAnswer
from cascadia_solver.shadow_agreement import agreements


def sample(
    agreement: float | None, probability: float, *, stage: str = "small", other: str | None = "large"
) -> CalibrationSample:
    return CalibrationSample(
        request_id="r", stage=stage, score=0.9, output_tokens=1, input_tokens=1, inclusion_probability=probability,
        next=None if other is None else NextAnswer(stage=other, agreement=agreement),
    )  # fmt: skip


def test_a_biased_inclusion_does_not_bias_the_estimate() -> None:
    """Short, easy requests agree more, and were drawn five times as often: by themselves they mislead."""
    random = np.random.default_rng(7)
    easy = random.random(4000) < 0.5
    truth = np.where(easy, random.beta(9, 1, 4000), random.beta(3, 3, 4000))
    probability = np.where(easy, 0.25, 0.05)
    means, naive, errors = [], [], []
    for _ in range(300):
        drawn = np.flatnonzero(random.random(4000) < probability)
        (estimate,) = agreements(sample(float(truth[k]), float(probability[k])) for k in drawn)
        means.append(estimate.mean)
        errors.append(estimate.standard_error)
        naive.append(float(truth[drawn].mean()))
    error_of_mean = np.std(means) / np.sqrt(len(means))
    assert abs(np.mean(means) - truth.mean()) < 4 * error_of_mean
    assert abs(np.mean(naive) - truth.mean()) > 40 * error_of_mean
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


def test_thinned_reports_of_several_routers_add_up() -> None:
    many = [sample(1.0, 0.5 * 0.1)] * 10  # a busy router's: a tenth of what it drew
    few = [sample(0.0, 0.5)] * 100  # a quiet one's: 200 accepted answers in each case
    (estimate,) = agreements([*many, *few])
    assert estimate.mean == pytest.approx(0.5)
    assert estimate.samples == 110


def test_only_what_was_compared_counts_and_pairs_stay_apart() -> None:
    found = agreements(
        [
            sample(None, 0.5, other=None),
            sample(None, 0.5),
            sample(0.2, 0.0),
            sample(1.0, 1.0, stage="medium"),
            *[sample(0.5, 0.1)] * 3,
            *[sample(1.0, 1.0, other="medium")] * 2,
        ]
    )
    assert [(each.stage, each.next_stage, each.samples, each.mean) for each in found] == [
        ("small", "large", 3, pytest.approx(0.5)),
        ("small", "medium", 2, 1.0),
    ]
