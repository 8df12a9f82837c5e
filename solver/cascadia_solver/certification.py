"""Quality that still holds after the planner has chosen: a bound sharp where plans are, valid after selection.

A band over every threshold vector searched has to pay for a thousand vectors of which one is used. Here
the vectors are first put in order, and then tested in that order (fixed-sequence testing, as in Pareto
testing, Laufer-Goldshtein et al. 2023):

1. A smooth model of which answers are right, given the scores (logistic, a few coefficients), estimates
   the quality of every vector. For each level of what is minimised, the vector of the best estimate among
   those at most at that level makes the *path*, best quality first. There may be several things to minimise (cost, and
   what targets are on): the best under each are on the path.
2. Along the path, "its true mean quality is below the floor" is tested at the full level, until the first
   vector fails. All before it are certified. No correction for their number is due, since a true
   hypothesis is rejected only if the first true one on the path is.
3. The order must not be learnt from the answers that it is tested on. So requests are dealt into folds,
   and each is tested under the vector that the other folds choose at the same level. The test is unbiased
   for the mean of those vectors; the vector that all folds together choose is at least as good on average,
   and quality is stationary at the best vector of a level, so they differ in second order only.
4. A sequence of noisy tests stops too early: at the first dip. Neighbours on the path answer nearly all
   requests alike, so what is tested is smoothed along it: the distance of the mean from the model's
   estimate is fitted by a line through the neighbours within a standard error. That leaves out the dips and
   nothing else: a model that is wrong by any straight line makes no difference, and one that is wrong by a
   curve makes one of higher order than the standard error.

Besides, a band bounds the kept vectors (path, frontier, single models) simultaneously, whatever the floor.

Guarantee. Calibration requests are taken as independent draws from the traffic. With probability at least
the confidence, asymptotically in the number of requests, every certified vector's true mean quality is at
least the floor, and every kept vector's at least its band. The error is split 9 : 1 between the two.
Intervals are Wilson's (see `quality`), so that small sets and means near 1 keep coverage; tests hold the
guarantee against generated draws with known population quality.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.answer_model import FOLDS, expected_worth, folds_of
from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.compiled import compiled
from cascadia_solver.quality import QualityOfGrid, wilson_lower
from cascadia_solver.replay import Replay, ThresholdGrid

__all__ = ["QualityStudy", "estimate_quality"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_PATH_SHARE = 0.9
"""Share of the error that the path may make; the rest is the band's."""
_FAR = 4.0
"""Vectors estimated at more standard errors than this above the floor: few of them are enough."""
_FAR_LEVELS, _NEAR_LEVELS = 24, 72
_CLOSE, _CLOSE_IF_SAFE = 1.15, 2.0
"""Vectors that another choice of stages beats by more than this factor are left off the path: each is one more
test that may end it, but for those so far above the floor that they hardly can."""
_BAND_DRAWS = 2000
_DRAWN_AT_ONCE = 32
_SPARE = 2.5
"""Vectors that are estimated at so many standard errors above the floor hardly fail."""
_HOPELESS = 2.0
"""Vectors estimated at more standard errors than this below the floor are left off the path."""


