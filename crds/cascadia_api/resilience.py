"""What a manifest says of overload and balancing, as routers are told: in a cluster and in embedded mode alike."""

from __future__ import annotations

from cascadia_api.cascade import CascadeDeployment, Routing
from cascadia_api.plan import Plan
from cascadia_api.policy import BalancingPolicy, OverloadPolicy

__all__ = ["balancing_policy", "overload_policy"]

_LATE_SHARE = 0.05
_PREDICTIONS = 2.0
"""Without a target, so many times the predicted 95th percentile is late."""


def balancing_policy(routing: Routing) -> BalancingPolicy:
    """Where requests go."""
    balancing = routing.balancing
    latch = balancing.session_latch_seconds
    return BalancingPolicy(
        policy=balancing.policy,
        prefix_bytes=balancing.prefix_bytes or BalancingPolicy().prefix_bytes,
        session_latch_seconds=None if latch is None else float(latch),
    )


def overload_policy(cascade: CascadeDeployment, plan: Plan) -> OverloadPolicy:
    """What routers do with more requests than they, or the plan's replicas, can take.

    A request is late by the manifest's own figure, else by the objective's EndToEnd target of the highest
    percentile, whose complement is then the share that may be late, else by the plan's prediction.
    """
    overload = cascade.spec.routing.overload
    targets = [target for target in cascade.spec.objective.targets or () if target.metric == "EndToEnd"]
    late_share = _LATE_SHARE
    if overload.latency_milliseconds is not None:
        milliseconds = float(overload.latency_milliseconds)
    elif targets:
        target = max(targets, key=lambda each: each.percentile)
        milliseconds, late_share = float(target.milliseconds), 1 - target.percentile / 100
    else:
        milliseconds = _PREDICTIONS * plan.latency.p95_ms
    return OverloadPolicy(
        max_queued=overload.max_queued,
        max_queue_seconds=float(overload.max_queue_seconds),
        ladder=overload.ladder == "Automatic",
        latency_seconds=milliseconds / 1000 if milliseconds > 0 else None,
        late_share=round(late_share, 4),
    )
