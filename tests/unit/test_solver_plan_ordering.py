"""Sorting of packed integers against numpy's own sorts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_solver.ordering import ascending


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([3, 1000, 70_000, 2**40, 2**60]),
    st.integers(0, 400),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.25, -5.0]),
)
def test_values_ascend_and_equal_ones_are_settled(most: int, count: int, seed: int, offset: float) -> None:
    random = np.random.default_rng(seed)
    values = random.integers(0, most, count).astype(np.float64) + offset
    ties = random.permutation(count) / max(1, count)
    assert (ascending(values) == np.argsort(values, kind="stable")).all()
    assert (ascending(values, ties) == np.lexsort((ties, values))).all()


def test_what_is_no_number_comes_last() -> None:
    assert ascending(np.array([np.nan, 3.0, np.inf, 1.0])).tolist() == [3, 1, 2, 0]


@pytest.mark.parametrize("count", [1, 2, 16_384, 16_385])
def test_indices_fit_into_the_key_at_any_length(count: int) -> None:
    assert (ascending(np.full(count, 131_071.0)) == np.arange(count)).all()
