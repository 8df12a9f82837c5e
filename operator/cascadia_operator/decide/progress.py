"""When a transition last got on, and whether it is stuck."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cascadia_api.names import REPLICA_LABEL
from cascadia_api.plan import Plan
from cascadia_operator.cluster import Object
from cascadia_operator.decide.plan_choice import Trouble
from cascadia_operator.decide.replicas import label_of, pod_ready
from cascadia_operator.manifests.naming import POOL_LABEL
from cascadia_operator.world import StoredPlan, World, instant
from cascadia_solver.transition import Step

__all__ = ["Progress", "progress_of"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a transition that is not done stands.

    Attributes:
        deadline: When it counts as stuck unless something happens before.
        trouble: Why it is stuck; None while there is time.
        shortage: What it lacks to get on, in words, stuck or not; empty if nothing is known to be missing.
    """

    deadline: datetime
    trouble: Trouble | None
    shortage: str


def progress_of(world: World, stored: StoredPlan, step: Step) -> Progress:
    """Judge a transition that is not done.

    The moment of the last progress is read from the cluster: the newest of plan, replicas, ready pods and
    the start of the transition. So it outlives the operator.
    """
    deadline = _last_progress(world, stored) + timedelta(seconds=world.cascade.spec.rollout.progress_deadline_seconds)
    shortage = _shortage(world, stored.plan)
    if world.now < deadline:
        return Progress(deadline, None, shortage)
    if shortage:
        message = f"{shortage}; free or add GPUs, or lower spec.gpus.pools[].maxGpus for a smaller plan"
        return Progress(deadline, Trouble("InsufficientGPUs", message), shortage)
    seconds = world.cascade.spec.rollout.progress_deadline_seconds
    details = "; ".join(part for part in (step.waiting_for, _pod_troubles(world)) if part)
    return Progress(deadline, Trouble("ProgressDeadlineExceeded", f"no progress for {seconds} s: {details}"), "")


def _last_progress(world: World, stored: StoredPlan) -> datetime:
    moments = [stored.created]
    moments += [instant(s["metadata"]["creationTimestamp"]) for s in world.statefulsets]
    moments += [
        instant(condition["lastTransitionTime"])
        for pod in world.pods
        if pod_ready(pod)
        for condition in pod["status"]["conditions"]
        if condition["type"] == "Ready" and condition.get("lastTransitionTime")
    ]
    moments += [
        instant(condition["lastTransitionTime"])
        for condition in world.status.get("conditions") or ()
        if condition["type"] == "Transitioning" and condition["status"] == "True"
    ]
    return max(moments)


def _shortage(world: World, plan: Plan) -> str:
    """GPUs that are missing: of pods that no node has room for, else of the plan against what there is."""
    unschedulable: dict[str, int] = {}
    for pod in world.pods:
        if _unschedulable(pod):
            pool = label_of(pod, POOL_LABEL)
            unschedulable[pool] = unschedulable.get(pool, 0) + _gpus(pod)
    if any(unschedulable.values()):
        return _words(unschedulable, "GPUs of pool {pool} are missing: no node has room for the pods that ask for them")
    needed: dict[str, int] = {}
    for stage in plan.live_stages:
        needed[stage.pool or ""] = needed.get(stage.pool or "", 0) + stage.gpus
    missing = {pool: gpus - world.available.get(pool, 0) for pool, gpus in needed.items()}
    return "; ".join(
        f"{short} GPUs of pool {pool} are missing: the plan needs {needed[pool]}, "
        f"{world.available.get(pool, 0)} are there"
        for pool, short in sorted(missing.items())
        if short > 0
    )


def _words(amounts: Mapping[str, int], text: str) -> str:
    return "; ".join(f"{n} " + text.format(pool=pool) for pool, n in sorted(amounts.items()) if n)


def _unschedulable(pod: Object) -> bool:
    return any(
        c["type"] == "PodScheduled" and c["status"] == "False" and c.get("reason") == "Unschedulable"
        for c in (pod.get("status") or {}).get("conditions") or ()
    )


def _gpus(pod: Object) -> int:
    return sum(
        int(amount)
        for container in pod["spec"].get("containers") or ()
        for name, amount in ((container.get("resources") or {}).get("limits") or {}).items()
        if "/" in name and str(amount).isdecimal()
    )


def _pod_troubles(world: World) -> str:
    """What the kubelet says of containers that do not run, most telling first; at most three."""
    found: list[str] = []
    for pod in world.pods:
        status = pod.get("status") or {}
        for container in [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]:
            waiting = (container.get("state") or {}).get("waiting") or {}
            if waiting.get("reason") in (None, "", "PodInitializing", "ContainerCreating"):
                continue
            last = ((container.get("lastState") or {}).get("terminated") or {}).get("reason")
            ended = f", last ended by {last}" if last else ""
            restarts = container.get("restartCount", 0)
            found.append(
                f"{container['name']} of replica {label_of(pod, REPLICA_LABEL)}: {waiting['reason']} "
                f"({restarts} restarts{ended})"
            )
    return "; ".join(found[:3])
