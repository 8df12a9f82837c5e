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


def test_most_sets_of_the_size_that_is_named_are_large_enough() -> None:
    """Drawn anew from the same population; a set is never told that fewer than it has would do."""
    tried = []
    for floor, requests in (("0.85", 60), ("0.88", 300)):
        spec = cascade(objective={"minQuality": floor}).spec
        small = [target_summary(spec, probit_table(requests, seed)) for seed in range(1000, 1006)]
        named = [summary.needed for summary in small if not summary.enough and summary.needed is not None]
        assert min(named) >= 1.25 * requests
        tried += [target_summary(spec, probit_table(min(size, 4000), 7000 + k)).enough for k, size in enumerate(named)]
    assert len(tried) >= 8
    assert sum(tried) >= 0.5 * len(tried)


def test_no_size_is_named_for_a_floor_above_every_mean() -> None:
    spec = cascade(objective={"minQuality": "0.99"}).spec
    summary = target_summary(spec, probit_table(300, 7))
    assert (summary.enough, summary.needed, summary.in_doubt) == (False, None, False)


def test_a_mean_below_the_floor_by_less_than_its_error_is_in_doubt() -> None:
    """The best quality of this population is above 0.90; by some sets of 150 requests it is estimated below."""
    spec = cascade(objective={"minQuality": "0.9"}).spec
    below = [
        summary
        for seed in range(1000, 1010)
        if (summary := target_summary(spec, probit_table(150, seed))).needed is None and not summary.enough
    ]
    assert below
    assert all(summary.in_doubt for summary in below)
