"""A router in a cluster: its account and what it may read, the API server as it reaches it, a watch that runs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from cascadia_router.balancing import ReplicaTable
from cascadia_router.list_watch import ApiServer
from cascadia_router.policy_store import PolicyStore
from tests.support.control_plane import ControlPlane

__all__ = ["api_server", "following", "router_token"]


def router_token(api: client.ApiClient, namespace: str, rule: dict[str, Any]) -> str:
    """Make an account that may do what a rule of a cascade's Role says; return its token."""
    core: Any = client.CoreV1Api(api)
    rbac: Any = client.RbacAuthorizationV1Api(api)
    core.create_namespaced_service_account(namespace, {"metadata": {"name": "router"}})
    rbac.create_namespaced_role(
        namespace, {"metadata": {"name": "router"}, "rules": [rule | {"verbs": ["get", "list", "watch"]}]}
    )
    rbac.create_namespaced_role_binding(
        namespace,
        {
            "metadata": {"name": "router"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "router"},
            "subjects": [{"kind": "ServiceAccount", "name": "router", "namespace": namespace}],
        },
    )
    return str(core.create_namespaced_service_account_token("router", namespace, {"spec": {}}).status.token)


def api_server(control_plane: ControlPlane, folder: Path, token: str) -> ApiServer:
    """The control plane as a pod is told of it, with files in the folder."""
    cluster = yaml.safe_load(control_plane.kubeconfig.read_text())["clusters"][0]["cluster"]
    (folder / "ca.crt").write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
    (folder / "token").write_text(token)
    return ApiServer(cluster["server"], folder / "token", folder / "ca.crt")


@contextlib.asynccontextmanager
async def following(watch: Callable[[PolicyStore], Coroutine[Any, Any, None]]) -> AsyncIterator[PolicyStore]:
    """Run a watch for the length of the block; yields what it keeps up to date."""
    store = PolicyStore(ReplicaTable(None, None))
    task = asyncio.create_task(watch(store))
    try:
        yield store
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.01)  # the loop closes what was aborted
