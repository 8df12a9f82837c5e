"""All the manifests of a cascade, as the operator would leave them once a plan is in force."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterable
from typing import Any

import yaml

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.plan import Plan
from cascadia_operator.manifests.naming import child_metadata, peer_secret_name
from cascadia_operator.manifests.policy import policy_config_map, router_policy
from cascadia_operator.manifests.rbac import rbac
from cascadia_operator.manifests.replica import ReplicaIdentity, replica_identity, statefulset_name
from cascadia_operator.manifests.router_config import PEER_SECRET_KEY
from cascadia_operator.manifests.services import services
from cascadia_operator.manifests.statefulset import statefulset
from cascadia_operator.settings import Images
from cascadia_solver.transition import desired_replicas

__all__ = ["as_yaml", "foundation", "peer_secret", "rendered"]


class _ReadableDumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, so that documents inside manifests can be read."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_ReadableDumper.add_representer(str, _text)


def as_yaml(manifests: Iterable[dict[str, Any]]) -> str:
    """The manifests as one YAML file, fields in the order in which they were built."""
    return yaml.dump_all(manifests, Dumper=_ReadableDumper, sort_keys=False, width=120)


def foundation(cascade: CascadeDeployment) -> list[dict[str, Any]]:
    """What the replicas stand on, whatever the plan: the routers' account and the Services."""
    return [*rbac(cascade), *services(cascade)]


def peer_secret(cascade: CascadeDeployment) -> dict[str, Any]:
    """Build the Secret with which routers sign what they send each other: created once, never read."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": child_metadata(cascade, peer_secret_name(cascade.metadata.name)),
        "type": "Opaque",
        "stringData": {PEER_SECRET_KEY: secrets.token_hex(32)},
    }


def rendered(cascade: CascadeDeployment, plan: Plan, images: Images) -> list[dict[str, Any]]:
    """Every manifest of a cascade with this plan in force, in the order to apply them.

    The Secret of `peer_secret_name` is not among them: a manifest that is reviewed and stored must not
    hold it. Its key `secret` may hold any random text.
    """
    seen: Counter[ReplicaIdentity] = Counter()
    statefulsets: list[dict[str, Any]] = []
    endpoints: list[tuple[str, str, float]] = []
    for replica in desired_replicas(plan):
        identity = replica_identity(
            cascade, replica.stage, replica.pool, replica.tensor_parallel, replica.pipeline_parallel
        )
        ordinal = seen[identity]
        seen[identity] += 1
        name = statefulset_name(cascade.metadata.name, identity, ordinal)
        statefulsets.append(statefulset(cascade, identity, name, images))
        endpoints.append((replica.stage, name, replica.weight))
    policy = router_policy(
        cascade,
        plan,
        thresholds={stage.name: stage.threshold for stage in plan.live_stages},
        endpoints=endpoints,
        revision=1,
    )
    return [*foundation(cascade), policy_config_map(cascade, policy), *statefulsets]
