"""The lengths of many requests as a few classes, which the closed forms of latency sum over."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascadia_solver.ordering import ascending
from cascadia_solver.scheduling_kernel import Floats

__all__ = ["PROMPT_TOKENS_PER_STEP", "LengthProfile", "length_profile"]

# Quantile edges of a profile's classes: finer towards the tail, where the percentiles are read.
_EDGES = np.concatenate(
    [np.linspace(0.0, 0.8, 16, endpoint=False), np.linspace(0.8, 0.9, 4, endpoint=False),
     np.linspace(0.9, 0.98, 8, endpoint=False), np.linspace(0.98, 1.0, 5)]
)  # fmt: skip

PROMPT_TOKENS_PER_STEP = 250.0
"""Prompt tokens that take as long as a decode step: (2 bytes ÷ bandwidth) ÷ (2 operations ÷ rate), about
the same for all models and recent GPUs. It only decides which requests share a class."""


class LengthProfile(NamedTuple):
    """Joint distribution of prompt and answer lengths, reduced to classes of similar latency.

    Attributes:
        inputs: Mean prompt length of each class, [k], tokens.
        outputs: Mean answer length of each class, [k], tokens.
        shares: Share of the requests, [k]; sums to 1.
    """

    inputs: Floats
    outputs: Floats
    shares: Floats


def length_profile(inputs: npt.ArrayLike, outputs: npt.ArrayLike) -> LengthProfile:
    """Reduce lengths to at most 32 classes, keeping their means.

    Args:
        inputs: Prompt lengths, [n], n ≥ 1.
        outputs: Answer lengths, [n].

    Raises:
        ValueError: If there are no lengths, or not equally many.
    """
    prompts = np.maximum(np.asarray(inputs, dtype=np.float64), 1.0)
    answers = np.maximum(np.asarray(outputs, dtype=np.float64), 1.0)
    if len(prompts) == 0 or prompts.shape != answers.shape:
        raise ValueError(f"need equally many prompt and answer lengths, not {prompts.shape} and {answers.shape}")
    order = ascending(PROMPT_TOKENS_PER_STEP * answers + prompts)
    edges = np.rint(_EDGES * len(order)).astype(np.int64)
    edges = edges[np.diff(edges, prepend=-1) > 0]
    starts, sizes = edges[:-1], np.diff(edges).astype(np.float64)
    return LengthProfile(
        np.add.reduceat(prompts[order], starts) / sizes,
        np.add.reduceat(answers[order], starts) / sizes,
        sizes / len(order),
    )
