"""How many GPUs a cascade may hold: what its pools' nodes have, less what others hold of them.

``maxGpus`` is a ceiling. Below it counts what is there: the allocatable GPUs of the nodes that the pool's
pods may run on, less the requests of everybody else's pods. What the cascade holds itself counts as its own.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cascadia_api.cascade import CascadeDeployment, Pool
from cascadia_api.names import CASCADE_LABEL
from cascadia_operator.cluster import Cluster, ForbiddenError, Object
from cascadia_operator.manifests.replica import DEFAULT_RESOURCE

__all__ = ["CapacitySource", "GpuNode", "GpuPod", "Snapshot", "available_gpus", "free_by_node", "snapshot_of"]

log = logging.getLogger("cascadia.operator.capacity")


@dataclass(frozen=True, slots=True)
class GpuNode:
    """A node with extended resources.

    Attributes:
        name: Its name.
        labels: Its labels.
        taints: Key, value and effect of the taints that keep pods away.
        allocatable: Extended resources, by name.
        usable: Whether new pods may be bound to it: ready, and not cordoned.
    """

    name: str
    labels: Mapping[str, str]
    taints: tuple[tuple[str, str, str], ...]
    allocatable: Mapping[str, int]
    usable: bool


@dataclass(frozen=True, slots=True)
class GpuPod:
    """A pod that asks for extended resources.

    Attributes:
        cascade: Namespace and name of the cascade that it belongs to; None for anybody else's.
        node: Where it runs; None while it is not bound.
        requests: Extended resources, by name.
        node_selector: Labels that it wants of a node.
    """

    cascade: tuple[str, str] | None
    node: str | None
    requests: Mapping[str, int]
    node_selector: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All extended resources of a cluster at one moment, and who asks for them."""

    nodes: tuple[GpuNode, ...]
    pods: tuple[GpuPod, ...]


def available_gpus(cascade: CascadeDeployment, snapshot: Snapshot | None) -> dict[str, int]:
    """GPUs of each pool that a cascade may hold, those it holds included.

    Args:
        cascade: The manifest.
        snapshot: The cluster; None where the operator may not look at nodes: then the ceilings count.
    """
    owner = (cascade.metadata.namespace or "default", cascade.metadata.name)
    return {
        pool.name: pool.max_gpus if snapshot is None else min(pool.max_gpus, _in_reach(pool, owner, snapshot))
        for pool in cascade.spec.gpus.pools
    }


def free_by_node(cascade: CascadeDeployment, snapshot: Snapshot | None) -> dict[str, tuple[int, ...]]:
    """GPUs that a cascade may hold on each node of its pools, most first, those it holds included.

    Args:
        cascade: The manifest.
        snapshot: The cluster; None where the operator may not look at nodes: then nothing is known of nodes.
    """
    if snapshot is None:
        return {}
    owner = (cascade.metadata.namespace or "default", cascade.metadata.name)
    return {pool.name: _free_on_nodes(pool, owner, snapshot) for pool in cascade.spec.gpus.pools}


def _free_on_nodes(pool: Pool, owner: tuple[str, str], snapshot: Snapshot) -> tuple[int, ...]:
    resource = pool.resource_name or DEFAULT_RESOURCE
    usable = {node.name: node.usable for node in snapshot.nodes if _suits(node, pool)}
    free = {
        node.name: node.allocatable.get(resource, 0) if node.usable else 0
        for node in snapshot.nodes
        if node.name in usable
    }
    for pod in snapshot.pods:
        if pod.node in free:
            gpus, own = pod.requests.get(resource, 0), pod.cascade == owner
            if usable[pod.node]:
                free[pod.node] -= 0 if own else gpus
            else:
                free[pod.node] += gpus if own else 0
    return tuple(sorted((gpus for gpus in free.values() if gpus > 0), reverse=True))


def _in_reach(pool: Pool, owner: tuple[str, str], snapshot: Snapshot) -> int:
    resource, selector = pool.resource_name or DEFAULT_RESOURCE, dict(pool.node_selector or {})
    nodes = {node.name: node for node in snapshot.nodes if _suits(node, pool)}
    total = sum(node.allocatable.get(resource, 0) for node in nodes.values() if node.usable)
    for pod in snapshot.pods:
        gpus = pod.requests.get(resource, 0)
        node = nodes.get(pod.node) if pod.node else None
        if pod.cascade == owner:
            # On a node that is cordoned or lost the cascade still holds what it has, but there is no more.
            total += gpus if node is not None and not node.usable else 0
        elif (node is not None and node.usable) or (pod.node is None and dict(pod.node_selector) == selector):
            total -= gpus
    return max(total, 0)


