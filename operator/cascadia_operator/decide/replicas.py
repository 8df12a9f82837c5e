"""The replicas that exist, in the transition core's words, and the names of those to come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.names import REPLICA_LABEL, STAGE_LABEL
from cascadia_api.policy import RouterPolicy
from cascadia_operator.cluster import Object
from cascadia_operator.manifests.naming import (
    PIPELINE_PARALLEL_LABEL,
    POD_INDEX_LABEL,
    POOL_LABEL,
    REVISION_LABEL,
    TENSOR_PARALLEL_LABEL,
)
from cascadia_operator.manifests.replica import ReplicaIdentity, replica_identity, statefulset_name
from cascadia_operator.world import World
from cascadia_solver.transition import DesiredReplica, ObservedReplica, ReplicaState

__all__ = [
    "NamedReplica",
    "OutdatedReplica",
    "current_identity",
    "label_of",
    "named_starts",
    "observed_replicas",
    "pod_ready",
    "ready_leaders",
]


class OutdatedReplica(ObservedReplica):
    """A replica whose engine runs with settings that the manifest no longer has: like no replica that a plan wants."""

    @property
    def kind(self) -> tuple[str, str, int, int]:
        """Of the shape it has, and yet not interchangeable with a current one."""
        return f"{self.stage} (outdated)", self.pool, self.tensor_parallel, self.pipeline_parallel


@dataclass(frozen=True, slots=True)
class NamedReplica:
    """A replica to start.

    Attributes:
        identity: What it is interchangeable with.
        name: Of its StatefulSet.
    """

    identity: ReplicaIdentity
    name: str


def observed_replicas(world: World, *, settled: bool) -> list[ObservedReplica]:
    """Every replica that exists: one for each StatefulSet, and one for the pods of each deleted StatefulSet.

    Args:
        world: The cascade as it is.
        settled: Whether the plan to go for answers the manifest as it stands. If not, no replica counts as
            outdated: the engines of the plan before stay as they are until there is a new plan.
    """
    pods: dict[str, list[Object]] = defaultdict(list)
    for pod in world.pods:
        pods[label_of(pod, REPLICA_LABEL)].append(pod)
    routed = _routed(world.policy)
    found: list[ObservedReplica] = []
    for statefulset in world.statefulsets:
        name = statefulset["metadata"]["name"]
        outdated = settled and current_identity(world.cascade, statefulset) is None
        its_pods = pods.pop(name, [])
        state = _state(statefulset, its_pods)
        found.append(_observed(statefulset, name, its_pods, state, name in routed, outdated=outdated))
    for name, its_pods in pods.items():
        if name:
            found.append(_observed(its_pods[0], name, its_pods, ReplicaState.Draining, name in routed, outdated=False))
    return found


def _observed(
    labelled: Object, name: str, pods: Sequence[Object], state: ReplicaState, routed: bool, *, outdated: bool
) -> ObservedReplica:
    nodes = sorted({node for pod in pods if (node := (pod.get("spec") or {}).get("nodeName"))})
    return (OutdatedReplica if outdated else ObservedReplica)(
        name=name,
        stage=label_of(labelled, STAGE_LABEL),
        pool=label_of(labelled, POOL_LABEL),
        tensor_parallel=_degree(labelled, TENSOR_PARALLEL_LABEL),
        pipeline_parallel=_degree(labelled, PIPELINE_PARALLEL_LABEL),
        state=state,
        node_group="+".join(nodes) or None,
        routed=routed,
    )


def _state(statefulset: Object, pods: Iterable[Object]) -> ReplicaState:
    if statefulset["metadata"].get("deletionTimestamp"):
        return ReplicaState.Draining
    ready = sum(pod_ready(pod) for pod in pods)
    # A pod that crashed is started again in its place, so no replica is ever given up as failed.
    return ReplicaState.Ready if ready >= statefulset["spec"].get("replicas", 1) else ReplicaState.Starting


def _routed(policy: RouterPolicy | None) -> set[str]:
    return {endpoint.replica for stage in policy.stages for endpoint in stage.endpoints} if policy else set()


def current_identity(cascade: CascadeDeployment, statefulset: Object) -> ReplicaIdentity | None:
    """Identity of a replica, if its engine runs with the settings that the manifest has now; else None."""
    try:
        identity = replica_identity(
            cascade,
            label_of(statefulset, STAGE_LABEL),
            label_of(statefulset, POOL_LABEL),
            _degree(statefulset, TENSOR_PARALLEL_LABEL),
            _degree(statefulset, PIPELINE_PARALLEL_LABEL),
        )
    except (KeyError, ValueError):
        return None
    return identity if identity.revision == label_of(statefulset, REVISION_LABEL) else None


def named_starts(world: World, starts: Iterable[DesiredReplica], taken: Iterable[str]) -> list[NamedReplica]:
    """Give each replica to start the first name that no replica has, one on its way out included.

    Replicas of a stage or pool that the manifest no longer has are left out: the plan that wants them is
    about to be replaced.
    """
    names = set(taken)
    named: list[NamedReplica] = []
    for start in starts:
        try:
            identity = replica_identity(
                world.cascade, start.stage, start.pool, start.tensor_parallel, start.pipeline_parallel
            )
        except (KeyError, ValueError):
            continue
        ordinal = 0
        while (name := statefulset_name(world.cascade.metadata.name, identity, ordinal)) in names:
            ordinal += 1
        names.add(name)
        named.append(NamedReplica(identity, name))
    return named


def ready_leaders(pods: Iterable[Object]) -> list[Object]:
    """Pods of rank 0 that are ready and not going: the routers that serve."""
    return [pod for pod in pods if label_of(pod, POD_INDEX_LABEL) == "0" and pod_ready(pod)]


def pod_ready(pod: Object) -> bool:
    """Whether a pod is ready and not on its way out."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions: Sequence[Mapping[str, str]] = (pod.get("status") or {}).get("conditions") or ()
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def label_of(labelled: Object, name: str) -> str:
    """A label's value; empty where there is none."""
    return str((labelled["metadata"].get("labels") or {}).get(name, ""))


def _degree(labelled: Object, name: str) -> int:
    value = label_of(labelled, name)
    return int(value) if value.isdecimal() else 0
