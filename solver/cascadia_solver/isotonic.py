"""Calibration of raw scores: a monotone curve from a score to the expected worth of answers that have it.

Scores are put into bins of equal count, and the bins' mean worths made monotone by pooling adjacent violators
(Ayer et al., Ann. Math. Statist. 26, 1955), which is the least-squares monotone fit of the bins' means.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["monotone_curve"]

MOST_POINTS = 16


def monotone_curve(
    scores: Sequence[float], worths: Sequence[float], *, points: int = MOST_POINTS
) -> list[tuple[float, float]]:
    """Fit the curve.

    Args:
        scores: Raw score of each answer.
        worths: What each is worth, in [0, 1].
        points: Most points.

    Returns:
        Points (score, worth), scores strictly ascending, worths not descending.

    Raises:
        ValueError: There are no answers.
    """
    if not scores:
        raise ValueError("no scores to calibrate")
    order = np.argsort(scores, kind="stable")
    ordered, worth = np.asarray(scores, float)[order], np.asarray(worths, float)[order]
    starts = np.unique(np.linspace(0, len(ordered), points + 1).astype(int)[:-1])
    # Equal scores belong to one bin: each bin begins where its first score does.
    starts = np.unique(np.searchsorted(ordered, ordered[starts], side="left"))
    counts = np.diff(np.append(starts, len(ordered)))
    means = np.add.reduceat(ordered, starts) / counts
    blocks: list[tuple[float, float, int]] = []  # total worth, weight, bins
    for total, weight in zip(np.add.reduceat(worth, starts), counts, strict=True):
        blocks.append((float(total), float(weight), 1))
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last, before = blocks.pop(), blocks.pop()
            blocks.append((before[0] + last[0], before[1] + last[1], before[2] + last[2]))
    fitted = [total / weight for total, weight, bins in blocks for _ in range(bins)]
    return [(float(score), min(max(value, 0.0), 1.0)) for score, value in zip(means, fitted, strict=True)]
