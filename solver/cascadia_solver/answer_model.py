"""A smooth model of which answers are right, given the scores: a ridge logistic regression for each model.

It guides the choice of threshold vectors (`certification`), and is fitted on all requests and on all but each fold of
them, so that what is tested on a fold is not chosen by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.compiled import compiled

__all__ = ["FOLDS", "expected_worth", "folds_of"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

FOLDS = 5
_OWN_SLOPE, _OTHER_SLOPE = 0.9, 0.3
"""Where the coefficients are shrunk to: a model's own score tells most about its answer."""
_SHRINKAGE = 2.0
_NEWTON_STEPS = 5
_FOLD_STEPS = 2
"""From the fit on all requests, of which a fold's complement holds most."""


def folds_of(count: int, seed: int) -> Integers:
    """Fold of each request [n]."""
    return np.random.default_rng((seed, 5)).permutation(count) % FOLDS


@dataclass(frozen=True)
class _Answers:
    """A calibration set that is equal to any of the same content."""

    digest: str
    table: CalibrationSet = field(compare=False)


def expected_worth(table: CalibrationSet, seed: int) -> Floats:
    """What each answer is expected to be worth, given the scores: by all requests, then without each fold.

    It is the same at any load and floor: planning again with a calibration set needs it no second time.

    Args:
        table: Calibration set of n requests.
        seed: Of the deal of requests into folds.

    Returns:
        [folds + 1, n, C]
    """
    return _fitted(_Answers(table.digest, table), seed)


@lru_cache(maxsize=4)
def _fitted(answers: _Answers, seed: int) -> Floats:
    scores, quality = answers.table.scores, answers.table.quality
    fold = folds_of(len(scores), seed)
    features = _features(scores[:, :-1])
    centre = _starts(features, quality)
    slopes = _slopes(features, quality, fold >= 0, centre, centre, _NEWTON_STEPS)
    fits = [slopes]
    fits += [_slopes(features, quality, fold != k, centre, slopes, _FOLD_STEPS) for k in range(FOLDS)]
    return np.stack([1 / (1 + np.exp(-features @ fit)) for fit in fits])


def _features(scores: Floats) -> Floats:
    """Scores as logits of their ranks, about standard normal, after a column of ones [n, 1 + models]."""
    count = len(scores)
    ranks = np.empty(scores.shape)
    for column, values in enumerate(scores.T):
        ranks[np.argsort(values, kind="stable"), column] = (np.arange(count) + 0.5) / count
    return np.column_stack([np.ones(count), np.log(ranks / (1 - ranks)) / 1.7])


def _starts(features: Floats, quality: Floats) -> Floats:
    """Coefficients before anything is fitted, which fits are shrunk to [1 + models, C]."""
    size = features.shape[1]
    centre = np.full((size, quality.shape[1]), _OTHER_SLOPE)
    mean = np.clip(quality.mean(axis=0), 0.02, 0.98)
    centre[0] = np.log(mean / (1 - mean))
    own = np.arange(size - 1)
    centre[1 + own, own] = _OWN_SLOPE
    return centre


@compiled
def _slopes(
    features: Floats, quality: Floats, kept: NDArray[np.bool_], centre: Floats, start: Floats, steps: int
) -> Floats:
    """Coefficients of ridge logistic regressions of all models' answers, by Newton steps.

    Args:
        features: [n, F].
        quality: [n, C].
        kept: Requests to fit on [n].
        centre: What the coefficients are shrunk to [F, C].
        start: Where the steps start [F, C].
        steps: Newton steps.

    Returns:
        Coefficients [F, C].
    """
    size = features.shape[1]
    slopes = start.copy()
    bend = np.empty((size, size))
    step = np.empty(size)
    for model in range(quality.shape[1]):
        for _ in range(steps):
            for i in range(size):
                penalty = 0.1 if i == 0 else _SHRINKAGE
                step[i] = -penalty * (slopes[i, model] - centre[i, model])
                for j in range(i + 1):
                    bend[i, j] = penalty if i == j else 0.0
            for r in range(len(features)):
                if not kept[r]:
                    continue
                logit = 0.0
                for i in range(size):
                    logit += features[r, i] * slopes[i, model]
                expected = 1 / (1 + np.exp(-logit))
                curvature = max(expected * (1 - expected), 1e-4)
                for i in range(size):
                    step[i] += features[r, i] * (quality[r, model] - expected)
                    for j in range(i + 1):
                        bend[i, j] += features[r, i] * features[r, j] * curvature
            _solve(bend, step)
            for i in range(size):
                slopes[i, model] += step[i]
    return slopes


@compiled
def _solve(matrix: Floats, right: Floats) -> None:
    """Solve in place for a positive definite matrix of which the lower triangle is given (Cholesky)."""
    size = len(right)
    for i in range(size):
        for j in range(i + 1):
            total = matrix[i, j]
            for k in range(j):
                total -= matrix[i, k] * matrix[j, k]
            matrix[i, j] = np.sqrt(total) if i == j else total / matrix[j, j]
        for k in range(i):
            right[i] -= matrix[i, k] * right[k]
        right[i] /= matrix[i, i]
    for i in range(size - 1, -1, -1):
        for k in range(i + 1, size):
            right[i] -= matrix[k, i] * right[k]
        right[i] /= matrix[i, i]
