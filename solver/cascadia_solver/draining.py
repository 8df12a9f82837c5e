"""Which replicas give way, and for what: the choices inside a transition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import Literal, TypeAlias

from cascadia_api.plan import Plan, PlanStage
from cascadia_solver.replicas import DesiredReplica, ObservedReplica, ReplicaState, held_by_group, left_in_group

__all__ = ["Drains", "Room", "Strategy", "highest_strain"]

Strategy: TypeAlias = Literal["InPlace", "MakeBeforeBreak", "Recreate"]

_ASSUMED_LOAD = 0.5
"""Share of a stage's GPUs that its load needs, where the plan does not say."""
_STABLE = 0.85
"""Highest share of what GPUs can carry at which queues stay short."""
_MOST_HARM = 4


class Room:
    """Free GPUs of each pool: now, and once all that is leaving has left."""

    def __init__(
        self, capacity: Mapping[str, int], observed: Iterable[ObservedReplica], leaving: Iterable[ObservedReplica]
    ) -> None:
        self.now = Counter(capacity)
        for replica in observed:
            if replica.state is not ReplicaState.Failed:
                self.now[replica.pool] -= replica.gpus
        self.soon = Counter(self.now)
        for replica in leaving:
            if replica.state is not ReplicaState.Failed:
                self.soon[replica.pool] += replica.gpus
        self.blocked: list[DesiredReplica] = []

    def give(self, ordered: Iterable[DesiredReplica]) -> list[DesiredReplica]:
        """Return those that fit now; the rest waits for what is leaving, or is `blocked`."""
        started: list[DesiredReplica] = []
        for replica in ordered:
            if replica.gpus <= self.now[replica.pool]:
                started.append(replica)
                self.now[replica.pool] -= replica.gpus
                self.soon[replica.pool] -= replica.gpus
            elif replica.gpus <= self.soon[replica.pool]:
                self.soon[replica.pool] -= replica.gpus
                self.now[replica.pool] = min(self.now[replica.pool], self.soon[replica.pool])
            else:
                self.blocked.append(replica)
        return started


