"""Quality bounds: valid for all vectors at once, and not wasteful."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cascadia_solver.quality import quality_of_grids
from cascadia_solver.replay import Replay, ThresholdGrid, threshold_grids
from tests.support.planning import probit_table

CONFIDENCE = 0.95


def three_stage_grids(table: object) -> list[ThresholdGrid]:
    """A coarser grid than the planner's: as correlated, and cheaper."""
    levels = np.quantile(table.scores, np.arange(1, 13) / 13, axis=0)  # type: ignore[attr-defined]
    return [
        ThresholdGrid((0, 1, 2), (levels[:, 0], levels[:, 1])),
        ThresholdGrid((0, 2), (levels[:, 0],)),
        ThresholdGrid((1,), ()),
    ]


def test_all_bounds_hold_at_once_as_often_as_stated() -> None:
    population = probit_table(20_000, 1)
    draws, failures, selected_failures = 100, 0, 0
    for draw in range(draws):
        table = probit_table(300, 1000 + draw)
        grids = three_stage_grids(table)
        qualities = quality_of_grids(table, grids, confidence=CONFIDENCE, seed=draw)
        true = [Replay(grid, population.scores).at_exit(population.quality) / len(population) for grid in grids]
        excess = np.concatenate([q.bound - t for q, t in zip(qualities, true, strict=True)])  # type: ignore[operator]
        failures += bool((excess > 0).any())
        # What a planner does: the vector of least escalation whose bound is at the floor.
        bound, truth = qualities[0].bound, true[0]
        assert bound is not None
        good = np.flatnonzero(bound >= 0.82)
        selected_failures += bool(len(good) and truth[good].min() < 0.82)
    limit = draws * (1 - CONFIDENCE) + 2 * math.sqrt(draws * CONFIDENCE * (1 - CONFIDENCE))
    assert failures <= limit
    assert selected_failures <= limit


def test_the_band_is_narrower_than_bonferroni_and_wider_than_one_interval() -> None:
    table = probit_table(1500, 3)
    grids = threshold_grids(table, candidates=range(3), forced=(), max_escalations=None)
    qualities = quality_of_grids(table, grids, confidence=CONFIDENCE)
    alone = next(k for k, grid in enumerate(grids) if grid.stages == (1,))
    bound, mean = qualities[alone].bound, qualities[alone].mean[0]
    assert bound is not None
    deviations = (mean - bound[0]) / math.sqrt(mean * (1 - mean) / len(table))
    assert 2.0 < deviations < 3.3  # one interval: 1.64; Bonferroni over the 1,287 vectors: 3.9


def test_a_single_vector_has_about_wilsons_bound() -> None:
    table = probit_table(400, 5)
    grid = ThresholdGrid((1,), ())
    (quality,) = quality_of_grids(table, [grid], confidence=CONFIDENCE)
    p, n, z = table.quality[:, 1].mean(), 400, 1.645
    wilson = (p + z * z / (2 * n) - z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    assert quality.bound is not None
    assert quality.bound[0] == pytest.approx(wilson, abs=0.004)


def test_a_perfect_sample_does_not_prove_perfection() -> None:
    table = probit_table(100, 5)
    table = replace(table, quality=np.ones_like(table.quality))
    (quality,) = quality_of_grids(table, [ThresholdGrid((2,), ())], confidence=CONFIDENCE)
    assert quality.mean[0] == 1.0
    assert quality.bound is not None
    assert 0.95 < quality.bound[0] < 0.99  # the rule of three says 0.970


def test_weights_move_the_mean_and_widen_the_band() -> None:
    table = probit_table(800, 6)
    grid = ThresholdGrid((0,), ())
    weights = np.where(table.scores[:, 0] < np.median(table.scores[:, 0]), 1.8, 0.2)
    (plain,) = quality_of_grids(table, [grid], confidence=CONFIDENCE)
    (weighted,) = quality_of_grids(table, [grid], confidence=CONFIDENCE, weights=weights)
    assert weighted.mean[0] == pytest.approx((weights * table.quality[:, 0]).sum() / weights.sum())
    assert weighted.mean[0] < plain.mean[0] - 0.05
    assert weighted.mean[0] - weighted.bound[0] > plain.mean[0] - plain.bound[0]  # type: ignore[index]


def test_a_prior_has_no_bound_and_is_chosen_on_its_mean() -> None:
    table = replace(probit_table(200, 1), source="Prior")
    (quality,) = quality_of_grids(table, [ThresholdGrid((1,), ())], confidence=CONFIDENCE)
    assert quality.bound is None
    assert (quality.assured == quality.mean).all()
