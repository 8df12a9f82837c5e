"""How large a calibration set has to be for a quality floor, as told by one that was too small."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from cascadia_solver.certification import QualityStudy

__all__ = ["floor_is_in_doubt", "requests_needed"]

_POWER = 0.8
"""How often a set of the size that is named shall do."""
_LEAST_GROWTH = 1.25
"""A set that was too small is never told of a smaller one than so many times its size."""
_DOUBT = 2.0
"""Standard errors within which the best mean may lie on the other side of the floor."""


def requests_needed(study: QualityStudy, floor: float, confidence: float) -> int | None:
    """About the size of calibration set at which some vector is certified to keep a floor, four times out of five.

    By the smooth estimates of quality: the largest of thousands of plain means lies above its own expectation, and
    sets of the size that follows from it failed two times out of three. It counts where no estimate is above the
    floor.

    Args:
        study: Of a set that was too small.
        floor: Quality floor.
        confidence: Of the certificate.

    Returns:
        Number of requests; None if neither is above the floor, or under a prior.
    """
    count, best = len(study.table), _best(study, floor)
    if best <= floor or study.table.source == "Prior":
        return None
    normal = NormalDist()
    deviations = normal.inv_cdf(confidence) * _deviation(floor) + normal.inv_cdf(_POWER) * _deviation(best)
    spread = float((study.weights**2).mean()) * _spread_of_worths(study)
    return max(math.ceil(spread * (deviations / (best - floor)) ** 2), math.ceil(_LEAST_GROWTH * count))


def floor_is_in_doubt(study: QualityStudy, floor: float) -> bool:
    """Whether the best quality, estimated at or below a floor, may well be above it: a larger set would tell."""
    error = _deviation(floor) * math.sqrt(_spread_of_worths(study) / len(study.table))
    return study.table.source != "Prior" and _best(study, floor) > floor - _DOUBT * error


def _best(study: QualityStudy, floor: float) -> float:
    """The best estimate, or the best mean where no estimate is above the floor."""
    smooth = max(float(estimate.max()) for estimate in study.estimates)
    return smooth if smooth > floor else max(float(quality.mean.max()) for quality in study.qualities)


def _deviation(mean: float) -> float:
    """Standard deviation of worths that are 0 or 1."""
    return math.sqrt(max(mean * (1 - mean), 0.0))


def _spread_of_worths(study: QualityStudy) -> float:
    """Variance of the recorded worths, in that of worths that are 0 or 1; of the model where it is largest."""
    quality = study.table.quality
    means = quality.mean(axis=0)
    binary = means * (1 - means)
    return float(np.max(quality.var(axis=0)[binary > 0] / binary[binary > 0], initial=1e-3))
