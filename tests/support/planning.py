"""Cascades, calibration sets and populations for tests of the planner."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascadia_api.cascade import CascadeDeployment
from cascadia_solver.calibration import CalibrationSet

__all__ = ["MODELS", "cascade", "data_file", "probit_table"]

MODELS = ("small", "medium", "large")
_REPOSITORIES = {
    "small": ("meta-llama/Llama-3.1-8B-Instruct", "bf16"),
    "medium": ("meta-llama/Llama-3.1-70B-Instruct", "bf16"),
    "large": ("meta-llama/Llama-3.1-405B-Instruct", "fp8"),
}


def data_file(*parts: str) -> Path:
    """A file of the public data beside the repository; skips the test where it is absent."""
    root = Path(os.environ.get("CASCADIA_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the public data: set CASCADIA_DATA to its folder")
    return path


def cascade(
    *,
    models: tuple[str, ...] = MODELS,
    gpus: int = 32,
    rate: str = "10",
    objective: dict[str, Any] | None = None,
    routing: dict[str, Any] | None = None,
    model_fields: dict[str, dict[str, Any]] | None = None,
    pools: list[dict[str, Any]] | None = None,
    workload: dict[str, Any] | None = None,
) -> CascadeDeployment:
    """The chat example with some of its fields changed."""
    pool = {"name": "h100", "gpu": "H100-SXM-80GB", "maxGpus": gpus, "pricePerGpuHour": "2.5"}
    return CascadeDeployment.model_validate(
        {
            "apiVersion": "cascadia.dev/v1alpha1",
            "kind": "CascadeDeployment",
            "metadata": {"name": "chat"},
            "spec": {
                "models": [
                    {
                        "name": name,
                        "source": {"huggingFace": {"repo": _REPOSITORIES[name][0]}},
                        "precision": _REPOSITORIES[name][1],
                        **(model_fields or {}).get(name, {}),
                    }
                    for name in models
                ],
                "gpus": {"pools": pools or [pool]},
                "objective": {"minQuality": "0.85", **(objective or {})},
                "routing": routing or {},
                "workload": {
                    "requestsPerSecond": rate,
                    "inputTokens": {"mean": 1155, "p95": 3100},
                    "outputTokens": {"mean": 211, "p95": 500},
                    **(workload or {}),
                },
            },
        }
    )


def probit_table(
    requests: int,
    seed: int,
    *,
    accuracies: tuple[float, ...] = (0.72, 0.86, 0.90),
    models: tuple[str, ...] = MODELS,
    noise: float = 0.8,
    hard_length: float = 0.3,
) -> CalibrationSet:
    """Draw requests from a population: one difficulty each, right answers and scores that depend on it.

    Args:
        requests: Number of requests.
        seed: Of the draw; the population does not depend on it.
        accuracies: Of each model.
        models: Their names.
        noise: Standard deviation of a score's own error.
        hard_length: Growth of the logarithm of the smallest model's answers with difficulty.
    """
    random = np.random.default_rng((seed, 99))
    quantiles = {0.72: 0.583, 0.86: 1.080, 0.90: 1.282, 0.5: 0.0}
    hardness = random.standard_normal((requests, 1))
    own = random.standard_normal((requests, len(models)))
    ability = np.array([quantiles[accuracy] for accuracy in accuracies])
    margin = ability - (np.sqrt(0.7) * hardness + np.sqrt(0.3) * own)
    confidence = margin + noise * random.standard_normal(margin.shape)
    base = 180 * np.exp(0.6 * random.standard_normal((requests, 1)))
    growth = hard_length * np.linspace(1.0, 0.3, len(models))
    return CalibrationSet(
        ids=[f"r{k}" for k in range(requests)],
        models=models,
        scorer="logprob-mean",
        input_tokens=np.full(requests, 500.0),
        output_tokens=np.maximum(1.0, np.rint(base * np.exp(growth * hardness))),
        scores=1 / (1 + np.exp(-(1.2 + 0.8 * confidence))),
        quality=(margin > 0).astype(float),
    )
