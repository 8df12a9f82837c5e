"""What the routers of a cascade may do in the cluster: watch their policy, and where replicas are.

The policy is one named ConfigMap. EndpointSlices have generated names, so the right is for all of the
namespace: addresses, ports and names of pods.
"""

from __future__ import annotations

from typing import Any

from cascadia_api.cascade import CascadeDeployment
from cascadia_operator.manifests.naming import child_metadata, policy_name, router_account_name

__all__ = ["rbac"]


def rbac(cascade: CascadeDeployment) -> list[dict[str, Any]]:
    """Build the ServiceAccount, Role and RoleBinding of the routers.

    Where the manifest names an account of its own, both are bound: pods that run keep the one that they have.
    """
    name = router_account_name(cascade.metadata.name)
    template = cascade.spec.pod_template
    chosen = template.service_account_name if template else None
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": child_metadata(cascade, name),
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": [policy_name(cascade.metadata.name)],
                # With a resource name, list and watch are granted for the matching field selector only.
                "verbs": ["get", "list", "watch"],
            },
            {
                "apiGroups": ["discovery.k8s.io"],
                "resources": ["endpointslices"],
                "verbs": ["get", "list", "watch"],
            },
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": child_metadata(cascade, name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [
            {"kind": "ServiceAccount", "name": account, "namespace": cascade.metadata.namespace or "default"}
            for account in dict.fromkeys([name, chosen or name])
        ],
    }
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": child_metadata(cascade, name),
        "automountServiceAccountToken": False,
    }
    return [account, role, binding]