def _suits(node: GpuNode, pool: Pool) -> bool:
    if any(node.labels.get(key) != value for key, value in (pool.node_selector or {}).items()):
        return False
    return all(_tolerated(taint, pool) for taint in node.taints)


def _tolerated(taint: tuple[str, str, str], pool: Pool) -> bool:
    key, value, effect = taint
    return any(
        toleration.effect in (None, effect)
        and (
            toleration.key in (None, key)
            if toleration.operator == "Exists"
            else toleration.key == key and (toleration.value or "") == value
        )
        for toleration in pool.tolerations or ()
    )


def snapshot_of(nodes: Iterable[Object], pods: Iterable[Object]) -> Snapshot:
    """Keep what matters of nodes and pods: those with extended resources."""
    kept_nodes = [_node(node) for node in nodes]
    kept_pods = [_pod(pod) for pod in pods]
    return Snapshot(
        tuple(node for node in kept_nodes if node.allocatable), tuple(pod for pod in kept_pods if pod.requests)
    )


def _node(node: Object) -> GpuNode:
    spec, status = node.get("spec") or {}, node.get("status") or {}
    ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or ())
    taints = tuple(
        (taint.get("key", ""), taint.get("value", ""), taint.get("effect", ""))
        for taint in spec.get("taints") or ()
        # A node's own troubles show in `ready`; soft taints keep nobody away.
        if taint.get("effect") != "PreferNoSchedule" and not taint.get("key", "").startswith("node.kubernetes.io/")
    )
    return GpuNode(
        name=node["metadata"]["name"],
        labels=node["metadata"].get("labels") or {},
        taints=taints,
        allocatable=_extended(status.get("allocatable") or {}),
        usable=ready and not spec.get("unschedulable"),
    )


def _pod(pod: Object) -> GpuPod:
    metadata, spec = pod["metadata"], pod.get("spec") or {}
    requests: dict[str, int] = {}
    for container in [*(spec.get("containers") or ()), *(spec.get("initContainers") or ())]:
        for name, amount in _extended((container.get("resources") or {}).get("requests") or {}).items():
            requests[name] = requests.get(name, 0) + amount
    cascade = (metadata.get("labels") or {}).get(CASCADE_LABEL)
    return GpuPod(
        cascade=(metadata["namespace"], cascade) if cascade else None,
        node=spec.get("nodeName"),
        requests=requests,
        node_selector=spec.get("nodeSelector") or {},
    )


def _extended(resources: Mapping[str, str]) -> dict[str, int]:
    # Extended resources have a domain and are counted in whole numbers.
    return {name: int(amount) for name, amount in resources.items() if "/" in name and str(amount).isdecimal()}


class CapacitySource:
    """Snapshots of the cluster, shared by all reconciles for some seconds.

    Args:
        cluster: The cluster.
        lifetime_seconds: How long one snapshot serves.
    """

    def __init__(self, cluster: Cluster, lifetime_seconds: float = 5.0) -> None:
        self._cluster = cluster
        self._lifetime = lifetime_seconds
        self._snapshot: Snapshot | None = None
        self._taken = float("-inf")
        self._lock = asyncio.Lock()

    async def snapshot(self) -> Snapshot | None:
        """The cluster now, or a few seconds ago; None where the operator may not look at nodes."""
        async with self._lock:
            if time.monotonic() - self._taken >= self._lifetime:
                self._snapshot = await self._take()
                self._taken = time.monotonic()
            return self._snapshot

    async def _take(self) -> Snapshot | None:
        try:
            nodes, pods = await asyncio.gather(
                self._cluster.list("Node", None),
                self._cluster.list("Pod", None, fields="status.phase!=Succeeded,status.phase!=Failed"),
            )
        except ForbiddenError as error:
            log.warning("free GPUs are unknown, maxGpus is taken for granted: %s", error)
            return None
        return snapshot_of(nodes, pods)
