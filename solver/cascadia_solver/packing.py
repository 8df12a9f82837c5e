"""Which replicas fit on nodes of which some GPUs are taken.

A replica is one pod, or several of equal size where it spans nodes, and a pod's GPUs have to be free on one
node. Pods hold powers of two. So whichever node with room a large pod is put on, it takes the same number of
places for smaller ones: room for pods of s GPUs is the sum over the nodes of s · ⌊free / s⌋ GPUs, and pods
fit exactly if, for every s, those of at least s GPUs together hold no more than that. (First fit, largest
first, then places them.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["POD_SIZES", "gpus_by_pod_size", "pod_gpus", "replica_nodes", "room_on"]

Integers = NDArray[np.int64]

POD_SIZES = (1, 2, 4, 8, 16)
"""GPUs that a pod may hold: a node has at most 16."""


def replica_nodes(tensor_parallel: int, pipeline_parallel: int, gpus_per_node: int) -> int:
    """Nodes that a replica spans: the least number whose share of GPUs fits a node.

    SGLang wants either whole pipeline stages on each node, or whole nodes in each pipeline stage.

    Raises:
        ValueError: No number of nodes divides the replica so.
    """
    gpus = tensor_parallel * pipeline_parallel
    for nodes in range(1, gpus + 1):
        whole = pipeline_parallel % nodes == 0 or nodes % pipeline_parallel == 0
        if gpus % nodes == 0 and whole and gpus // nodes <= gpus_per_node:
            return nodes
    raise ValueError(
        f"TP{tensor_parallel} x PP{pipeline_parallel} cannot be divided over nodes of {gpus_per_node} GPUs"
    )


def pod_gpus(gpus: int, gpus_per_node: int) -> int:
    """GPUs of each pod of a replica whose degrees are powers of two.

    Args:
        gpus: Of the replica.
        gpus_per_node: Of a node.
    """
    return min(gpus, 1 << (gpus_per_node.bit_length() - 1))


def room_on(free: Iterable[int]) -> Integers:
    """GPUs that pods of at least each size in `POD_SIZES` can hold together.

    Args:
        free: Free GPUs of each node.
    """
    nodes = np.array(list(free), dtype=np.int64).reshape(-1, 1)
    sizes = np.array(POD_SIZES)
    return np.asarray((nodes // sizes * sizes).sum(axis=0), dtype=np.int64)


def gpus_by_pod_size(replicas: Sequence[tuple[int, int]], gpus_per_node: int) -> Integers:
    """GPUs that replicas hold in pods of at least each size in `POD_SIZES`.

    Args:
        replicas: GPUs of one replica, and the number of such replicas.
        gpus_per_node: Of a node.
    """
    held = np.zeros(len(POD_SIZES), dtype=np.int64)
    for gpus, count in replicas:
        held[np.array(POD_SIZES) <= pod_gpus(gpus, gpus_per_node)] += gpus * count
    return held
