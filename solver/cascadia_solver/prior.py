"""A stated prior in place of a calibration set.

Accuracies are published MMLU results (5-shot or chain-of-thought, from the model cards and technical
reports), errors of models are correlated as published results of one family are, and the score tells
right from wrong answers with an AUROC of 0.80, between the published 0.66 (TruthfulQA) and 0.87
(TriviaQA) of 8B models. Plans made from it say so and claim no quality bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.importers import binormal_separation

__all__ = ["PRIOR_AUROC", "prior_accuracy", "prior_table"]

PRIOR_AUROC = 0.80
_ERROR_CORRELATION = 0.7
"""Tetrachoric; gives errors of 8B and 405B models a correlation of 0.3 to 0.5, as published results show."""
_LENGTH_SPREAD = 0.74
"""Standard deviation of the logarithm of answer lengths in the Azure conversation trace."""
_ROWS = 2000

_PUBLISHED_MMLU = {
    "llama-3.1-8b": 0.730,
    "llama-3.1-70b": 0.860,
    "llama-3.1-405b": 0.886,
    "llama-3.3-70b": 0.860,
    "llama-3-8b": 0.684,
    "llama-3-70b": 0.820,
    "qwen2.5-0.5b": 0.475,
    "qwen2.5-1.5b": 0.609,
    "qwen2.5-3b": 0.656,
    "qwen2.5-7b": 0.742,
    "qwen2.5-14b": 0.797,
    "qwen2.5-32b": 0.833,
    "qwen2.5-72b": 0.861,
    "qwen3-0.6b": 0.528,
    "qwen3-1.7b": 0.626,
    "qwen3-4b": 0.730,
    "qwen3-8b": 0.769,
    "qwen3-14b": 0.811,
    "qwen3-30b-a3b": 0.814,
    "qwen3-32b": 0.836,
    "qwen3-235b-a22b": 0.878,
    "deepseek-v3": 0.885,
    "deepseek-r1": 0.908,
    "mistral-7b": 0.625,
    "mistral-small-24b": 0.807,
    "mixtral-8x7b": 0.706,
    "mixtral-8x22b": 0.778,
    "gemma-2-2b": 0.513,
    "gemma-2-9b": 0.713,
    "gemma-2-27b": 0.752,
    "gpt-oss-20b": 0.853,
    "gpt-oss-120b": 0.900,
    "phi-4": 0.848,
}
_BY_SIZE = ((0.5, 0.475), (1.5, 0.609), (3, 0.656), (8, 0.73), (14, 0.797), (32, 0.833), (70, 0.86), (405, 0.886))
"""Billions of parameters and MMLU: the curve that the families above lie on, for models not listed."""


def prior_accuracy(repository: str, parameters: float) -> float:
    """Published accuracy of a model, or that of models of its size.

    Args:
        repository: Repository or catalogue name.
        parameters: Number of parameters, for models without a published figure.
    """
    name = repository.rsplit("/", 1)[-1].casefold()
    if "distill" not in name:  # a distilled model carries its teacher's and its student's name
        name = name.removeprefix("meta-")
        matches = [known for known in _PUBLISHED_MMLU if name == known or name.startswith(known + "-")]
        if matches:
            return _PUBLISHED_MMLU[max(matches, key=len)]
    sizes, accuracies = zip(*_BY_SIZE, strict=True)
    return float(np.interp(math.log(max(parameters, 1.0) / 1e9), np.log(sizes), accuracies))


def prior_table(
    models: Sequence[str], accuracies: Sequence[float], *, scorer: str, output_tokens_mean: float, seed: int = 0
) -> CalibrationSet:
    """Draw a table of requests from the prior, in a calibration set's shape.

    Args:
        models: Names of the cascade's models, smallest first.
        accuracies: Share of right answers of each.
        scorer: Scorer id.
        output_tokens_mean: Mean answer length; all models write equally long answers.
        seed: Seed of the draws.
    """
    random = np.random.default_rng((seed, 4))
    shared = random.standard_normal(_ROWS)[:, None]
    own = random.standard_normal((_ROWS, len(models)))
    hardness = math.sqrt(_ERROR_CORRELATION) * shared + math.sqrt(1 - _ERROR_CORRELATION) * own
    ability = np.array([NormalDist().inv_cdf(min(0.999, max(0.001, accuracy))) for accuracy in accuracies])
    quality = (hardness < ability).astype(np.float64)
    confidence = binormal_separation(PRIOR_AUROC) * (quality - 0.5) + random.standard_normal(quality.shape)
    spread = _LENGTH_SPREAD * random.standard_normal(_ROWS) - _LENGTH_SPREAD**2 / 2
    lengths = np.maximum(1.0, np.rint(output_tokens_mean * np.exp(spread)))
    return CalibrationSet(
        ids=[f"prior-{row}" for row in range(_ROWS)],
        models=tuple(models),
        scorer=scorer,
        input_tokens=np.ones(_ROWS),
        output_tokens=np.repeat(lengths[:, None], len(models), axis=1),
        scores=1 / (1 + np.exp(-(1.2 + 0.8 * confidence))),
        quality=quality,
        source="Prior",
    )
