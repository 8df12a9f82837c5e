"""What a manifest's `routing` section tells the routers, the same in a cluster and on one machine."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET

from cascadia_api import policy
from cascadia_api.cascade import AccessLog, CascadeDeployment, RateLimit, RateLimits, Tracing
from cascadia_api.cascade.scorer import secret_file
from cascadia_api.plan import Plan
from cascadia_api.resilience import balancing_policy, overload_policy

__all__ = ["routing_policy"]


def routing_policy(
    cascade: CascadeDeployment,
    plan: Plan,
    *,
    stages: Sequence[policy.StagePolicy],
    scorer: policy.ScorerPolicy,
    revision: int,
) -> policy.RouterPolicy:
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
    return policy.RouterPolicy(
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
        else policy.ShadowPolicy(share=float(shadow.percent) / 100, max_concurrent=shadow.max_concurrent),
        overload=overload_policy(cascade, plan),
        balancing=balancing_policy(routing),
        streaming=policy.StreamingPolicy(
            mode=routing.streaming.mode,
            gate_tokens=routing.streaming.gate_tokens,
            keep_alive_seconds=float(routing.streaming.keep_alive_seconds),
        ),
        request_timeout_seconds=float(routing.request_timeout_seconds),
        pin_stages=routing.pin_stages,
        rate_limits=_rate_limits(routing.rate_limits),
        limits=policy.RequestLimits(**routing.limits.model_dump()),
        access_log=_access_log(routing.access_log),
        tracing=_tracing(routing.tracing),
    )


def _rate_limits(limits: RateLimits | None) -> policy.RateLimits | None:
    if limits is None:
        return None
    return policy.RateLimits(
        default=_rate(limits.default or RateLimit()), keys={limit.key: _rate(limit) for limit in limits.keys or ()}
    )


def _rate(limit: RateLimit) -> policy.RateLimit:
    return policy.RateLimit(requests_per_minute=limit.requests_per_minute, tokens_per_minute=limit.tokens_per_minute)


def _tracing(tracing: Tracing | None) -> policy.TracingPolicy | None:
    if tracing is None:
        return None
    headers, ca = tracing.headers_secret_ref, tracing.ca_secret_ref
    return policy.TracingPolicy(
        endpoint=tracing.endpoint,
        share=float(tracing.percent) / 100,
        headers=UNSET if headers is None else secret_file(headers),
        ca=UNSET if ca is None else secret_file(ca),
    )


def _access_log(log: AccessLog | None) -> policy.AccessLogPolicy | None:
    return None if log is None else policy.AccessLogPolicy(share=float(log.percent) / 100)