@dataclass(frozen=True, eq=False)
class QualityStudy:
    """Estimates of every vector's quality, from which bounds are made for a few.

    Attributes:
        table: Calibration set of n requests.
        grids: Everything that is searched.
        weights: Weights of the requests, mean 1 [n].
        qualities: Mean of every vector; no bounds.
        guides: Estimates of each grid's vectors: from all requests, then without each fold [folds + 1, V].
        fold: Fold of each request [n].
    """

    table: CalibrationSet
    grids: Sequence[ThresholdGrid]
    weights: Floats
    qualities: Sequence[QualityOfGrid]
    guides: Sequence[Floats]
    fold: Integers

    @property
    def estimates(self) -> list[Floats]:
        """What vectors are screened on, of each grid [V]: smooth estimates, or the prior's means."""
        return [guide[0] for guide in self.guides]

    def of(self, places: Sequence[int]) -> QualityStudy:
        """The same study of some of the grids."""
        return replace(
            self,
            grids=[self.grids[g] for g in places],
            qualities=[self.qualities[g] for g in places],
            guides=[self.guides[g] for g in places],
        )

    def certified(
        self,
        values: Sequence[Floats],
        kept: Sequence[Integers],
        *,
        floor: float,
        confidence: float,
        seed: int = 0,
        aims: int = 1,
        foremost: int = 1,
    ) -> list[QualityOfGrid]:
        """Bound the quality of the path, of single models and of other kept vectors.

        Args:
            values: What is minimised, for each vector of each grid [V]; infinite where it cannot be had. It may
                depend on the scores, not on the quality.
            kept: Other vectors of each grid to be bounded.
            floor: Quality floor.
            confidence: Probability with which all that is said holds.
            seed: Of the band's draws.
            aims: The grids are given so many times over, each time with another thing to be minimised: the vectors
                that are best for one or the other make one path.
            foremost: Of the first so many aims all vectors are on it, of the others those well above the floor: they
                are there in case the others turn out not to do, and must not end the path for these.

        Returns:
            Of each grid: bounds of the vectors that were looked at, 0 for the others; none under a prior.
        """
        if self.table.source == "Prior":
            return list(self.qualities)
        starts = np.cumsum([0, *(len(grid) for grid in self.grids)])
        orders = [np.lexsort((-guide[0], value)) for value, guide in zip(values, self.guides, strict=True)]
        path = self._path(values, orders, starts, floor, aims, foremost)
        others = np.setdiff1d(
            np.concatenate([self._singles(starts), *(k + s for k, s in zip(kept, starts, strict=False))]), path
        )
        rivals = self._rivals(path, values, orders, starts)
        columns = self._worth(np.concatenate([rivals, np.tile(others, (FOLDS, 1))], axis=1), starts)
        error = 1 - confidence
        mean = self.weights @ columns / len(columns)
        # In place: with a large set this is the largest array of all.
        columns -= mean
        columns *= self.weights[:, None]
        spread = np.sqrt(np.einsum("rv,rv->v", columns, columns)) / len(columns)
        critical = _band(columns, (1 - _PATH_SHARE) * error, seed)
        bound = wilson_lower(mean, spread, critical, len(columns))
        level = NormalDist().inv_cdf(1 - _PATH_SHARE * error)
        smooth = self._smoothed(path, starts, mean[: len(path)], spread[: len(path)])
        tested = wilson_lower(smooth, spread[: len(path)], level, len(columns))
        passed = int((tested < floor).argmax()) if (tested < floor).any() else len(path)
        bound[:passed] = np.maximum(bound[:passed], floor)
        if passed < len(path):
            # Of the first that fails, its own interval holds too (Hsu and Berger 1999).
            bound[passed] = max(bound[passed], tested[passed])
        flat = np.zeros(int(starts[-1]))
        flat[np.concatenate([path, others])] = bound
        return [
            replace(quality, bound=flat[start : start + len(grid)])
            for quality, grid, start in zip(self.qualities, self.grids, starts, strict=False)
        ]

    def clear_of(self, floor: float) -> float:
        """The estimate from which on a vector hardly fails to be certified for a floor."""
        return floor + _SPARE * self._error(floor)

    def _error(self, floor: float) -> float:
        """About the standard error of a mean that is at the floor."""
        return math.sqrt(max(floor * (1 - floor), 1e-3) / len(self.table))

    def _path(
        self,
        values: Sequence[Floats],
        orders: Sequence[Integers],
        starts: Integers,
        floor: float,
        aims: int,
        foremost: int,
    ) -> Integers:
        """Vectors to test, best estimate first [L].

        Those of each choice of stages that none of its own of lesser value is estimated to equal, unless another
        choice does as well for much less (what is minimised is itself an estimate at this point), and the single
        models that are far above the floor.
        """
        fronts = [
            _front(value, guide[0], order) for value, guide, order in zip(values, self.guides, orders, strict=True)
        ]
        path = np.concatenate([front + start for front, start in zip(fronts, starts, strict=False)])
        guide = np.concatenate(self.estimates)[path]
        value = np.concatenate(values)[path]
        order = np.lexsort((value, -guide))
        path, guide, value = path[order], guide[order], value[order]
        error = self._error(floor)
        safe = guide > floor + _FAR * error
        aim = (np.searchsorted(starts, path, side="right") - 1) // (len(values) // aims)
        least = np.empty(len(path))
        for of in range(aims):  # what is minimised under one aim cannot be compared with that under another
            least[aim == of] = np.minimum.accumulate(value[aim == of])
        far = path[safe & (value <= _CLOSE_IF_SAFE * least)]
        hopeful = np.arange(len(path)) <= (guide >= floor - _HOPELESS * error).sum()
        risky = (aim >= foremost) & (guide < self.clear_of(floor))
        near = path[~safe & ~risky & hopeful & (value <= _CLOSE * least)]
        alone = self._singles(starts)
        alone = alone[np.concatenate(self.estimates)[alone] > floor + _FAR * error]
        return np.concatenate([np.union1d(alone, _spread(far, _FAR_LEVELS * aims)), _spread(near, _NEAR_LEVELS * aims)])

    def _singles(self, starts: Integers) -> Integers:
        """The vector of each model alone."""
        return np.array([s for s, grid in zip(starts, self.grids, strict=False) if len(grid.stages) == 1], np.int64)

    def _smoothed(self, path: Integers, starts: Integers, mean: Floats, spread: Floats) -> Floats:
        """Means along the path without what only single vectors have: local lines through what the model is off by.

        Args:
            path: Vectors [L].
            starts: First vector of each grid: other stages' vectors are no neighbours.
            mean: Their measured means [L].
            spread: Standard errors of these [L].
        """
        if not len(path):
            return mean
        guide = np.concatenate(self.estimates)[path]
        apart = guide[None, :] - guide[:, None]
        place = np.searchsorted(starts, path, side="right")
        weight = np.maximum(0.0, 1 - (apart / np.maximum(spread, 1e-9)[:, None]) ** 2) * (place == place[:, None])
        total, first, second = weight.sum(axis=1), (weight * apart).sum(axis=1), (weight * apart**2).sum(axis=1)
        lines = weight * (second[:, None] - first[:, None] * apart)
        alone = total * second - first**2 <= 1e-9 * total * second  # no line goes through one point
        lines[alone] = weight[alone]
        return np.asarray(guide + lines @ (mean - guide) / lines.sum(axis=1))

    def _rivals(
        self, path: Integers, values: Sequence[Floats], orders: Sequence[Integers], starts: Integers
    ) -> Integers:
        """For each vector of the path, that of its stages and at most its value that the others of each fold prefer.

        Returns:
            Vectors [folds, L].
        """
        place = np.searchsorted(starts, path, side="right") - 1
        rivals = np.empty((FOLDS, len(path)), dtype=np.int64)
        for g in np.unique(place).tolist():
            mine = np.flatnonzero(place == g)
            levels = values[g][path[mine] - starts[g]]
            by_level = np.argsort(levels)
            rivals[:, mine[by_level]] = starts[g] + _best_within(
                values[g], orders[g], np.ascontiguousarray(self.guides[g][1:]), levels[by_level]
            )
        return rivals

    def _worth(self, vectors: Integers, starts: Integers) -> Floats:
        """Quality of the answer to each request under each of its fold's vectors [n, L].

        Args:
            vectors: [folds, L].
            starts: First vector of each grid.
        """
        most = max(len(grid.stages) for grid in self.grids)
        flat = vectors.ravel()
        stages = np.zeros((len(flat), most), dtype=np.int64)
        thresholds = np.full((len(flat), most), np.nan)
        place = np.searchsorted(starts, flat, side="right") - 1
        for g in np.unique(place).tolist():
            grid, mine = self.grids[g], np.flatnonzero(place == g)
            stages[mine, : len(grid.stages)] = grid.stages
            position = np.unravel_index(flat[mine] - starts[g], grid.shape) if grid.shape else ()
            for j, (levels, k) in enumerate(zip(grid.levels, position, strict=True)):
                thresholds[mine, j] = levels[k]
        scores, quality, able = self.table.scores, self.table.quality, self.table.able
        if able is not None:
            scores, quality = np.where(able, scores, np.nan), quality * able
        shape = (*vectors.shape, most)
        return _worth_of_answers(stages.reshape(shape), thresholds.reshape(shape), self.fold, scores, quality)


