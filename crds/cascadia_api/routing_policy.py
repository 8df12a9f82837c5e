"""What a manifest's `routing` section tells the routers, the same in a cluster and on one machine."""

from __future__ import annotations

from collections.abc import Sequence

from cascadia_api.access import rate_limit_policy, request_limit_policy
from cascadia_api.cascade import CascadeDeployment
from cascadia_api.observability import access_log_policy, tracing_policy
from cascadia_api.plan import Plan
from cascadia_api.policy import RouterPolicy, ScorerPolicy, ShadowPolicy, StagePolicy, StreamingPolicy
from cascadia_api.resilience import balancing_policy, overload_policy

__all__ = ["routing_policy"]


def routing_policy(
    cascade: CascadeDeployment, plan: Plan, *, stages: Sequence[StagePolicy], scorer: ScorerPolicy, revision: int
) -> RouterPolicy:
    """Return the policy with these stages.

    Args:
        cascade: The manifest.
        plan: The plan whose thresholds are in force.
        stages: The live stages with their replicas, in the plan's order.
        scorer: What scores answers: the plan's, for its thresholds are raw scores.
        revision: Of the document.
    """
    routing = cascade.spec.routing
    shadow = routing.shadow_sampling
    live = {stage.name for stage in stages}
    places = [place for place, stage in enumerate(plan.stages) if stage.name in live]
    return RouterPolicy(
        cascade=cascade.metadata.name,
        policy_revision=revision,
        plan_id=plan.plan_id,
        stages=list(stages),
        # The last live stage answers everything, whatever the plan has after it.
        ladder=[[*(step.thresholds[place] for place in places[:-1]), None] for step in plan.ladder],
        scorer=scorer,
        on_scorer_error=routing.on_scorer_error,
        escalation_budget=routing.escalation_budget_percent / 100,
        max_escalations=7 if routing.max_escalations is None else routing.max_escalations,
        retry_budget=routing.retry_budget_percent / 100,
        max_in_flight=routing.overload.max_in_flight,
        shadow=None
        if shadow is None
        else ShadowPolicy(share=float(shadow.percent) / 100, max_concurrent=shadow.max_concurrent),
        overload=overload_policy(cascade, plan),
        balancing=balancing_policy(routing),
        streaming=StreamingPolicy(
            mode=routing.streaming.mode,
            gate_tokens=routing.streaming.gate_tokens,
            keep_alive_seconds=float(routing.streaming.keep_alive_seconds),
        ),
        request_timeout_seconds=float(routing.request_timeout_seconds),
        pin_stages=routing.pin_stages,
        rate_limits=rate_limit_policy(routing.rate_limits),
        limits=request_limit_policy(routing.limits),
        access_log=access_log_policy(routing.access_log),
        tracing=tracing_policy(routing.tracing),
    )
