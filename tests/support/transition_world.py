"""A small world in which transitions are driven, and every rule of theirs has to hold at every step."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from cascadia_api.plan import Plan
from cascadia_solver.transition import (
    DesiredReplica,
    ObservedReplica,
    ReplicaState,
    Step,
    Strategy,
    desired_replicas,
    next_step,
)
from tests.support.plans import example_plan

Group = tuple[int, int, int]
"""Tensor degree, pipeline degree, count."""
STAGES = ("small", "medium", "large")


def plan_of(plan_id: str, *, pools: dict[str, str] | None = None, load: float = 0.5, **groups: list[Group]) -> Plan:
    """A plan with these replica groups for each stage; a stage left out is dropped. Its rate is a share of the most."""
    live = [name for name in STAGES if groups.get(name)]
    stages = []
    for name in STAGES:
        shapes = groups.get(name, [])
        gpus = sum(tp * pp * n for tp, pp, n in shapes)
        stages.append(
            {
                "name": name,
                "threshold": None if not live or name == live[-1] or name not in live else 0.8,
                "reach": 1.0,
                "gpus": gpus,
                "pool": (pools or {}).get(name, "h100") if gpus else None,
                "utilization": 1.0,
                "replicas": [
                    {"tensorParallel": tp, "pipelineParallel": pp, "count": n, "weight": tp * pp / gpus}
                    for tp, pp, n in shapes
                ],
            }
        )
    thresholds = [stage["threshold"] for stage in stages]
    rung = {"thresholds": thresholds, "reach": [], "qualityMean": 0.9, "maxRequestsPerSecond": 10.0 / load}
    return example_plan(planId=plan_id, stages=stages, thresholds=thresholds, ladder=[rung])


A, B = "p-aaaaaaaaaaaa", "p-bbbbbbbbbbbb"


@dataclass
class World:
    """A cluster that does what the steps say, one random event at a time, and checks each of them."""

    capacity: dict[str, int]
    nodes_known: bool = True
    replicas: dict[str, ObservedReplica] = field(default_factory=dict)
    born: int = 0

    def settle(self, plan: Plan) -> None:
        """Have the replicas of a plan, all ready and routed."""
        for desired in desired_replicas(plan):
            self._add(desired, ReplicaState.Ready, routed=True)

    def _add(self, desired: DesiredReplica, state: ReplicaState, *, routed: bool) -> None:
        name = f"{desired.stage}-{self.born}"
        self.replicas[name] = ObservedReplica(
            name,
            desired.stage,
            desired.pool,
            desired.tensor_parallel,
            desired.pipeline_parallel,
            state,
            node_group=f"node-{self.born % 4}" if self.nodes_known else None,
            routed=routed,
        )
        self.born += 1

    def held(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for replica in self.replicas.values():
            if replica.state is not ReplicaState.Failed:
                held[replica.pool] += replica.gpus
        return held

    def ready(self, stage: str) -> int:
        return sum(r.stage == stage and r.routed and r.state is ReplicaState.Ready for r in self.replicas.values())

    def take(self, step: Step) -> None:
        """Do what a step says, refusing what it must not say."""
        assert len(step.weights) == len(step.routed)
        assert all(weight > 0 for weight in step.weights)
        assert len(step.thresholds) == len(step.stages)
        assert not step.thresholds or step.thresholds[-1] is None
        assert not set(step.routed) & (set(step.drain) | set(step.delete))
        for name, replica in self.replicas.items():
            self.replicas[name] = replace(replica, routed=name in step.routed)
            assert name not in step.routed or replica.state is ReplicaState.Ready
        for name in step.delete:
            self.delete(name)
        for desired in step.start:
            self._add(desired, ReplicaState.Starting, routed=False)
        held = self.held()
        assert all(held[pool] <= self.capacity.get(pool, 0) for pool in held), (held, self.capacity)

    def delete(self, name: str) -> None:
        replica = self.replicas[name]
        assert not replica.routed, f"{name} is deleted while routers send to it"
        if replica.state is ReplicaState.Failed:
            del self.replicas[name]
        else:
            self.replicas[name] = replace(replica, state=ReplicaState.Draining)

    def happen(self, chance: random.Random, *, faults: bool = False) -> None:
        """Let something happen: a replica gets ready, one has drained, and perhaps one dies."""
        for name, replica in list(self.replicas.items()):
            if replica.state is ReplicaState.Starting and chance.random() < 0.5:
                self.replicas[name] = replace(replica, state=ReplicaState.Ready)
            elif replica.state is ReplicaState.Draining and chance.random() < 0.5:
                del self.replicas[name]
        if faults and chance.random() < 0.1 and self.replicas:
            name = chance.choice(sorted(self.replicas))
            self.replicas[name] = replace(self.replicas[name], state=ReplicaState.Failed)


def drive(
    world: World,
    plan: Plan,
    current: Plan | None,
    strategy: Strategy,
    *,
    seed: int = 0,
    fault_steps: int = 0,
) -> list[Step]:
    """Run a transition to its end; return its steps."""
    chance = random.Random(seed)
    steps: list[Step] = []
    for turn in range(400):
        step = next_step(
            plan, list(world.replicas.values()), capacity=world.capacity, strategy=strategy, current_plan=current
        )
        assert step.done == (step.waiting_for == "")
        steps.append(step)
        if step.done:
            assert Counter(r.kind for r in world.replicas.values()) == Counter(d.kind for d in desired_replicas(plan))
            assert step.policy_plan_id == plan.plan_id
            assert set(step.routed) == set(world.replicas)
            assert (step.start, step.drain, step.delete) == ((), (), ())
            return steps
        world.take(step)
        world.happen(chance, faults=turn < fault_steps)
    pytest.fail(f"not done after 400 steps; the last waits for: {steps[-1].waiting_for}")
