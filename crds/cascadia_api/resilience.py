"""What a manifest says of overload and balancing, as routers are told: in a cluster and in embedded mode alike."""

from __future__ import annotations

from cascadia_api.cascade import Routing
from cascadia_api.policy import OverloadPolicy

__all__ = ["overload_policy"]


def overload_policy(routing: Routing) -> OverloadPolicy:
    """What routers do with more requests than they can hold."""
    overload = routing.overload
    return OverloadPolicy(
        max_queued=overload.max_queued,
        max_queue_seconds=float(overload.max_queue_seconds),
    )
