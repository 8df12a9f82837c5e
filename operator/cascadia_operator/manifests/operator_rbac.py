"""The rights that the operator itself needs: no more than these, and a test runs it with no more."""

from __future__ import annotations

from typing import Any

from cascadia_api.names import GROUP, PLAN_PLURAL, PLURAL

__all__ = ["operator_rules"]


def operator_rules() -> list[dict[str, Any]]:
    """Rules of its ClusterRole, or with namespaces of its own of a Role in each.

    Nodes, namespaces and CustomResourceDefinitions are cluster-wide: without the first, ``maxGpus`` is taken
    for granted; without the others, a CRD that is installed later is noticed only after a restart.
    Server-side apply takes ``create`` and ``patch``. Secrets can be created, and never read.
    """
    applied = ["get", "list", "create", "patch"]
    watched = ["get", "list", "watch", "create", "patch", "delete"]
    return [
        _rule(GROUP, [PLURAL], ["get", "list", "watch"]),
        _rule(GROUP, [f"{PLURAL}/status"], ["patch"]),
        _rule(GROUP, [PLAN_PLURAL], watched),
        _rule("apps", ["statefulsets"], watched),
        _rule("", ["pods"], ["list", "watch"]),
        _rule("", ["services"], [*applied, "delete"]),
        _rule("", ["serviceaccounts"], applied),
        # To give routers the rights to watch their policy and endpoints, it has to have them itself.
        _rule("", ["configmaps"], [*applied, "watch"]),
        _rule("discovery.k8s.io", ["endpointslices"], ["get", "list", "watch"]),
        _rule("rbac.authorization.k8s.io", ["roles", "rolebindings"], applied),
        _rule("", ["secrets", "events"], ["create"]),
        _rule("", ["nodes"], ["list"]),
        _rule("", ["namespaces"], ["list", "watch"]),
        _rule("apiextensions.k8s.io", ["customresourcedefinitions"], ["list", "watch"]),
    ]


def _rule(group: str, resources: list[str], verbs: list[str]) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}
