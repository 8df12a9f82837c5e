"""Populations of requests with known quality, and calibration sets drawn from them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from cascadia_solver.calibration import CalibrationSet

__all__ = ["draw_calibration"]


def draw_calibration(
    requests: int,
    seed: int,
    accuracies: Sequence[float],
    *,
    names: Sequence[str],
    noise: float = 0.8,
    judge_noise: float = 0.0,
) -> CalibrationSet:
    """Draw requests: one hardness each, on which right answers, scores and lengths of all models depend.

    Args:
        requests: Number of requests.
        seed: Of the draw; the population does not depend on it.
        accuracies: Share of right answers of each model, smallest model first.
        names: Of the models.
        noise: Standard deviation of a score's own error.
        judge_noise: Share of the answers that the judge gets wrong, right and wrong ones alike.
    """
    random = np.random.default_rng((seed, 99))
    hardness = random.standard_normal((requests, 1))
    own = random.standard_normal((requests, len(names)))
    ability = np.array([NormalDist().inv_cdf(accuracy) for accuracy in accuracies])
    margin = ability - (np.sqrt(0.7) * hardness + np.sqrt(0.3) * own)
    confidence = margin + noise * random.standard_normal(margin.shape)
    right = margin > 0
    if judge_noise:
        right ^= random.random(margin.shape) < judge_noise
    base = 180 * np.exp(0.6 * random.standard_normal((requests, 1)))
    growth = 0.3 * np.linspace(1.0, 0.3, len(names))
    return CalibrationSet(
        ids=[f"r{row}" for row in range(requests)],
        models=tuple(names),
        scorer="logprob-mean",
        input_tokens=np.full(requests, 500.0),
        output_tokens=np.maximum(1.0, np.rint(base * np.exp(growth * hardness))),
        scores=1 / (1 + np.exp(-(1.2 + 0.8 * confidence))),
        quality=right.astype(float),
    )
