"""Cascades with plans written by hand, for tests of the operator that need no planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.plan import Plan, plan_id

Shape = tuple[int, int, int]
"""Tensor degree, pipeline degree, count."""


def cascade_document(
    models: Sequence[Mapping[str, Any]],
    *,
    name: str = "chat",
    pools: Sequence[Mapping[str, Any]] | None = None,
    uid: str | None = "2f1c0a52-0000-4000-8000-000000000001",
    generation: int = 1,
    **spec: Any,
) -> dict[str, Any]:
    """A CascadeDeployment as the API server holds it."""
    metadata: dict[str, Any] = {"name": name, "namespace": "serving", "generation": generation}
    if uid:
        metadata["uid"] = uid
    return {
        "apiVersion": "cascadia.dev/v1alpha1",
        "kind": "CascadeDeployment",
        "metadata": metadata,
        "spec": {
            "models": [dict(model) for model in models],
            "gpus": {"pools": [dict(pool) for pool in pools or [POOL]]},
            "objective": {"minQuality": "0.85"},
            "workload": {
                "requestsPerSecond": "10",
                "inputTokens": {"mean": 1155, "p95": 3100},
                "outputTokens": {"mean": 211, "p95": 500},
            },
            **spec,
        },
    }


POOL: dict[str, Any] = {"name": "h100", "gpu": "H100-SXM-80GB", "maxGpus": 32, "gpusPerNode": 8}
SMALL: dict[str, Any] = {"name": "small", "source": {"huggingFace": {"repo": "meta-llama/Llama-3.1-8B-Instruct"}}}
MEDIUM: dict[str, Any] = {"name": "medium", "source": {"huggingFace": {"repo": "meta-llama/Llama-3.1-70B-Instruct"}}}
LARGE: dict[str, Any] = {
    "name": "large",
    "source": {"huggingFace": {"repo": "meta-llama/Llama-3.1-405B-Instruct"}},
    "precision": "fp8",
}


def cascade(document: Mapping[str, Any]) -> CascadeDeployment:
    """The validated cascade."""
    return CascadeDeployment.model_validate(dict(document))


def plan(
    stages: Mapping[str, Sequence[Shape]],
    *,
    thresholds: Sequence[float | None] | None = None,
    cascade: str = "chat",
    pool: str = "h100",
    variant: int = 0,
    scorer: str = "logprob-mean",
) -> Plan:
    """A plan with these replica shapes a stage; a stage without any is dropped."""
    live = [name for name, shapes in stages.items() if shapes]
    if thresholds is None:
        thresholds = [0.8 if name in live[:-1] else None for name in stages]
    documents = [
        _stage(name, shapes, threshold, pool)
        for (name, shapes), threshold in zip(stages.items(), thresholds, strict=True)
    ]
    content = [{name: list(shapes) for name, shapes in stages.items()}, list(thresholds), variant]
    return Plan.model_validate(
        {
            "planId": plan_id({"test": content}),
            "cascade": cascade,
            "thresholds": list(thresholds),
            "stages": documents,
            "ladder": [
                {
                    "thresholds": list(thresholds),
                    "reach": [1.0] + [0.4] * (len(documents) - 1),
                    "qualityMean": 0.87,
                    "maxRequestsPerSecond": 14,
                }
            ],
            "quality": {
                "mean": 0.87,
                "lowerBound": 0.852,
                "confidence": 0.95,
                "source": "Calibration",
                "requests": 900,
            },
            "latency": {"p50Ms": 2100, "p90Ms": 5000, "p95Ms": 6800, "p99Ms": 9900, "source": "simulation"},
            "costPerHour": 2.49 * sum(document["gpus"] for document in documents),
            "demand": {
                "requestsPerSecond": 10,
                "inputTokensMean": 1155,
                "outputTokensMean": 211,
                "inputTokenQuantiles": [200, 600, 1020, 1500, 3100],
                "outputTokenQuantiles": [20, 70, 129, 300, 500],
                "source": "Manifest",
            },
            "frontier": [],
            "solver": {
                "status": "Optimal",
                "objective": "EndToEnd",
                "gap": 0.01,
                "elapsedMs": 180,
                "thresholdVectors": 1089,
                "version": "0.1.0",
            },
            "scorer": scorer,
        }
    )


def _stage(name: str, shapes: Sequence[Shape], threshold: float | None, pool: str) -> dict[str, Any]:
    total = sum(tp * pp * count for tp, pp, count in shapes)
    document: dict[str, Any] = {
        "name": name,
        "threshold": threshold,
        "reach": 1.0,
        "gpus": total,
        "replicas": [
            {"tensorParallel": tp, "pipelineParallel": pp, "count": count, "weight": tp * pp / total}
            for tp, pp, count in shapes
        ],
        "utilization": 0.6,
    }
    return document | ({"pool": pool} if shapes else {})
