"""Which old plans may go."""

from __future__ import annotations

from collections.abc import Sequence

from cascadia_operator.world import StoredPlan, World

__all__ = ["KEPT_PLANS", "plans_to_prune"]

KEPT_PLANS = 10


def plans_to_prune(world: World, keep: StoredPlan | None) -> Sequence[StoredPlan]:
    """All but the last ten; never the one to go for, the pinned one, or the one that routers still enforce."""
    enforced = world.policy.plan_id if world.policy else ""
    kept = {stored.name for stored in world.plans[-KEPT_PLANS:]}
    kept |= {stored.name for stored in (keep, world.pinned) if stored is not None}
    return [s for s in world.plans if s.name not in kept and s.plan.plan_id != enforced]
