"""Replicas from EndpointSlices: the real controller makes them from pods on fake nodes, a router follows."""

import asyncio
import time
from pathlib import Path
from typing import Any

from kubernetes import client

from cascadia_api.policy import Endpoint, RouterPolicy, StagePolicy, encode_policy
from cascadia_router.endpoint_slices import EndpointWatch
from cascadia_router.policy_store import PolicyStore
from tests.support.control_plane import ControlPlane, GpuNodes
from tests.support.router_account import api_server, following, router_token
from tests.support.router_chain import eventually

LABELS = {"stage": "small"}
SLICES = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"]}
"""As a cascade's Role says."""


def policy(revision: int, *replicas: str, service: str = "chat-small-stage") -> bytes:
    endpoints = [Endpoint(replica=name, address=f"{name}.nowhere:8081") for name in replicas]
    stage = StagePolicy(name="small", served_model_name="m", endpoints=endpoints, service=service)
    return encode_policy(RouterPolicy(cascade="chat", policy_revision=revision, plan_id="p", stages=[stage]))


class Cluster:
    """The pods and Services of one stage."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self.core: Any = client.CoreV1Api(api)
        self.namespace = namespace

    def add_service(self, name: str) -> None:
        spec = {"clusterIP": "None", "selector": LABELS, "ports": [{"name": "peers", "port": 8081}]}
        self.core.create_namespaced_service(self.namespace, {"metadata": {"name": name}, "spec": spec})

    def add_pod(self, name: str) -> None:
        spec = {"containers": [{"name": "engine", "image": "none"}], "tolerations": [{"operator": "Exists"}]}
        self.core.create_namespaced_pod(self.namespace, {"metadata": {"name": name, "labels": LABELS}, "spec": spec})

    def remove_pod(self, name: str) -> None:
        self.core.delete_namespaced_pod(name, self.namespace, grace_period_seconds=0)

    def pod_ready_since(self, name: str) -> str | None:
        """Address of the pod once it is ready."""
        status = self.core.read_namespaced_pod(name, self.namespace).status
        ready = any(each.type == "Ready" and each.status == "True" for each in status.conditions or ())
        return status.pod_ip if ready else None


def ready(store: PolicyStore) -> dict[str, str]:
    """Addresses of the ready replicas, by name."""
    assert store.current is not None
    live = store.current.stages[0].live.pairs
    return {replica.name: replica.upstream.address for replica, _ in live if replica.ready}


async def become_ready(cluster: Cluster, store: PolicyStore, *names: str) -> float:
    """Wait until pods are ready and the router knows; return how much later it knew, s."""
    expected = {}
    async with asyncio.timeout(30):
        for name in names:
            while (address := await asyncio.to_thread(cluster.pod_ready_since, f"{name}-0")) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            expected[name] = f"{address}:8081"
    since = time.monotonic()
    await eventually(lambda: expected.items() <= ready(store).items(), f"{expected} in {ready(store)}", 20)
    return time.monotonic() - since


async def test_replicas_come_and_go_and_outlast_the_api_server(
    control_plane: ControlPlane, api_client: client.ApiClient, namespace: str, gpu_nodes: GpuNodes, tmp_path: Path
) -> None:
    assert gpu_nodes is not None
    cluster = Cluster(api_client, namespace)
    token = await asyncio.to_thread(router_token, api_client, namespace, SLICES)
    server = api_server(control_plane, tmp_path, token)
    await asyncio.to_thread(cluster.add_service, "chat-small-stage")
    async with following(lambda store: EndpointWatch(namespace, store, server).run()) as store:
        store.take(policy(1, "r1", "r2"), "test")
        assert set(ready(store)) == {"r1", "r2"}, "until the cluster has told, the policy is believed"
        for name in ("r1", "r2"):
            await asyncio.to_thread(cluster.add_pod, f"{name}-0")
        delay = await become_ready(cluster, store, "r1", "r2")
        print(f"known {delay * 1000:.0f} ms after the pods were ready")

        await asyncio.to_thread(cluster.remove_pod, "r2-0")
        await eventually(lambda: set(ready(store)) == {"r1"}, "r2 is gone", 20)
        await asyncio.to_thread(cluster.add_pod, "r2-0")
        await become_ready(cluster, store, "r2")

        await asyncio.to_thread(control_plane.stop_api_server)
        try:
            await asyncio.sleep(0.3)  # long enough for the watch to break off and be tried again in vain
            assert set(ready(store)) == {"r1", "r2"}, "what was known last is kept"
        finally:
            await asyncio.to_thread(control_plane.start_api_server)
        assert set(ready(store)) == {"r1", "r2"}
        await asyncio.to_thread(cluster.remove_pod, "r1-0")
        await eventually(lambda: set(ready(store)) == {"r2"}, "watched again", 60)

        await asyncio.to_thread(cluster.add_service, "chat-other-stage")
        store.take(policy(2, "r2", service="chat-other-stage"), "test")
        await eventually(lambda: store.whereabouts.told(store.current.policy.stages[0]), "the other Service", 20)  # type: ignore[union-attr]
        assert set(ready(store)) == {"r2"}
