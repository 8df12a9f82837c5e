"""The policy of the embedded runtime: one file that all routers of the run watch."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from cascadia_api.access import rate_limit_policy, request_limit_policy
from cascadia_api.cascade import CascadeDeployment
from cascadia_api.observability import access_log_policy, tracing_policy
from cascadia_api.plan import Plan
from cascadia_api.policy import (
    Capability,
    Endpoint,
    RouterPolicy,
    ShadowPolicy,
    StagePolicy,
    StreamingPolicy,
    encode_policy,
)
from cascadia_api.resilience import balancing_policy, overload_policy
from cascadia_api.scorer_policy import scorer_policy
from cascadia_solver.catalogue.manifest import model_of, served_name
from cascadia_solver.transition import Step

__all__ = ["PolicyFile", "build_policy"]


def build_policy(
    cascade: CascadeDeployment, plan: Plan, step: Step, addresses: Mapping[str, tuple[str, str]], revision: int
) -> RouterPolicy:
    """Return the policy that a step of a transition asks for.

    Args:
        cascade: The manifest.
        plan: The plan whose thresholds the step puts in force (`Step.policy_plan_id`).
        step: The step.
        addresses: Stage and ``host:port`` of the stage port of each replica, by name.
        revision: Revision of the document.
    """
    routing = cascade.spec.routing
    shadow = routing.shadow_sampling
    models = {model.name: model for model in cascade.spec.models}
    stages = []
    for name, threshold in zip(step.stages, step.thresholds, strict=True):
        endpoints = [
            Endpoint(replica=replica, address=addresses[replica][1], weight=weight)
            for replica, weight in zip(step.routed, step.weights, strict=True)
            if addresses[replica][0] == name
        ]
        facts = model_of(models[name])
        stages.append(
            StagePolicy(
                name=name,
                served_model_name=served_name(models[name]),
                threshold=threshold,
                endpoints=endpoints,
                context_window=facts.context_window,
                capabilities=cast("list[Capability]", list(facts.capabilities)),
            )
        )
    return RouterPolicy(
        cascade=cascade.metadata.name,
        policy_revision=revision,
        plan_id=plan.plan_id,
        stages=stages,
        ladder=_ladder(plan, step.stages),
        scorer=scorer_policy(routing.scorer, plan.scorer),
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
        request_timeout_seconds=routing.request_timeout_seconds,
        pin_stages=routing.pin_stages,
        rate_limits=rate_limit_policy(routing.rate_limits),
        limits=request_limit_policy(routing.limits),
        access_log=access_log_policy(routing.access_log),
        tracing=tracing_policy(routing.tracing),
    )


def _ladder(plan: Plan, stages: Sequence[str]) -> list[list[float | None]]:
    """The plan's ladder, one entry a live stage."""
    places = [place for place, stage in enumerate(plan.stages) if stage.name in stages]
    return [[*(step.thresholds[place] for place in places[:-1]), None] for step in plan.ladder]


class PolicyFile:
    """The file, replaced as a whole so that no router ever reads half a document.

    Args:
        path: Where it is.

    Attributes:
        policy: What it holds now; None before the first write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.policy: RouterPolicy | None = None

    @property
    def revision(self) -> int:
        """Revision in the file; 0 before the first write."""
        return self.policy.policy_revision if self.policy is not None else 0

    def write(self, policy: RouterPolicy) -> None:
        """Replace the document."""
        beside = self.path.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(encode_policy(policy))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)
        self.policy = policy
