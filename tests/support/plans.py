"""A plan with every field set, for tests that need one and no planner."""

from __future__ import annotations

from typing import Any

from cascadia_api.plan import Plan

__all__ = ["example_plan"]


def example_plan(**changes: Any) -> Plan:
    """Three stages on 32 GPUs, the last with replicas of two shapes; keyword arguments replace fields."""
    document: dict[str, Any] = {
        "planId": "p-0123456789ab",
        "cascade": "chat",
        "thresholds": [0.81, 0.77, None],
        "stages": [
            _stage("small", 0.81, 1.0, 4, [(1, 1, 4, 0.25)], 2100.0),
            _stage("medium", 0.77, 0.45, 8, [(4, 1, 2, 0.5)], 4300.0),
            _stage("large", None, 0.2, 20, [(8, 1, 2, 0.42), (4, 1, 1, 0.16)], 7300.0),
        ],
        "ladder": [
            _rung([0.81, 0.77, None], [1, 0.45, 0.2], 0.874, 0.851, 12.0),
            _rung([0.8, 0.75, None], [1, 0.43, 0.18], 0.873, 0.85, 13.1),
        ],
        "quality": {"mean": 0.874, "lowerBound": 0.851, "confidence": 0.95, "source": "Calibration", "requests": 1500},
        "latency": {
            "p50Ms": 2600.0,
            "p90Ms": 7800.0,
            "p95Ms": 9800.0,
            "p99Ms": 15000.0,
            "timeToFirstTokenP95Ms": 4100.0,
            "timePerOutputTokenP95Ms": 31.0,
            "source": "roofline",
            "uncertaintyPercent": 10.0,
        },
        "costPerHour": 79.68,
        "demand": {
            "requestsPerSecond": 10.0,
            "inputTokensMean": 1155.0,
            "outputTokensMean": 211.0,
            "inputTokenQuantiles": [95.0, 400.0, 1020.0, 1500.0, 3100.0],
            "outputTokenQuantiles": [20.0, 70.0, 129.0, 300.0, 500.0],
            "scoreDeciles": [0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95],
            "source": "Manifest",
        },
        "frontier": [
            {
                "thresholds": [0.81, 0.77, None],
                "gpus": [4, 8, 20],
                "p95Ms": 9800.0,
                "costPerHour": 79.68,
                "qualityMean": 0.874,
                "qualityLowerBound": 0.851,
                "chosen": True,
            }
        ],
        "alternatives": [{"name": "large alone", "p95Ms": 21000.0, "qualityMean": 0.9, "reason": "slower"}],
        "solver": {
            "status": "Optimal",
            "objective": "EndToEnd",
            "gap": 0.0,
            "elapsedMs": 420.0,
            "thresholdVectors": 1089,
            "version": "0.1.0",
        },
        "scorer": "logprob-mean",
        "warnings": ["an example"],
    }
    return Plan.model_validate(document | changes)


def _stage(
    name: str, threshold: float | None, reach: float, gpus: int, groups: list[tuple[int, int, int, float]], p95: float
) -> dict[str, Any]:
    return {
        "name": name,
        "threshold": threshold,
        "reach": reach,
        "gpus": gpus,
        "pool": "h100",
        "replicas": [
            {"tensorParallel": tp, "pipelineParallel": pp, "count": count, "weight": weight}
            for tp, pp, count, weight in groups
        ],
        "p95Ms": p95,
        "utilization": 0.6,
    }


def _rung(thresholds: list[float | None], reach: list[float], mean: float, bound: float, rate: float) -> dict[str, Any]:
    return {
        "thresholds": thresholds,
        "reach": reach,
        "qualityMean": mean,
        "qualityLowerBound": bound,
        "maxRequestsPerSecond": rate,
    }
