"""What a calibration set says of each model, and whether it is large enough for a manifest's target."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_api.cascade import CascadeDeploymentSpec
from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.certification import estimate_quality
from cascadia_solver.replay import threshold_grids
from cascadia_solver.set_size import floor_is_in_doubt, requests_needed

__all__ = ["Mean", "TargetSummary", "mean_of", "score_auroc", "target_summary"]

Floats = NDArray[np.float64]
_MOST_PAIRS_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Mean:
    """A sample's mean.

    Attributes:
        value: The mean.
        standard_error: Of that mean; None for fewer than two values.
    """

    value: float
    standard_error: float | None


def mean_of(values: Floats) -> Mean:
    """Mean of at least one value, with its standard error."""
    error = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(float(values.mean()), error)


def score_auroc(scores: Floats, quality: Floats) -> float | None:
    """How well a score tells better answers from worse ones.

    The probability that of two answers of unequal worth, the better one has the higher score, ties
    counting half. For worths of 0 and 1 it is the area under the receiver operating characteristic;
    0.5 is chance.

    Args:
        scores: Raw scores [n].
        quality: Judged worth [n].

    Returns:
        The AUROC; None where all worths are equal.
    """
    order = np.argsort(quality, kind="stable")
    scores, quality = scores[order], quality[order]
    pairs = wins = 0.0
    step = max(1, _MOST_PAIRS_AT_ONCE // max(1, len(scores)))
    for start in range(0, len(scores), step):
        rows = slice(start, start + step)
        worse = quality[None, :] < quality[rows, None]
        above = (scores[rows, None] > scores[None, :]) + 0.5 * (scores[rows, None] == scores[None, :])
        pairs += float(worse.sum())
        wins += float((above * worse).sum())
    return wins / pairs if pairs else None


@dataclass(frozen=True, slots=True)
class TargetSummary:
    """A set's size against a manifest's quality target. Whether GPUs suffice is the planner's to say.

    Attributes:
        floor: `minQuality`.
        confidence: Of the bound.
        mean: Mean quality at the threshold vector with the best lower bound.
        bound: That lower bound, as planning finds it; the floor itself where quality is certified to reach it.
        requests: Size of the set.
        needed: About the size at which planning certifies some vector; None if none is estimated above the floor.
        in_doubt: Where none is, whether the best may well be above it all the same: a larger set would tell.
    """

    floor: float
    confidence: float
    mean: float
    bound: float
    requests: int
    needed: int | None
    in_doubt: bool

    @property
    def enough(self) -> bool:
        """Whether some vector's bound is at or above the floor."""
        return self.bound >= self.floor


def target_summary(spec: CascadeDeploymentSpec, table: CalibrationSet, *, seed: int = 0) -> TargetSummary:
    """Replay a set as planning would, for all models and the set's own mix of requests."""
    floor, confidence = float(spec.objective.min_quality), float(spec.objective.confidence)
    models = range(len(spec.models))
    forced = {index for index in models if spec.models[index].min_replicas}
    grids = threshold_grids(table, candidates=models, forced=forced, max_escalations=spec.routing.max_escalations)
    study = estimate_quality(table, grids, seed=seed)
    # Quality is all that counts here: whatever is minimised is equal.
    equal = [np.zeros(len(grid)) for grid in grids]
    nothing = [np.empty(0, dtype=np.int64) for _ in grids]
    qualities = study.certified(equal, nothing, floor=floor, confidence=confidence, seed=seed)
    best = max(qualities, key=lambda quality: float(quality.assured.max()))
    vector = int(best.assured.argmax())
    needed = requests_needed(study, floor, confidence)
    return TargetSummary(
        floor=floor,
        confidence=confidence,
        mean=float(best.mean[vector]),
        bound=float(best.assured[vector]),
        requests=len(table),
        needed=needed,
        in_doubt=needed is None and floor_is_in_doubt(study, floor),
    )
