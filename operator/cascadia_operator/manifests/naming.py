"""Names, labels and owner of everything that the operator makes.

Every label set is an allow-list: nothing of the user's own metadata reaches a child except what
``spec.podTemplate`` names.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.names import API_VERSION, CASCADE_LABEL, FIELD_MANAGER, GROUP, KIND, MANAGED_BY_LABEL, STAGE_LABEL

__all__ = [
    "PIPELINE_PARALLEL_LABEL",
    "POD_INDEX_LABEL",
    "POOL_LABEL",
    "REVISION_LABEL",
    "TENSOR_PARALLEL_LABEL",
    "child_metadata",
    "cluster_endpoint",
    "common_labels",
    "digest8",
    "entry_service_name",
    "learnt_name",
    "owner_reference",
    "peer_secret_name",
    "peers_service_name",
    "plan_object_name",
    "policy_name",
    "router_account_name",
    "stage_labels",
    "stage_service_name",
]

POOL_LABEL = f"{GROUP}/pool"
TENSOR_PARALLEL_LABEL = f"{GROUP}/tensor-parallel"
PIPELINE_PARALLEL_LABEL = f"{GROUP}/pipeline-parallel"
REVISION_LABEL = f"{GROUP}/revision"
POD_INDEX_LABEL = "apps.kubernetes.io/pod-index"


def digest8(content: object) -> str:
    """First eight hexadecimal digits of the SHA-256 of some JSON-able content; key order does not matter."""
    document = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(document.encode()).hexdigest()[:8]


def entry_service_name(cascade: str) -> str:
    """Service that clients call."""
    return cascade


def peers_service_name(cascade: str, stage: str) -> str:
    """Headless Service that gives a stage's pods their DNS names."""
    return f"{cascade}-{stage}-peers"


def stage_service_name(cascade: str, stage: str) -> str:
    """Service of a stage's ready leaders."""
    return f"{cascade}-{stage}-stage"


def policy_name(cascade: str) -> str:
    """ConfigMap that holds the router policy."""
    return f"{cascade}-policy"


def learnt_name(cascade: str) -> str:
    """ConfigMap that holds what the engines have taught."""
    return f"{cascade}-learnt"


def peer_secret_name(cascade: str) -> str:
    """Secret with which routers sign what they send each other."""
    return f"{cascade}-peers"


def router_account_name(cascade: str) -> str:
    """ServiceAccount, Role and RoleBinding of the routers."""
    return f"{cascade}-router"


def plan_object_name(cascade: str, plan_id: str) -> str:
    """CascadePlan of a plan: the same inputs give the same name, so nothing is planned twice."""
    return f"{cascade}-{plan_id.removeprefix('p-')}"


def cluster_endpoint(cascade: str, namespace: str, port: int, *, tls: bool) -> str:
    """URL of the cascade inside the cluster."""
    return f"{'https' if tls else 'http'}://{entry_service_name(cascade)}.{namespace}.svc:{port}/v1"


def common_labels(cascade: str) -> dict[str, str]:
    """Labels of every child of a cascade."""
    return {
        "app.kubernetes.io/name": "cascadia",
        "app.kubernetes.io/instance": cascade,
        MANAGED_BY_LABEL: FIELD_MANAGER,
        CASCADE_LABEL: cascade,
    }


def stage_labels(cascade: str, stage: str) -> dict[str, str]:
    """Labels of every child of a stage."""
    return common_labels(cascade) | {"app.kubernetes.io/component": "stage", STAGE_LABEL: stage}


def owner_reference(cascade: CascadeDeployment) -> dict[str, Any]:
    """Reference through which the garbage collector removes a child with its cascade.

    Without ``blockOwnerDeletion``: it would need the right to update finalizers, and nobody waits on it.
    """
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": cascade.metadata.name,
        "uid": cascade.metadata.uid or "",
        "controller": True,
    }


def child_metadata(
    cascade: CascadeDeployment,
    name: str,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Metadata of a child; without an owner where the cascade has no uid yet (rendered manifests)."""
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": cascade.metadata.namespace or "default",
        "labels": labels or common_labels(cascade.metadata.name),
    }
    if annotations:
        metadata["annotations"] = annotations
    if cascade.metadata.uid:
        metadata["ownerReferences"] = [owner_reference(cascade)]
    return metadata
