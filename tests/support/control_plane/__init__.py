"""A real Kubernetes control plane with fake GPU nodes, for integration tests.

    with ControlPlane(load_seconds=3) as running, running.api() as api:
        running.add_gpu_node("gpu-0", gpus=8)
        client.CoreV1Api(api).create_namespaced_pod("default", …)

Tests below `tests/integration/` get one from the fixtures `control_plane`, `api_client`, `namespace` and `gpu_nodes`;
at a prompt, `python -m tests.support.control_plane up` starts one. Containers do not run: there are no logs, no exec
and no traffic between pods.
"""

from tests.support.control_plane import namespaces
from tests.support.control_plane.binaries import BuildError, ensure_binaries
from tests.support.control_plane.cluster import ControlPlane, ControlPlaneError
from tests.support.control_plane.deadlines import DeadlineExceededError, wait_for
from tests.support.control_plane.kwok import crash, recover
from tests.support.control_plane.nodes import GpuNode, GpuNodes, add_node, remove_node
from tests.support.control_plane.processes import ProcessFailedError
from tests.support.control_plane.toolchain import ToolchainError

__all__ = [
    "BuildError",
    "ControlPlane",
    "ControlPlaneError",
    "DeadlineExceededError",
    "GpuNode",
    "GpuNodes",
    "ProcessFailedError",
    "ToolchainError",
    "add_node",
    "crash",
    "ensure_binaries",
    "namespaces",
    "recover",
    "remove_node",
    "wait_for",
]