class Drains:
    """Chooses which unwanted replicas that still serve are taken out of the policy now."""

    def __init__(
        self,
        candidates: Sequence[ObservedReplica],
        serving: Sequence[ObservedReplica],
        kept: Sequence[ObservedReplica],
        plan: Plan,
    ) -> None:
        stages = {stage.name: stage for stage in plan.live_stages}
        self._load = _load(plan)
        self.chosen: list[ObservedReplica] = []
        self._rest = list(candidates)
        self._stages = stages
        self._last = list(stages)[-1] if stages else None
        self._kept_in_group = held_by_group(kept)
        self._in_group = held_by_group([*kept, *candidates])
        self._ready_gpus = Counter[str]()
        self._ready = Counter[str]()
        for replica in serving:
            self._ready_gpus[replica.stage] += replica.gpus
            self._ready[replica.stage] += 1

    def take(self, replicas: Iterable[ObservedReplica]) -> None:
        """Choose these."""
        for replica in list(replicas):
            self._account(replica, -1)
            self._rest.remove(replica)
            self.chosen.append(replica)

    def make_room(self, blocked: Sequence[DesiredReplica], room: Room, *, strategy: Strategy, in_motion: bool) -> None:
        """Choose what the blocked starts need, doing the least harm.

        In place: whatever leaves each stage what its load needs, at once. Beyond that, and always where
        new replicas come first, nothing more while something is in motion; then what a single start
        needs, at the least level of harm that frees it.
        """
        if strategy == "InPlace":
            for replica in blocked:
                victims = self._victims_for(replica, room, harm=0)
                if victims:
                    in_motion = True
                    self.take(victims)
                    room.soon[replica.pool] += sum(r.gpus for r in victims) - replica.gpus
        if in_motion:
            return
        for harm in range(_MOST_HARM + 1):
            for replica in blocked:
                victims = self._victims_for(replica, room, harm=harm)
                if victims:
                    self.take(victims)
                    return

    def _victims_for(self, replica: DesiredReplica, room: Room, *, harm: int) -> list[ObservedReplica]:
        """Fewest candidates that free what one start needs at no more than this harm; none if they cannot."""
        short = replica.gpus - room.soon[replica.pool]
        pool = [r for r in self._rest if r.pool == replica.pool]
        picked: list[ObservedReplica] = []
        while short > 0:
            allowed = [(self._harm(r), r) for r in pool]
            allowed = [(level, r) for level, r in allowed if level <= harm]
            if not allowed:
                break
            lack = short
            victim = min(allowed, key=lambda pair: (pair[0], *self._preference(pair[1], lack)))[1]
            pool.remove(victim)
            picked.append(victim)
            self._account(victim, -1)
            short -= victim.gpus
        spare = -short
        for victim in list(picked):
            if victim.gpus <= spare:
                picked.remove(victim)
                self._account(victim, +1)
                spare -= victim.gpus
        for victim in picked:
            self._account(victim, +1)
        return picked if short <= 0 else []

    def _harm(self, replica: ObservedReplica) -> int:
        """Harm of losing a replica now.

        0: none. 1: its stage has less than its load needs. 2: its stage goes to zero, and requests to
        the next. 3: the last stage goes to zero, and less good answers are accepted. 4: nobody is left.
        """
        stage = self._stages.get(replica.stage)
        if stage is None:
            return 0
        if self._ready.total() <= 1:
            return _MOST_HARM
        if self._ready[replica.stage] <= 1:
            return 3 if replica.stage == self._last else 2
        return int(self._ready_gpus[replica.stage] - replica.gpus < self._needed(stage))

    def _preference(self, replica: ObservedReplica, short: int) -> tuple[int, int, bool, float, int, str]:
        group = left_in_group(self._in_group, replica) - replica.gpus
        kept = 0 if replica.node_group is None else self._kept_in_group[replica.pool, replica.node_group]
        stage = self._stages.get(replica.stage)
        left = self._ready_gpus[replica.stage] - replica.gpus
        headroom = left / max(self._needed(stage), 1e-9) if stage else float("inf")
        return kept, group, replica.gpus < short, -headroom, replica.gpus, replica.name

    def _needed(self, stage: PlanStage) -> float:
        """GPUs without which the stage's queue would grow."""
        return self._load * stage.gpus

    def _account(self, replica: ObservedReplica, sign: int) -> None:
        self._ready_gpus[replica.stage] += sign * replica.gpus
        self._ready[replica.stage] += sign
        if replica.node_group is not None:
            self._in_group[replica.pool, replica.node_group] += sign * replica.gpus


def highest_strain(plan: Plan, ready_gpus: Mapping[str, int], requests_per_second: float) -> float:
    """GPUs that a plan's stages need at a rate, relative to those that are ready: the worst stage's.

    Above 1 that stage's queue grows; infinite where a live stage has no ready replica.
    """
    load = requests_per_second * _load_per_request(plan)
    return max(
        (
            load * stage.gpus / ready_gpus[stage.name] if ready_gpus.get(stage.name) else inf
            for stage in plan.live_stages
        ),
        default=inf,
    )


def _load(plan: Plan) -> float:
    """Share of each stage's GPUs that a plan's demand needs."""
    return min(1.0, plan.demand.requests_per_second * _load_per_request(plan))


def _load_per_request(plan: Plan) -> float:
    """Share of each stage's GPUs that one request a second needs, from the rate that they would carry.

    The plan's `utilization` does not say: an engine that is never idle may still take many more requests
    into its batch.
    """
    step = next((step for step in plan.ladder if step.thresholds == plan.thresholds), None)
    if step is None or not step.max_requests_per_second > 0:
        return _ASSUMED_LOAD / max(plan.demand.requests_per_second, 1e-9)
    return 1 / (step.max_requests_per_second * _STABLE)
