"""Fit a replica's step model to known step times.

The roofline gives the shape of the step time; samples of it, from tables or from an engine, say how
large each part is. Each group of coefficients gets one multiplier, found by damped Gauss-Newton on the
logarithms, with a small pull towards 1 that decides where the samples leave a part undetermined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cascadia_solver.scheduling_kernel import Floats
from cascadia_solver.steptime import StepModel, step_seconds

__all__ = ["StepSample", "fit_step_model"]

_GROUPS = (
    ("token_seconds", "logits_seconds"),
    ("weight_seconds",),
    ("expert_seconds",),
    ("prefill_pair_seconds", "prefill_window_pair_seconds"),
    ("decode_context_seconds", "decode_window_seconds"),
    ("transfer_token_seconds",),
    ("overhead_seconds",),
    ("prompt_overhead_seconds",),
    ("request_seconds",),
)
_PULL = 1e-3
_ROUNDS = 30


class StepSample(NamedTuple):
    """One known step time.

    Attributes:
        prefill_tokens: See `step_seconds`.
        prefill_context_tokens: See `step_seconds`.
        decode_requests: See `step_seconds`.
        decode_context_tokens: See `step_seconds`.
        seconds: How long the step takes.
    """

    prefill_tokens: float
    prefill_context_tokens: float
    decode_requests: float
    decode_context_tokens: float
    seconds: float


def fit_step_model(start: StepModel, samples: Sequence[StepSample]) -> tuple[StepModel, float]:
    """Scale the coefficients of a step model so that it gives the samples' times.

    Args:
        start: The model of the same replica by another source.
        samples: At least one, of positive times.

    Returns:
        The scaled model, and the median absolute error that is left, percent.
    """
    known = np.log([sample.seconds for sample in samples])
    logs = np.zeros(len(_GROUPS))
    errors = _errors(start, samples, known, logs)
    damping, width = 1e-3, 1e-4
    for _ in range(_ROUNDS):
        slopes = np.stack(
            [
                (_errors(start, samples, known, logs + width * unit) - errors) / width
                for unit in np.eye(len(_GROUPS))
            ],
            axis=1,
        )  # fmt: skip
        normal = slopes.T @ slopes / len(samples) + (_PULL + damping) * np.eye(len(_GROUPS))
        move = np.linalg.solve(normal, slopes.T @ errors / len(samples) + _PULL * logs)
        trial = logs - np.clip(move, -1.0, 1.0)
        trial_errors = _errors(start, samples, known, trial)
        better = _loss(errors, logs) - _loss(trial_errors, trial)
        if better > 0.0:
            logs, errors, damping = trial, trial_errors, damping / 3.0
        else:
            damping *= 5.0
        if abs(better) < 1e-9:
            break
    return _scaled(start, logs), 100.0 * float(np.median(np.abs(np.expm1(errors))))


def _scaled(start: StepModel, logs: Floats) -> StepModel:
    changed = {
        name: getattr(start, name) * float(np.exp(log))
        for group, log in zip(_GROUPS, logs, strict=True)
        for name in group
    }
    return start._replace(**changed)


def _errors(start: StepModel, samples: Sequence[StepSample], known: Floats, logs: Floats) -> Floats:
    step = _scaled(start, logs)
    errors: Floats = np.log([step_seconds(step, *sample[:4]) for sample in samples]) - known
    return errors


def _loss(errors: Floats, logs: Floats) -> float:
    return float((errors**2).mean() + _PULL * (logs**2).sum())
