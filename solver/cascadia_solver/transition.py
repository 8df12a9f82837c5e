"""The ordered steps from what runs to a plan, one at a time.

`next_step` is level-triggered: it is called again and again with the replicas that exist now and says
what may be done now. It keeps no state, so a caller that was killed half way continues where the world
stands. The caller takes a step in this order: write the policy (`Step.stages`, `Step.thresholds`,
`Step.routed`), wait until every ready router has taken it, then start and delete, then look again.

What holds at every step:

* A replica whose stage, pool and shape the plan wants is left alone.
* The GPUs of a pool that are held or being given are never more than its capacity.
* A replica leaves the policy first (`Step.drain`) and is deleted (`Step.delete`) only once no router
  lists it any more. Deleting lets the requests it still holds finish.
* Thresholds move first: the new plan's are in force from the first step, unless they ask a stage for
  more than its ready replicas carry while the old ones do not, or need a stage that nobody serves yet;
  then the old ones stay until enough of the new replicas are ready.
* A stage is not taken below what its load needs while GPUs can be freed elsewhere; then not to zero
  while anything is still starting or leaving; and the last stage goes to zero last of all.
* Free GPUs go to the successor of a stage's last replicas before they go to more replicas of another.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from math import isfinite

from cascadia_api.plan import Plan, PlanStage
from cascadia_solver.draining import Drains, Room, Strategy, highest_strain
from cascadia_solver.replicas import (
    DesiredReplica,
    Kind,
    ObservedReplica,
    ReplicaState,
    held_by_group,
    left_in_group,
)

__all__ = ["DesiredReplica", "ObservedReplica", "ReplicaState", "Step", "Strategy", "desired_replicas", "next_step"]


@dataclass(frozen=True, slots=True)
class Step:
    """What may be done now.

    Attributes:
        start: Replicas to start now; they fit beside all that still holds GPUs.
        routed: Names of the replicas that the policy has to list now.
        weights: Their weights, in the same order: relative to the others of the same stage.
        drain: Names to take out of the policy (they are not in `routed`) because they have to go.
        delete: Names that no router lists any more and that have to go: drain and delete them.
        stages: Stages of the policy, in order, those without a ready replica included.
        thresholds: Threshold of each of `stages`; None accepts every answer.
        policy_plan_id: The plan whose stages and thresholds these are.
        done: The plan is in force: its replicas, and no others, are ready and routed.
        waiting_for: What the transition waits for, in words; empty when done.
    """

    start: tuple[DesiredReplica, ...]
    routed: tuple[str, ...]
    weights: tuple[float, ...]
    drain: tuple[str, ...]
    delete: tuple[str, ...]
    stages: tuple[str, ...]
    thresholds: tuple[float | None, ...]
    policy_plan_id: str
    done: bool
    waiting_for: str


def desired_replicas(plan: Plan) -> list[DesiredReplica]:
    """Return one entry for each replica of a plan, in the order of its stages."""
    return [
        DesiredReplica(stage.name, stage.pool or "", group.tensor_parallel, group.pipeline_parallel, group.weight)
        for stage in plan.live_stages
        for group in stage.replicas
        for _ in range(group.count)
    ]


def next_step(
    plan: Plan,
    observed: Sequence[ObservedReplica],
    *,
    capacity: Mapping[str, int],
    strategy: Strategy,
    current_plan: Plan | None = None,
) -> Step:
    """Say what may be done now on the way to a plan.

    Args:
        plan: Where to go.
        observed: Every replica that exists, whatever its state.
        capacity: GPUs of each pool that the cascade may hold.
        strategy: ``InPlace`` frees what the next starts need as long as each stage keeps what its load
            needs. ``MakeBeforeBreak`` frees nothing while something is starting or leaving.
            ``Recreate`` lets all go that has to go, then starts.
        current_plan: The plan in force before; None at the first roll-out.
    """
    kept, unwanted, missing = _match(desired_replicas(plan), observed)
    leaving = [r for r in unwanted if not (r.state is ReplicaState.Ready and r.routed)]
    candidates = [r for r in unwanted if r.state is ReplicaState.Ready and r.routed]
    serving = [r for r in kept if r.state is ReplicaState.Ready] + candidates
    starting = [r for r in kept if r.state is ReplicaState.Starting]
    policy_plan = plan
    if current_plan is not None and current_plan.plan_id != plan.plan_id:
        policy_plan = _policy_plan(plan, current_plan, serving, to_come=bool(missing or starting))
    stages = {stage.name: stage for stage in policy_plan.live_stages}

    room = Room(capacity, observed, leaving)
    served_before = {stage.name for stage in (current_plan or plan).live_stages}
    ordered = _starts_in_order(missing, plan, served_before, kept, candidates)
    start: list[DesiredReplica] = []
    if strategy != "Recreate" or not unwanted:
        start = room.give(ordered)
    blocked = room.blocked

    drains = Drains(candidates, serving, kept, policy_plan)
    if strategy == "Recreate" or not (missing or starting):
        drains.take(candidates)
    else:
        drains.take(r for r in candidates if r.stage not in stages)
        in_motion = bool(starting or start or leaving or drains.chosen)
        drains.make_room(blocked, room, strategy=strategy, in_motion=in_motion)

    gone = {r.name for r in drains.chosen}
    routed = [r for r in serving if r.name not in gone and r.stage in stages]
    routed.sort(key=lambda r: (list(stages).index(r.stage), r.name))
    done = not (missing or unwanted or starting) and all(r.routed for r in kept)
    return Step(
        start=tuple(start),
        routed=tuple(r.name for r in routed),
        weights=tuple(_weight(r, plan, current_plan) for r in routed),
        drain=tuple(sorted(gone | {r.name for r in leaving if r.routed})),
        delete=tuple(sorted(r.name for r in leaving if not r.routed)),
        stages=tuple(stages),
        thresholds=tuple(stage.threshold for stage in stages.values()),
        policy_plan_id=policy_plan.plan_id,
        done=done,
        waiting_for="" if done else _words(kept, start, leaving, drains.chosen, blocked, room, stages, routed),
    )


def _match(
    desired: Sequence[DesiredReplica], observed: Sequence[ObservedReplica]
) -> tuple[list[ObservedReplica], list[ObservedReplica], list[DesiredReplica]]:
    """Split what exists into what stays and what has to go; return with it what is missing.

    Where there are more of a kind than wanted, those go first that serve nobody, then those whose
    going empties their node group.
    """
    wanted = Counter(d.kind for d in desired)
    usable = [r for r in observed if r.state in (ReplicaState.Starting, ReplicaState.Ready)]
    unwanted = [r for r in observed if r not in usable]
    staying = {r.name: r for r in usable}
    by_kind: dict[Kind, list[ObservedReplica]] = defaultdict(list)
    for replica in usable:
        by_kind[replica.kind].append(replica)
        if replica.kind not in wanted:
            del staying[replica.name]
            unwanted.append(replica)
    held = held_by_group(staying.values())
    for kind, replicas in by_kind.items():
        surplus = len(replicas) - wanted[kind] if kind in wanted else 0
        rest = list(replicas)
        for _ in range(surplus):
            victim = min(
                rest, key=lambda r: (r.state is ReplicaState.Ready, r.routed, left_in_group(held, r) - r.gpus, r.name)
            )
            rest.remove(victim)
            del staying[victim.name]
            unwanted.append(victim)
            if victim.node_group is not None:
                held[victim.pool, victim.node_group] -= victim.gpus
    have = Counter(r.kind for r in staying.values())
    missing: list[DesiredReplica] = []
    for replica_wanted in desired:
        if have[replica_wanted.kind]:
            have[replica_wanted.kind] -= 1
        else:
            missing.append(replica_wanted)
    return list(staying.values()), unwanted, missing


def _policy_plan(plan: Plan, current: Plan, serving: Sequence[ObservedReplica], *, to_come: bool) -> Plan:
    """The plan whose thresholds are in force: the new one, unless what serves now bears the old one better.

    Thresholds that ask less of the stages that serve are a relief at once; thresholds that send a stage
    more than its ready replicas carry wait for the replicas that the new plan gives it.
    """
    served = {replica.stage for replica in serving}
    before = {stage.name for stage in current.live_stages}
    known = {stage.name for stage in plan.stages}
    if not before <= known or not before & served:
        return plan
    if not {stage.name for stage in plan.live_stages} - before <= served:
        return current
    ready = Counter[str]()
    for replica in serving:
        ready[replica.stage] += replica.gpus
    rate = plan.demand.requests_per_second
    strain = highest_strain(plan, ready, rate)
    bearable = max(1.0, highest_strain(current, ready, rate))
    return current if to_come and isfinite(strain) and strain > bearable else plan


def _starts_in_order(
    missing: Sequence[DesiredReplica],
    plan: Plan,
    served_before: Set[str],
    kept: Sequence[ObservedReplica],
    candidates: Sequence[ObservedReplica],
) -> list[DesiredReplica]:
    """Missing replicas, most urgent first, then large ones, then later stages.

    One replica of a stage that has lost all it had; then a successor for each stage that only replicas serve which
    have to go, the smallest: once it is ready they go without the stage going dark; then one of each new stage. Where
    nodes are known no successor goes before a larger replica, though: it might take the node that only that one fits.
    """
    place = {stage.name: index for index, stage in enumerate(plan.stages)}
    staying, going = {r.stage for r in kept}, {r.stage for r in candidates}
    by_stage: dict[str, list[int]] = defaultdict(list)
    for index, replica in enumerate(missing):
        by_stage[replica.stage].append(index)
    urgency: dict[int, int] = {}
    for stage, mine in by_stage.items():
        if stage not in staying | going:
            urgency[mine[0]] = 0 if stage in served_before else 2
        elif stage not in staying:
            smallest = min(mine, key=lambda i: missing[i].gpus)
            if not any(r.node_group and r.pool == missing[smallest].pool for r in [*kept, *candidates]):
                urgency[smallest] = 1
    order = sorted(
        range(len(missing)), key=lambda i: (urgency.get(i, 3), -missing[i].gpus, -place[missing[i].stage], i)
    )
    return [missing[i] for i in order]


def _weight(replica: ObservedReplica, plan: Plan, current: Plan | None) -> float:
    """The plan's weight of a replica; an old one's in the same unit (share of load per GPU of its stage)."""
    new = _stage_of(plan, replica.stage)
    old = _stage_of(current, replica.stage) if current else None
    for stage in (new, old):
        if stage is None or not stage.gpus:
            continue
        for group in stage.replicas:
            if (group.tensor_parallel, group.pipeline_parallel) == (
                replica.tensor_parallel,
                replica.pipeline_parallel,
            ) and group.weight > 0:
                return group.weight * stage.gpus / (new.gpus if new and new.gpus else stage.gpus)
    base = new if new and new.gpus else old
    return replica.gpus / (base.gpus if base and base.gpus else replica.gpus)


def _stage_of(plan: Plan, name: str) -> PlanStage | None:
    return next((stage for stage in plan.stages if stage.name == name), None)


def _words(
    kept: Sequence[ObservedReplica],
    start: Sequence[DesiredReplica],
    leaving: Sequence[ObservedReplica],
    drained: Sequence[ObservedReplica],
    blocked: Sequence[DesiredReplica],
    room: Room,
    stages: Mapping[str, PlanStage],
    routed: Sequence[ObservedReplica],
) -> str:
    parts: list[str] = []
    loading = Counter(r.kind for r in kept if r.state is ReplicaState.Starting)
    loading.update(r.kind for r in start)
    if loading:
        named = ", ".join(f"{n} {stage} (TP{tp} PP{pp})" for (stage, _, tp, pp), n in sorted(loading.items()))
        parts.append(f"replicas to become ready: {named}")
    if unlisted := [r.name for r in kept if r.state is ReplicaState.Ready and not r.routed]:
        parts.append(f"routers to list {', '.join(sorted(unlisted))}")
    if names := sorted({r.name for r in [*drained, *(r for r in leaving if r.routed)]}):
        parts.append(f"routers to stop sending to {', '.join(names)}")
    if names := sorted(r.name for r in leaving if not r.routed):
        parts.append(f"replicas to finish their requests and go: {', '.join(names)}")
    if blocked and not (loading or leaving or drained):
        for pool in sorted({r.pool for r in blocked}):
            least = min(r.gpus for r in blocked if r.pool == pool)
            parts.append(
                f"{least - room.soon[pool]} more GPUs of pool {pool}: the next replica needs {least}, "
                f"{max(room.soon[pool], 0)} are free and no replica can give way"
            )
    manned = {r.stage for r in routed}
    empty = [name for name in stages if name not in manned]
    if manned and empty:
        last = list(stages)[-1]
        parts.append(
            f"no replica serves {', '.join(empty)} meanwhile: "
            + (
                f"answers that should go on to {last} are accepted"
                if last in empty
                else "requests go to the next stage"
            )
        )
    return "; ".join(parts)
