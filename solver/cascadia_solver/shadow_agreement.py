"""How far accepted answers agree with what the next stage says, estimated from shadow samples.

Samples come with different probabilities: shares change with policies, reports keep some of many, routers
differ. Each is weighed by the inverse of its own, as by Horvitz and Thompson, and the mean is Hájek's: the sum
of the weighted values over the sum of the weights. Unweighted, the mean would be that of whoever was sampled
most. The standard error is the linearised one for Poisson sampling, and only of this sampling: it takes the
answers as they were given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cascadia_api.report import CalibrationSample

__all__ = ["Agreement", "agreements"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far the accepted answers of one stage agree with the next stage's.

    Attributes:
        stage: Whose answers were accepted.
        next_stage: Who was asked, too.
        samples: Compared answers.
        mean: Weighted mean of the agreement, 0 to 1.
        standard_error: Of the mean.
    """

    stage: str
    next_stage: str
    samples: int
    mean: float
    standard_error: float


def agreements(samples: Iterable[CalibrationSample]) -> list[Agreement]:
    """Estimate the agreement of each pair of stages that were compared.

    Args:
        samples: Of workload reports; those that were not compared, or could not be, are passed over.

    Returns:
        One estimate a pair of stages with two samples or more, in the order in which they first appear.
    """
    compared: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for sample in samples:
        if sample.next is None or sample.next.agreement is None or not sample.inclusion_probability > 0:
            continue
        pair = sample.stage, sample.next.stage
        compared.setdefault(pair, []).append((1 / sample.inclusion_probability, sample.next.agreement))
    return [_estimate(*pair, weighted) for pair, weighted in compared.items() if len(weighted) > 1]


def _estimate(stage: str, next_stage: str, weighted: list[tuple[float, float]]) -> Agreement:
    total = math.fsum(weight for weight, _ in weighted)
    mean = math.fsum(weight * value for weight, value in weighted) / total
    spread = math.fsum((weight * (value - mean)) ** 2 for weight, value in weighted)
    # The mean is fitted to the same samples: n/(n-1), as for a variance.
    error = math.sqrt(spread * len(weighted) / (len(weighted) - 1)) / total
    return Agreement(stage, next_stage, len(weighted), mean, error)
