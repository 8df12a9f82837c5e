"""What the simulated models of a run can do: as the calibration set shows, or plausible defaults."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from cascadia_local.simulated_engine.difficulty import ModelAbility, ability_for_accuracy, default_abilities
from cascadia_solver.calibration import CalibrationSet

__all__ = ["abilities_of"]

ACCURACY_RANGE = (0.02, 0.98)
AUROC_RANGE = (0.55, 0.98)
VERBOSITY_RANGE = (0.1, 10.0)


def abilities_of(models: Sequence[str], calibration: CalibrationSet | None) -> list[ModelAbility]:
    """Return abilities that give the calibration set's accuracies, AUROCs and answer lengths.

    Args:
        models: Names of the cascade's models, smallest first.
        calibration: Their calibration set; plausible defaults without one.
    """
    defaults = default_abilities(list(models))
    if calibration is None:
        return defaults
    abilities = []
    longest = calibration.output_tokens[:, -1].mean()
    for index, ability in enumerate(defaults):
        quality, scores = calibration.quality[:, index], calibration.scores[:, index]
        accuracy = float(np.clip(quality.mean(), *ACCURACY_RANGE))
        separation = _auroc(scores, quality >= 0.5) if np.isfinite(scores).all() else ability.auroc
        verbosity = float(calibration.output_tokens[:, index].mean() / longest)
        abilities.append(
            replace(
                ability,
                ability=ability_for_accuracy(accuracy),
                auroc=float(np.clip(separation, *AUROC_RANGE)),
                verbosity=float(np.clip(verbosity, *VERBOSITY_RANGE)),
            )
        )
    return abilities


def _auroc(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Probability that a right answer scores higher than a wrong one (Mann and Whitney's U, ties by half)."""
    if right.all() or not right.any():
        return 0.5
    ranked = np.sort(scores)
    # Mean rank of equal scores: between where they begin and where they end.
    ranks = (np.searchsorted(ranked, scores, "left") + np.searchsorted(ranked, scores, "right") + 1) / 2
    count = int(right.sum())
    return float((ranks[right].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))
