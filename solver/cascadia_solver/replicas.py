"""Replicas: the ones that a plan wants and the ones that exist."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

__all__ = ["DesiredReplica", "Kind", "ObservedReplica", "ReplicaState", "held_by_group", "left_in_group"]

Kind: TypeAlias = tuple[str, str, int, int]
"""Stage, pool, tensor and pipeline degree: replicas of one kind are interchangeable."""


@dataclass(frozen=True, slots=True)
class DesiredReplica:
    """One replica that a plan wants.

    Attributes:
        stage: Stage name.
        pool: Pool of its GPUs.
        tensor_parallel: GPUs that share each layer.
        pipeline_parallel: Pipeline stages.
        weight: The plan's share of the stage's load for it, 0 to 1.
    """

    stage: str
    pool: str
    tensor_parallel: int
    pipeline_parallel: int
    weight: float

    @property
    def gpus(self) -> int:
        """GPUs that it takes."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def kind(self) -> Kind:
        """What makes it interchangeable with another replica."""
        return self.stage, self.pool, self.tensor_parallel, self.pipeline_parallel


class ReplicaState(StrEnum):
    """Where a replica is in its life.

    ``Starting`` also covers one that crashed and is being restarted in its place. ``Draining`` is on
    its way out for good and holds its GPUs until it is gone. ``Failed`` is dead, holds no GPU and will
    not come back: it is deleted and, where wanted, replaced.
    """

    Starting = "Starting"
    Ready = "Ready"
    Draining = "Draining"
    Failed = "Failed"


@dataclass(frozen=True, slots=True)
class ObservedReplica:
    """One replica that exists.

    Attributes:
        name: Unique name.
        stage: Stage name.
        pool: Pool of its GPUs.
        tensor_parallel: GPUs that share each layer.
        pipeline_parallel: Pipeline stages.
        state: Where it is in its life.
        node_group: What it shares with its neighbours and a large replica needs whole (its node); None if unknown.
        routed: Whether a policy that lists it is still in force at some router.
    """

    name: str
    stage: str
    pool: str
    tensor_parallel: int
    pipeline_parallel: int
    state: ReplicaState
    node_group: str | None = None
    routed: bool = False

    @property
    def gpus(self) -> int:
        """GPUs that it takes."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def kind(self) -> Kind:
        """What makes it interchangeable with another replica."""
        return self.stage, self.pool, self.tensor_parallel, self.pipeline_parallel


def held_by_group(replicas: Iterable[ObservedReplica]) -> Counter[tuple[str, str]]:
    """Count the GPUs held in each (pool, node group), where it is known."""
    held: Counter[tuple[str, str]] = Counter()
    for replica in replicas:
        if replica.node_group is not None:
            held[replica.pool, replica.node_group] += replica.gpus
    return held


def left_in_group(held: Mapping[tuple[str, str], int], replica: ObservedReplica) -> int:
    """GPUs held in a replica's node group; its own where the group is unknown."""
    return replica.gpus if replica.node_group is None else held[replica.pool, replica.node_group]
