"""The operator's own metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "CASCADE_GPUS",
    "ENGINES_ASKED",
    "ENGINE_WINDOWS",
    "PLANNING_SECONDS",
    "PLANS",
    "QUEUED",
    "RECONCILES",
    "RECONCILE_SECONDS",
]

RECONCILES = Counter("cascadia_operator_reconciles", "Reconciles by result: ok or error.", ["result"])
RECONCILE_SECONDS = Histogram(
    "cascadia_operator_reconcile_seconds",
    "Duration of one reconcile, planning not included, s.",
    buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
PLANS = Counter(
    "cascadia_operator_plans", "Planning runs by result: planned, infeasible, invalid or failed.", ["result"]
)
PLANNING_SECONDS = Histogram(
    "cascadia_operator_planning_seconds",
    "Duration of one planning run, waiting for its turn included, s.",
    buckets=(0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120),
)
QUEUED = Gauge("cascadia_operator_queued_cascades", "Cascades that wait to be reconciled.")
CASCADE_GPUS = Gauge(
    "cascadia_operator_cascade_gpus", "GPUs that the replicas of a cascade hold.", ["namespace", "cascade"]
)
ENGINES_ASKED = Counter(
    "cascadia_operator_engines_asked", "Engines asked for their metrics: told or silent.", ["result"]
)
ENGINE_WINDOWS = Counter(
    "cascadia_operator_engine_windows", "Windows of engines' work that were compared with the model."
)
