"""A plan in few words."""

from __future__ import annotations

from cascadia_api.plan import Plan, PlanStage

__all__ = ["plan_words", "shapes_words"]


def shapes_words(stage: PlanStage) -> str:
    """A stage's replicas, as in ``2×TP4 1×TP8·PP2``; empty for a dropped stage."""
    return " ".join(
        f"{group.count}×TP{group.tensor_parallel}"
        + (f"·PP{group.pipeline_parallel}" if group.pipeline_parallel > 1 else "")
        for group in stage.replicas
    )


def plan_words(plan: Plan) -> str:
    """A plan in one line."""
    stages = " > ".join(
        f"{stage.name} {shapes_words(stage)}" + ("" if stage.threshold is None else f" ≥ {stage.threshold:.3f}")
        for stage in plan.live_stages
    )
    return (
        f"{stages}; {plan.gpus} GPUs, quality {plan.quality.mean:.3f}, p95 {plan.latency.p95_ms / 1000:.1f} s "
        f"at {plan.demand.requests_per_second:.3g} requests a second"
    )
