"""Fake nodes with GPUs, which the real scheduler packs by `nvidia.com/gpu` and KWOK keeps alive."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubernetes import client

from tests.support.control_plane.deadlines import wait_for

FAKE_NODE_ANNOTATION = "kwok.x-k8s.io/node"
GPU_RESOURCE = "nvidia.com/gpu"
GPU_PRODUCT_LABEL = "nvidia.com/gpu.product"
GPU_COUNT_LABEL = "nvidia.com/gpu.count"
H100 = "NVIDIA-H100-80GB-HBM3"


@dataclass(frozen=True)
class GpuNode:
    """A node as a test wants it.

    Attributes:
        name: The node's name, also its `kubernetes.io/hostname`.
        gpus: How many GPUs it has; 0 makes it a plain node.
        gpu_product: The value of the label `nvidia.com/gpu.product`, as NVIDIA's feature discovery would set it.
        cpu: CPUs, as a Kubernetes quantity.
        memory: Memory, as a Kubernetes quantity.
        pods: How many pods fit.
        labels: Further labels.
        taints: Taints, as in the API (`{"key": …, "value": …, "effect": …}`).
        resource: The name of the GPU resource.
    """

    name: str
    gpus: int = 8
    gpu_product: str = H100
    cpu: str = "96"
    memory: str = "1Ti"
    pods: int = 110
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: Sequence[Mapping[str, str]] = ()
    resource: str = GPU_RESOURCE

    def manifest(self) -> dict[str, Any]:
        """The Node to create."""
        resources = {"cpu": self.cpu, "memory": self.memory, "pods": str(self.pods), "ephemeral-storage": "1Ti"}
        labels = {
            "kubernetes.io/hostname": self.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
        }
        if self.gpus:
            resources[self.resource] = str(self.gpus)
            labels |= {GPU_PRODUCT_LABEL: self.gpu_product, GPU_COUNT_LABEL: str(self.gpus)}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "annotations": {FAKE_NODE_ANNOTATION: "fake", "node.alpha.kubernetes.io/ttl": "0"},
                "labels": labels | dict(self.labels),
            },
            "spec": {"taints": [dict(taint) for taint in self.taints]},
            "status": {
                "capacity": resources,
                "allocatable": resources,
                "addresses": [
                    {"type": "InternalIP", "address": _address(self.name)},
                    {"type": "Hostname", "address": self.name},
                ],
            },
        }


def _address(name: str) -> str:
    # Made from the name, so that a node which comes back has its old address; nobody sends anything there.
    high, low = divmod(zlib.crc32(name.encode()) % 65536, 256)
    return f"10.128.{high}.{low}"


def add_node(api: client.ApiClient, node: GpuNode, *, timeout_s: float = 30.0) -> None:
    """Create the node, and wait until pods can be scheduled on it.

    Raises:
        DeadlineExceededError: when it is not Ready, or still tainted as not ready, after `timeout_s` seconds.
        kubernetes.client.ApiException: when the API server refuses it.
    """
    core: Any = client.CoreV1Api(api)  # Any: its annotations leave out the plain dicts it takes
    core.create_node(node.manifest())
    own = {taint["key"] for taint in node.taints}

    def schedulable() -> bool:
        seen = core.read_node(node.name)
        ready = any(c.type == "Ready" and c.status == "True" for c in seen.status.conditions or [])
        return ready and all(taint.key in own for taint in seen.spec.taints or [])

    wait_for(f"node {node.name} to be Ready", schedulable, timeout_s=timeout_s)


def remove_node(api: client.ApiClient, name: str) -> None:
    """Delete the node, if it is there, and at once the pods on it: nobody else would finish them."""
    core: Any = client.CoreV1Api(api)
    try:
        core.delete_node(name)
    except client.ApiException as error:
        if error.status != 404:
            raise
    for pod in core.list_pod_for_all_namespaces(field_selector=f"spec.nodeName={name}").items:
        try:
            core.delete_namespaced_pod(pod.metadata.name, pod.metadata.namespace, grace_period_seconds=0)
        except client.ApiException as error:
            if error.status != 404:
                raise


class GpuNodes:
    """The fake nodes that one test adds, so that they can go with it."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api
        self.names: list[str] = []

    def add(
        self,
        name: str,
        gpus: int = 8,
        *,
        gpu_product: str = H100,
        labels: Mapping[str, str] | None = None,
        taints: Sequence[Mapping[str, str]] = (),
    ) -> GpuNode:
        """Add a node and wait until pods can be scheduled on it."""
        node = GpuNode(name, gpus, gpu_product, labels=labels or {}, taints=taints)
        self.names.append(name)
        add_node(self._api, node)
        return node

    def remove(self, name: str) -> None:
        """Take a node away, and its pods with it."""
        self.names.remove(name)
        remove_node(self._api, name)

    def remove_all(self) -> None:
        """Take every node away that is left."""
        for name in list(self.names):
            self.remove(name)
