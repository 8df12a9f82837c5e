"""Names that several parts must agree on: the API group, labels, annotations, ports, limits."""

from __future__ import annotations

__all__ = [
    "ADMIN_PORT",
    "API_VERSION",
    "CASCADE_LABEL",
    "CASCADE_NAME_MAX",
    "CLIENT_PORT",
    "DISTRIBUTED_INIT_PORT",
    "ENGINE_PORT",
    "FIELD_MANAGER",
    "GROUP",
    "KIND",
    "MANAGED_BY_LABEL",
    "MODEL_NAME_MAX",
    "PEERS_PORT",
    "PLAN_ANNOTATION",
    "PLAN_KIND",
    "PLAN_PLURAL",
    "PLURAL",
    "POLICY_KEY",
    "REPLAN_ANNOTATION",
    "REPLICA_LABEL",
    "ROLE_LABEL",
    "STAGE_LABEL",
    "VERSION",
]

GROUP = "cascadia.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "CascadeDeployment"
PLURAL = "cascadedeployments"
PLAN_KIND = "CascadePlan"
PLAN_PLURAL = "cascadeplans"

MODEL_NAME_MAX = 12
CASCADE_NAME_MAX = 24
"""With a model name, two dashes and a hash this keeps StatefulSet names within 52 characters: the
controller appends an 11-character hash for its revision label, and labels end at 63."""

FIELD_MANAGER = "cascadia-operator"
MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
CASCADE_LABEL = f"{GROUP}/cascade"
STAGE_LABEL = f"{GROUP}/stage"
REPLICA_LABEL = f"{GROUP}/replica"
ROLE_LABEL = f"{GROUP}/role"
"""``leader`` (rank 0, serves) or ``follower``; carried by pods through the pod-index label."""
PLAN_ANNOTATION = f"{GROUP}/plan"
REPLAN_ANNOTATION = f"{GROUP}/replan"
"""On a CascadeDeployment: another value, whatever it is, asks for another plan."""

POLICY_KEY = "policy.json"
"""Key of the policy ConfigMap that holds the router policy."""

CLIENT_PORT = 8080
PEERS_PORT = 8081
ADMIN_PORT = 8082
ENGINE_PORT = 30000
DISTRIBUTED_INIT_PORT = 5000
