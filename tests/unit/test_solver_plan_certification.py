"""Quality that holds after selection: certified vectors keep the floor as often as stated, at little cost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.certification import QualityStudy, estimate_quality
from cascadia_solver.quality import QualityOfGrid, quality_of_grids
from cascadia_solver.replay import Replay, ThresholdGrid, exit_stages, threshold_grids
from tests.support.planning import probit_table

CONFIDENCE = 0.95
PRICES = np.array([1.0, 6.0, 25.0])


def grids_of(table: CalibrationSet) -> list[ThresholdGrid]:
    """Coarser than the planner's: as correlated, and cheaper."""
    levels = np.quantile(table.scores, np.arange(1, 17) / 17, axis=0)
    return [
        ThresholdGrid((0, 1, 2), (levels[:, 0], levels[:, 1])),
        ThresholdGrid((0, 2), (levels[:, 0],)),
        ThresholdGrid((1, 2), (levels[:, 1],)),
        ThresholdGrid((1,), ()),
        ThresholdGrid((2,), ()),
    ]


def costs_of(study: QualityStudy) -> list[np.ndarray]:
    ones = np.ones(len(study.table))
    return [Replay(g, study.table.scores).reach(ones) @ PRICES[list(g.stages)] for g in study.grids]


def certified(study: QualityStudy, floor: float) -> list[QualityOfGrid]:
    none = [np.empty(0, dtype=np.int64) for _ in study.grids]
    return study.certified(costs_of(study), none, floor=floor, confidence=CONFIDENCE)


def cheapest(study: QualityStudy, qualities: list[QualityOfGrid], floor: float) -> tuple[float, int, int] | None:
    return min(
        (
            (float(cost[k]), g, int(k))
            for g, (quality, cost) in enumerate(zip(qualities, costs_of(study), strict=True))
            for k in np.flatnonzero(quality.assured >= floor)
        ),
        default=None,
    )


@pytest.mark.parametrize(("requests", "floor"), [(300, 0.80), (1000, 0.85)])
def test_the_chosen_vector_keeps_the_floor_as_often_as_stated(requests: int, floor: float) -> None:
    population = probit_table(20_000, 1)
    grids = grids_of(population)
    true = [Replay(grid, population.scores).at_exit(population.quality) / len(population) for grid in grids]
    draws, broken, band_broken = 100, 0, 0
    for draw in range(draws):
        study = estimate_quality(probit_table(requests, 1000 + draw), grids)
        qualities = certified(study, floor)
        best = cheapest(study, qualities, floor)
        broken += best is not None and bool(true[best[1]][best[2]] < floor)
        bounds = np.concatenate([q.assured for q in qualities])
        band_broken += bool((np.concatenate(true) < bounds).any())
    limit = draws * (1 - CONFIDENCE) + 2 * math.sqrt(draws * CONFIDENCE * (1 - CONFIDENCE))
    assert broken <= limit
    assert band_broken <= limit  # all statements together


def test_it_is_cheaper_than_the_band_over_everything() -> None:
    by_path, by_band = [], []
    for draw in range(5):
        table = probit_table(1500, 50 + draw)
        study = estimate_quality(
            table, threshold_grids(table, candidates=range(3), forced=(), max_escalations=None), seed=draw
        )
        path = cheapest(study, certified(study, 0.85), 0.85)
        band = cheapest(study, quality_of_grids(table, study.grids, confidence=CONFIDENCE), 0.85)
        assert path is not None
        assert band is not None
        by_path.append(path[0])
        by_band.append(band[0])
    assert np.mean(by_path) < 0.92 * np.mean(by_band)


def test_estimates_are_close_to_the_truth_and_means_are_exact() -> None:
    population, table = probit_table(50_000, 1), probit_table(1000, 3)
    study = estimate_quality(table, grids_of(table))
    for grid, quality, estimate in zip(study.grids, study.qualities, study.estimates, strict=True):
        true = Replay(grid, population.scores).at_exit(population.quality) / len(population)
        assert np.abs(estimate - true).max() < 0.04
        for k in (0, len(grid) - 1):
            answered = exit_stages(grid.stages, grid.vector(k), table.scores)
            assert quality.mean[k] == pytest.approx(table.quality[np.arange(len(table)), answered].mean())


def test_nothing_is_certified_where_no_vector_keeps_the_floor() -> None:
    table = probit_table(500, 4)
    study = estimate_quality(table, grids_of(table))
    qualities = certified(study, 0.95)
    assert all((quality.assured < 0.95).all() for quality in qualities)
    assert max(float(quality.assured.max()) for quality in qualities) > 0.8  # what is reachable is still said


def test_single_models_and_kept_vectors_are_bounded_and_others_are_not() -> None:
    table = probit_table(800, 5)
    study = estimate_quality(table, grids_of(table))
    kept = [np.array([3, 40]), *(np.empty(0, dtype=np.int64) for _ in study.grids[1:])]
    far = [np.full(len(grid), np.inf) for grid in study.grids]
    qualities = study.certified(far, kept, floor=0.85, confidence=CONFIDENCE)
    assert np.flatnonzero(qualities[0].assured).tolist() == [3, 40]
    assert qualities[1].assured.max() == 0.0
    assert 0.6 < qualities[3].assured[0] < qualities[3].mean[0]
    assert 0.6 < qualities[4].assured[0] < qualities[4].mean[0]


def test_weights_move_what_is_certified() -> None:
    table = probit_table(1500, 6)
    harder = np.where(table.scores[:, 0] < np.median(table.scores[:, 0]), 1.8, 0.2)
    plain = estimate_quality(table, grids_of(table))
    weighted = estimate_quality(table, grids_of(table), weights=harder)
    assert weighted.qualities[3].mean[0] == pytest.approx((harder * table.quality[:, 1]).sum() / harder.sum())
    assert weighted.qualities[3].mean[0] < plain.qualities[3].mean[0]
    assert weighted.estimates[3][0] < plain.estimates[3][0]


def test_a_prior_is_chosen_on_its_mean() -> None:
    table = replace(probit_table(200, 1), source="Prior")
    study = estimate_quality(table, grids_of(table))
    qualities = certified(study, 0.8)
    assert all(quality.bound is None for quality in qualities)
    assert (qualities[0].assured == qualities[0].mean).all()
    assert (study.estimates[0] == qualities[0].mean).all()


def test_what_is_known_of_a_set_is_used_for_its_like_and_for_no_other() -> None:
    table = probit_table(400, 8)
    first = estimate_quality(table, grids_of(table))
    same = replace(table, scores=table.scores.copy(), quality=table.quality.copy())
    other = replace(table, quality=table.quality[::-1].copy())
    for like, equal in ((same, True), (other, False), (same.with_able(np.ones((400, 3), dtype=np.bool_)), True)):
        again = estimate_quality(like, grids_of(like))
        agree = [(a == b).all() for a, b in zip(first.estimates, again.estimates, strict=True)]
        assert all(agree) == equal
    assert not (estimate_quality(table, grids_of(table), seed=1).guides[3] == first.guides[3]).all()
