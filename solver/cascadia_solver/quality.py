"""Quality of every threshold vector, with lower bounds that hold for all of them at once.

Guarantee. Calibration requests are taken as independent draws from the traffic. With probability at
least the confidence (asymptotically in the number of requests), the true mean quality of *every*
vector searched is at least its bound; so it is for whichever vector the planner selects, by whatever
criterion. The bounds are a one-sided studentised sup-t band: the critical value is the quantile of
the maximum over all vectors of a Gaussian multiplier bootstrap of the studentised means
(Chernozhukov, Chetverikov & Kato 2013), which uses that neighbouring vectors answer nearly the same
requests alike: it is about 2.4 standard errors at 95 % where Bonferroni would take 4.1. For small sets
and means near 1 the band is inverted as Wilson's interval is, with the variance of the mean as a
function of the mean, which keeps coverage where plain standard errors collapse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.replay import Replay, ThresholdGrid

__all__ = ["QualityOfGrid", "quality_of_grids", "wilson_lower"]

Floats = NDArray[np.float64]

_DRAWS = 400
_CHUNK = 2_000_000
"""Most products of draws and requests held at once: 16 MB an array."""


@dataclass(frozen=True, eq=False)
class QualityOfGrid:
    """Quality of each vector of one grid.

    Attributes:
        mean: Mean judged worth of the answers [V].
        bound: Simultaneous lower bound [V]; None under a prior.
    """

    mean: Floats
    bound: Floats | None

    @property
    def assured(self) -> Floats:
        """What plans are chosen on: the bound, or the mean where nothing bounds it [V]."""
        return self.mean if self.bound is None else self.bound


def quality_of_grids(
    table: CalibrationSet,
    grids: Sequence[ThresholdGrid],
    *,
    confidence: float,
    weights: Floats | None = None,
    seed: int = 0,
) -> list[QualityOfGrid]:
    """Quality of every vector of every grid, bounded jointly.

    Args:
        table: Calibration set of n requests.
        grids: Everything that is searched: the bounds hold over all of it.
        confidence: Probability with which all bounds hold.
        weights: Weights of the requests, mean 1 [n]; None where all count alike. Taken as fixed.
        seed: Seed of the bootstrap.
    """
    replays = [Replay(grid, table.scores, table.able) for grid in grids]
    weight = np.ones(len(table)) if weights is None else weights / weights.mean()
    means = [replay.at_exit(table.quality * weight[:, None]) / len(table) for replay in replays]
    if table.source == "Prior":
        return [QualityOfGrid(mean, None) for mean in means]
    errors = [_standard_error(replay, table.quality, weight, mean) for replay, mean in zip(replays, means, strict=True)]
    critical = _critical_value(replays, table.quality, weight, means, errors, confidence, seed)
    return [
        QualityOfGrid(mean, wilson_lower(mean, error, critical, len(table)))
        for mean, error in zip(means, errors, strict=True)
    ]


def _standard_error(replay: Replay, quality: Floats, weight: Floats, mean: Floats) -> Floats:
    """Standard error of each weighted mean [V]: root of the sum of w² (q - mean)², over n."""
    squared = (weight**2)[:, None]
    second = replay.at_exit(squared * quality**2)
    first = replay.at_exit(squared * quality)
    return np.sqrt(np.maximum(0.0, second - 2 * mean * first + mean**2 * float(squared.sum()))) / len(weight)


def _critical_value(
    replays: Sequence[Replay],
    quality: Floats,
    weight: Floats,
    means: Sequence[Floats],
    errors: Sequence[Floats],
    confidence: float,
    seed: int,
) -> float:
    """Quantile of the maximal studentised deviation over all vectors."""
    random = np.random.default_rng((seed, 5))
    count = len(weight)
    largest: list[Floats] = []
    chunk = max(1, min(_DRAWS, _CHUNK // (count * quality.shape[1])))
    for start in range(0, _DRAWS, chunk):
        multipliers = weight * random.standard_normal((min(chunk, _DRAWS - start), count))
        totals = multipliers.sum(axis=1)
        values = multipliers[:, :, None] * quality
        deviation = np.full(len(multipliers), -np.inf)
        for replay, mean, error in zip(replays, means, errors, strict=True):
            known = error > 0
            if known.any():
                process = replay.at_exit(values)[:, known] - totals[:, None] * mean[known]
                deviation = np.maximum(deviation, (process / (count * error[known])).max(axis=1))
        largest.append(deviation)
    drawn = np.sort(np.concatenate(largest))
    # The order statistic that is at or above the quantile: rounding up is on the safe side.
    sup = float(drawn[min(_DRAWS - 1, math.ceil(confidence * (_DRAWS + 1)) - 1)])
    return max(sup, NormalDist().inv_cdf(confidence))


def wilson_lower(mean: Floats, error: Floats, z: float, requests: int) -> Floats:
    """Lower end of Wilson's interval for as many yes-or-no outcomes as would give the same standard error.

    The added 1/n stands in for the spread that a sample without any spread hides.
    """
    unit = 1 / requests
    outcomes = np.minimum(10 * requests, (mean * (1 - mean) + unit) / (error**2 + unit**2))
    centre = mean + z**2 / (2 * outcomes)
    spread = z * np.sqrt(np.maximum(0.0, mean * (1 - mean)) / outcomes + z**2 / (4 * outcomes**2))
    return np.clip((centre - spread) / (1 + z**2 / outcomes), 0.0, 1.0)
