"""The router policy: one document for all routers of a cascade, in one ConfigMap.

A stage's endpoints are its replicas one by one, by the DNS names of their rank 0, with the plan's weights:
a Service would hide the replicas' outstanding requests and weights from the routers that balance by them.
Where each of them is, and whether it is ready, routers learn from the EndpointSlices of the stage's Service;
the names are for the time before that. So a pod that comes back elsewhere needs no new policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.errors import InputError
from cascadia_api.names import PEERS_PORT, POLICY_KEY
from cascadia_api.plan import Plan
from cascadia_api.policy import (
    Capability,
    Endpoint,
    RouterPolicy,
    ScorerPolicy,
    StagePolicy,
    decode_policy,
    encode_policy,
)
from cascadia_api.routing_policy import routing_policy
from cascadia_api.scorer_policy import scorer_policy
from cascadia_operator.manifests.naming import child_metadata, policy_name, stage_service_name
from cascadia_operator.manifests.replica import model_named
from cascadia_operator.manifests.statefulset import leader_host
from cascadia_solver.catalogue.manifest import model_of
from cascadia_solver.catalogue.models import ModelFacts

__all__ = ["policy_config_map", "read_policy", "revised", "router_policy"]


def router_policy(
    cascade: CascadeDeployment,
    plan: Plan,
    *,
    thresholds: Mapping[str, float | None],
    endpoints: Sequence[tuple[str, str, float]],
    revision: int,
    live: RouterPolicy | None = None,
) -> RouterPolicy:
    """Build the policy.

    While a plan of another scorer is still in force, its scorer stays, too: raw scores meet raw thresholds.

    Args:
        cascade: The manifest.
        plan: The plan whose thresholds are in force.
        thresholds: Threshold of each live stage, in order.
        endpoints: Stage, replica and weight of each replica that is to get requests.
        revision: Of the document.
        live: The policy in force.
    """
    return routing_policy(
        cascade,
        plan,
        stages=[_stage(cascade, stage, threshold, endpoints) for stage, threshold in thresholds.items()],
        scorer=_scorer(cascade, plan, live),
        revision=revision,
    )


def _scorer(cascade: CascadeDeployment, plan: Plan, live: RouterPolicy | None) -> ScorerPolicy:
    routing = cascade.spec.routing
    if plan.scorer != routing.scorer_id and live is not None and live.scorer.id == plan.scorer:
        return live.scorer
    return scorer_policy(routing.scorer, routing.scorer_id)


def _stage(
    cascade: CascadeDeployment, stage: str, threshold: float | None, endpoints: Sequence[tuple[str, str, float]]
) -> StagePolicy:
    facts = _facts(cascade, stage)
    return StagePolicy(
        name=stage,
        served_model_name=stage,
        threshold=threshold,
        endpoints=[
            Endpoint(replica=replica, address=f"{leader_host(cascade, stage, replica)}:{PEERS_PORT}", weight=weight)
            for its_stage, replica, weight in endpoints
            if its_stage == stage
        ],
        service=stage_service_name(cascade.metadata.name, stage),
        context_window=facts.context_window if facts else None,
        capabilities=cast("list[Capability]", list(facts.capabilities)) if facts else [],
    )


def _facts(cascade: CascadeDeployment, stage: str) -> ModelFacts | None:
    try:
        return model_of(model_named(cascade, stage))
    except (InputError, KeyError):
        return None


def revised(policy: RouterPolicy, live: RouterPolicy | None, least_revision: int) -> RouterPolicy:
    """Give a policy its revision: the live one's where nothing changed, else a higher one.

    Args:
        policy: What is wanted; its revision does not matter.
        live: What the ConfigMap holds.
        least_revision: The highest revision known to have been in force; it outlives the ConfigMap.
    """
    if live is not None and msgspec.structs.replace(policy, policy_revision=live.policy_revision) == live:
        return live
    highest = max(least_revision, live.policy_revision if live else 0)
    return msgspec.structs.replace(policy, policy_revision=highest + 1)


def policy_config_map(cascade: CascadeDeployment, policy: RouterPolicy) -> dict[str, Any]:
    """Build the ConfigMap that routers mount and watch."""
    document = msgspec.json.format(encode_policy(policy), indent=2).decode()
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(cascade, policy_name(cascade.metadata.name)),
        "data": {POLICY_KEY: document},
    }


def read_policy(config_map: Mapping[str, Any] | None) -> RouterPolicy | None:
    """The policy in a ConfigMap; None where there is none that a router would take."""
    document = ((config_map or {}).get("data") or {}).get(POLICY_KEY)
    if not document:
        return None
    try:
        return decode_policy(document)
    except msgspec.DecodeError:
        return None