@compiled
def _worth_of_answers(stages: Integers, thresholds: Floats, fold: Integers, scores: Floats, quality: Floats) -> Floats:
    """Quality of the answer that is accepted, by request and vector of its fold [n, L].

    Args:
        stages: Models of each vector [folds, L, most].
        thresholds: Theirs; that of the last stage is not a number [folds, L, most].
        fold: Of each request [n].
        scores: Not a number where a model cannot take a request [n, C].
        quality: 0 there [n, C].
    """
    worth = np.empty((len(scores), stages.shape[1]))
    for r in range(len(scores)):
        f = fold[r]
        for v in range(stages.shape[1]):
            j = 0
            while not np.isnan(thresholds[f, v, j]) and not scores[r, stages[f, v, j]] >= thresholds[f, v, j]:
                j += 1
            worth[r, v] = quality[r, stages[f, v, j]]
    return worth


def estimate_quality(
    table: CalibrationSet, grids: Sequence[ThresholdGrid], *, weights: Floats | None = None, seed: int = 0
) -> QualityStudy:
    """Estimate the quality of every vector of every grid.

    Args:
        table: Calibration set of n requests.
        grids: Everything that is searched.
        weights: Weights of the requests [n]; None where all count alike. Taken as fixed.
        seed: Of the deal of requests into folds.
    """
    count = len(table)
    weight = np.ones(count) if weights is None else weights / weights.mean()
    replays = [Replay(grid, table.scores, table.able) for grid in grids]
    fold = folds_of(count, seed)
    values = table.quality[None]
    if table.source != "Prior":
        values = np.concatenate([values, expected_worth(table, seed)])
    sums = [replay.at_exit(values * weight[:, None]) / count for replay in replays]
    return QualityStudy(
        table=table,
        grids=grids,
        weights=weight,
        qualities=[QualityOfGrid(found[0], None) for found in sums],
        guides=[found[min(1, len(found) - 1) :] for found in sums],
        fold=fold,
    )


