"""The policy of the embedded runtime: one file that all routers of the run watch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.plan import Plan
from cascadia_api.policy import Capability, Endpoint, RouterPolicy, StagePolicy, encode_policy
from cascadia_api.routing_policy import routing_policy
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
    scorer = scorer_policy(cascade.spec.routing.scorer, plan.scorer)
    return routing_policy(cascade, plan, stages=stages, scorer=scorer, revision=revision)


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
