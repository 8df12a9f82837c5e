"""What a calibration set says of its scores, and whether it is large enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_solver.calibration_summary import mean_of, score_auroc, target_summary
from tests.support.planning import cascade, probit_table


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=30))
def test_the_auroc_is_the_share_of_pairs_in_the_right_order(pairs: list[tuple[int, float]]) -> None:
    counted = [
        1.0 if s > t else 0.5 if s == t else 0.0 for s, q in pairs for t, r in pairs if q > r
    ]  # every pair of unequal worth, the better answer first
    scores, quality = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    expected = None if not counted else pytest.approx(sum(counted) / len(counted))
    assert score_auroc(scores, quality) == expected


def test_the_auroc_of_many_answers_is_counted_in_blocks() -> None:
    random = np.random.default_rng(1)
    quality = (random.random(3000) < 0.7).astype(float)
    scores = random.normal(quality * np.sqrt(2) * 0.8416, 1)  # binormal with an AUROC of 0.8
    assert score_auroc(scores, quality) == pytest.approx(0.8, abs=0.02)


def test_a_mean_has_a_standard_error() -> None:
    mean = mean_of(np.array([0.0, 1.0, 1.0, 1.0]))
    assert (mean.value, mean.standard_error) == (0.75, pytest.approx(0.25))
    assert mean_of(np.array([0.5])).standard_error is None


def test_a_set_that_is_too_small_says_which_size_would_do_and_twice_that_does() -> None:
    spec = cascade(objective={"minQuality": "0.88"}).spec
    small = target_summary(spec, probit_table(300, 7))
    assert not small.enough
    assert small.bound < 0.88 < small.mean
    assert small.needed is not None
    assert 300 < small.needed < 20_000
    assert target_summary(spec, probit_table(2 * small.needed, 8)).enough


def test_no_size_is_named_for_a_floor_above_every_mean() -> None:
    summary = target_summary(cascade(objective={"minQuality": "0.99"}).spec, probit_table(300, 7))
    assert (summary.enough, summary.needed) == (False, None)