def _spread(path: Integers, most: int) -> Integers:
    """At most so many of a path, evenly spread."""
    return path[np.linspace(0, len(path) - 1, min(len(path), most)).astype(np.int64)]


def _front(value: Floats, guide: Floats, order: Integers) -> Integers:
    """Vectors of a better estimate than all of at most their value.

    Args:
        value: What is minimised [V].
        guide: Estimates [V].
        order: Of ascending value, the best estimate of equal ones first [V].
    """
    order = order[np.isfinite(value[order])]
    ahead = np.concatenate([[-np.inf], np.maximum.accumulate(guide[order])])[:-1]
    return np.asarray(order[guide[order] > ahead], dtype=np.int64)


@compiled
def _best_within(value: Floats, order: Integers, guides: Floats, levels: Floats) -> Integers:
    """For each of some ascending levels, the vector of the best estimate among those of at most that value.

    Args:
        value: What is minimised [V].
        order: Of ascending value [V].
        guides: Several estimates [G, V].
        levels: None below the least value [L].

    Returns:
        [G, L]
    """
    best = np.empty((len(guides), len(levels)), dtype=np.int64)
    for g in range(len(guides)):
        place = 0
        leader = order[0]
        for k in range(len(levels)):
            while place < len(order) and value[order[place]] <= levels[k]:
                if guides[g, order[place]] > guides[g, leader]:
                    leader = order[place]
                place += 1
            best[g, k] = leader
    return best


def _band(residuals: Floats, error: float, seed: int) -> float:
    """Quantile of the maximum of normal deviates as correlated as the columns are."""
    products = residuals.T @ residuals
    scale = np.sqrt(np.diag(products))
    known = scale > 0
    least = NormalDist().inv_cdf(1 - error)
    if not known.any():
        return least
    correlation = products[np.ix_(known, known)] / np.outer(scale[known], scale[known])
    size = len(correlation)
    root = np.linalg.cholesky(correlation + 1e-6 * np.eye(size)).astype(np.float32)
    draws = _normal_draws(seed, _DRAWN_AT_ONCE * math.ceil(size / _DRAWN_AT_ONCE))[:size]
    largest = np.sort((root @ draws).max(axis=0))
    # The order statistic at or above the quantile: rounding up is on the safe side.
    return max(least, float(largest[min(_BAND_DRAWS - 1, int(np.ceil((1 - error) * (_BAND_DRAWS + 1))) - 1)]))


@lru_cache(maxsize=4)
def _normal_draws(seed: int, size: int) -> NDArray[np.float32]:
    """Standard normal deviates [size, draws]; more of them begin with the same."""
    return np.random.default_rng((seed, 6)).standard_normal((size, _BAND_DRAWS), dtype=np.float32)
