"""Demand as the routers saw it, for re-plans.

Rates and lengths are taken from the merged workload reports. How hard the requests have become is
read off the raw scores of the first live stage: calibration rows are re-weighted by the ratio of the
observed to the expected density of that score (covariate shift: at a given score, answers are taken
to be worth what they were in the calibration set).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_api.errors import InputError
from cascadia_api.report import EDGES, Histogram
from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.workload import SAMPLE_REQUESTS, Demand, poisson_arrivals

__all__ = ["WEIGHT_LIMIT", "ObservedDemand", "demand_of_observation", "score_weights"]

Floats = NDArray[np.float64]

WEIGHT_LIMIT = 5.0
"""Bound on a row's weight and on its inverse: one decile of scores cannot take over the plan."""
_SCORE_BINS = 10
_LEAST_SCORES = 200
"""Fewer observed scores say too little to re-weight by."""


@dataclass(frozen=True, slots=True)
class ObservedDemand:
    """A window of real traffic, all routers merged.

    Attributes:
        requests_per_second: Arrivals of client requests, 1/s.
        stage: First live stage in the window; the histograms are its own.
        input_tokens: Prompt lengths.
        output_tokens: Lengths of that stage's answers.
        scores: Raw scores of that stage's answers.
    """

    requests_per_second: float
    stage: str
    input_tokens: Histogram
    output_tokens: Histogram
    scores: Histogram


def demand_of_observation(
    observed: ObservedDemand, table: CalibrationSet, *, requests: int = SAMPLE_REQUESTS, seed: int = 0
) -> Demand:
    """Demand for a re-plan: Poisson arrivals at the observed rate, lengths drawn from the histograms.

    Raises:
        InputError: No arrivals, no lengths, or a stage that the calibration set does not have.
    """
    if not observed.requests_per_second > 0:
        raise InputError(f"observed demand: {observed.requests_per_second} requests/s; there is nothing to plan for")
    if observed.stage not in table.models:
        raise InputError(f"observed demand: stage {observed.stage!r} is none of {', '.join(table.models)}")
    for name, histogram in (("input", observed.input_tokens), ("output", observed.output_tokens)):
        if not histogram.count():
            raise InputError(f"observed demand: the window has no {name} lengths")
    random = np.random.default_rng((seed, 3))
    levels = (np.arange(requests) + 0.5) / requests
    index = table.models.index(observed.stage)
    return Demand(
        requests_per_second=observed.requests_per_second,
        source="Observed",
        arrivals=poisson_arrivals(observed.requests_per_second, requests, random),
        input_tokens=random.permutation(_whole(_quantiles(observed.input_tokens, levels))),
        output_tokens=random.permutation(_whole(_quantiles(observed.output_tokens, levels))),
        length_model=index,
        row_weights=score_weights(table.scores[:, index], observed.scores),
    )


def score_weights(scores: Floats, observed: Histogram) -> Floats | None:
    """Weights that give calibration rows the observed distribution of scores.

    Args:
        scores: The rows' scores of the observed stage [n].
        observed: Histogram of scores.

    Returns:
        Weights of mean 1, each within a factor of `WEIGHT_LIMIT` before normalising [n]; None where too
        few scores were observed.
    """
    total = observed.count()
    if total < _LEAST_SCORES or not np.isfinite(scores).all():
        return None
    inner = np.unique(np.quantile(scores, np.arange(1, _SCORE_BINS) / _SCORE_BINS))
    bins = np.searchsorted(inner, scores, side="right")
    expected = np.bincount(bins, minlength=len(inner) + 1) / len(scores)
    seen = np.diff(_cumulative(observed, inner), prepend=0.0, append=1.0)
    # Half a pseudo-count a bin keeps empty bins from weighing nothing at all.
    smoothed = (seen * total + 0.5) / (total + 0.5 * len(seen))
    ratio = np.clip(smoothed / np.maximum(expected, 1e-9), 1 / WEIGHT_LIMIT, WEIGHT_LIMIT)
    weights = ratio[bins]
    return np.asarray(weights / weights.mean())


def _knots(histogram: Histogram) -> tuple[Floats, Floats]:
    """Bucket edges and the share of values below each; the open bucket is taken to end at twice its start."""
    edges = EDGES[histogram.edges]
    counts = np.asarray(histogram.counts, dtype=np.float64)
    xs = np.concatenate([[0.0], edges, [edges[-1] * 2]])
    return xs, np.concatenate([[0.0], np.cumsum(counts) / counts.sum()])


def _quantiles(histogram: Histogram, levels: Floats) -> Floats:
    xs, shares = _knots(histogram)
    kept = np.concatenate([[True], np.diff(shares) > 0])
    kept |= np.concatenate([np.diff(shares) > 0, [False]])  # both ends of every bucket that holds values
    return np.asarray(np.interp(levels, shares[kept], xs[kept]))


def _cumulative(histogram: Histogram, points: Floats | Sequence[float]) -> Floats:
    xs, shares = _knots(histogram)
    return np.asarray(np.interp(points, xs, shares))


def _whole(tokens: Floats) -> Floats:
    return np.asarray(np.maximum(1.0, np.rint(tokens)))
