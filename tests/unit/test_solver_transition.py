"""Transitions: the worked cases, and a simulated world in which every rule has to hold at every step."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    gpus_per_node: int = 8
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
            node_group=f"node-{self.born % 4}",
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


def started(steps: Iterable[Step]) -> Counter[tuple[str, str, int, int]]:
    return Counter(d.kind for step in steps for d in step.start)


shapes = st.sampled_from([(1, 1), (2, 1), (4, 1), (8, 1), (8, 2)])
stage_groups = st.dictionaries(shapes, st.integers(1, 4), max_size=2).map(
    lambda counts: [(tp, pp, n) for (tp, pp), n in sorted(counts.items())]
)


@st.composite
def plans(draw: st.DrawFn, plan_id: str) -> Plan:
    pools = {name: draw(st.sampled_from(["h100", "h100", "a100"])) for name in STAGES}
    groups = {name: draw(stage_groups) for name in STAGES}
    if not any(groups.values()):
        groups["large"] = [(1, 1, 1)]
    return plan_of(plan_id, pools=pools, load=draw(st.sampled_from([0.2, 0.6, 0.95])), **groups)


def pool_gpus(plan: Plan) -> Counter[str]:
    gpus: Counter[str] = Counter()
    for desired in desired_replicas(plan):
        gpus[desired.pool] += desired.gpus
    return gpus


strategies = st.sampled_from(["InPlace", "MakeBeforeBreak", "Recreate"])


@settings(max_examples=120, deadline=None)
@given(plans(A), plans(B), strategies, st.integers(0, 12), st.integers(0, 1000))
def test_every_transition_ends_and_keeps_the_rules(
    old: Plan, new: Plan, strategy: Strategy, spare: int, seed: int
) -> None:
    """Ends in done; capacity, kept replicas and drain-before-delete hold at each step (checked by the world)."""
    need, had = pool_gpus(new), pool_gpus(old)
    world = World({pool: max(need[pool], had[pool]) + spare for pool in ("h100", "a100")})
    world.settle(old)
    before = {name: r.kind for name, r in world.replicas.items()}
    wanted = Counter(d.kind for d in desired_replicas(new))

    steps = drive(world, new, old, strategy, seed=seed)

    survivors = Counter(kind for name, kind in before.items() if name in world.replicas)
    both = Counter(before.values()) & wanted
    assert survivors == both, "what both plans have is untouched"
    assert started(steps) == wanted - both, "and nothing is started that was there"
    if strategy == "Recreate":
        first_start = next((i for i, step in enumerate(steps) if step.start), len(steps))
        assert not any(step.drain or step.delete for step in steps[first_start:])


@settings(max_examples=60, deadline=None)
@given(plans(A), plans(B), st.sampled_from(["InPlace", "MakeBeforeBreak"]), st.integers(0, 1000))
def test_no_stage_goes_dark_where_there_is_room_for_both(old: Plan, new: Plan, strategy: Strategy, seed: int) -> None:
    """With room for both plans at once no stage of both loses its last ready replica, and none drains early."""
    need, had = pool_gpus(new), pool_gpus(old)
    world = World({pool: need[pool] + had[pool] for pool in ("h100", "a100")})
    world.settle(old)
    both = {s.name for s in old.live_stages} & {s.name for s in new.live_stages}
    chance = random.Random(seed)
    for _ in range(400):
        step = next_step(
            new, list(world.replicas.values()), capacity=world.capacity, strategy=strategy, current_plan=old
        )
        if step.done:
            return
        world.take(step)
        assert all(world.ready(stage) for stage in both), step
        world.happen(chance)
    pytest.fail("not done")


@settings(max_examples=40, deadline=None)
@given(plans(A), plans(B), strategies, st.integers(0, 1000))
def test_it_ends_whatever_dies_on_the_way(old: Plan, new: Plan, strategy: Strategy, seed: int) -> None:
    """Replicas that fail, kept or new or leaving, are replaced or let go."""
    need, had = pool_gpus(new), pool_gpus(old)
    world = World({pool: max(need[pool], had[pool]) for pool in ("h100", "a100")})
    world.settle(old)
    drive(world, new, old, strategy, seed=seed, fault_steps=40)


@settings(max_examples=40, deadline=None)
@given(plans(A), plans(B), plans("p-cccccccccccc"), strategies, st.integers(0, 1000), st.integers(1, 8))
def test_a_plan_that_changes_half_way_is_reached_too(
    old: Plan, dropped: Plan, new: Plan, strategy: Strategy, seed: int, turns: int
) -> None:
    """No state is kept: a transition broken off at any point goes on to another plan."""
    top = pool_gpus(old) | pool_gpus(dropped) | pool_gpus(new)
    world = World(dict(top))
    world.settle(old)
    chance = random.Random(seed)
    for _ in range(turns):
        world.take(
            next_step(
                dropped, list(world.replicas.values()), capacity=world.capacity, strategy=strategy, current_plan=old
            )
        )
        world.happen(chance)
    drive(world, new, dropped, strategy, seed=seed)


def test_the_first_roll_out_starts_everything_at_once() -> None:
    plan = plan_of(A, small=[(1, 1, 4)], large=[(8, 1, 2)])
    step = next_step(plan, [], capacity={"h100": 32}, strategy="InPlace", current_plan=None)
    assert Counter(d.kind for d in step.start) == {("small", "h100", 1, 1): 4, ("large", "h100", 8, 1): 2}
    assert not step.done
    assert step.stages == ("small", "large")
    assert step.thresholds == (0.8, None)
    assert step.routed == ()
    assert "2 large (TP8 PP1), 4 small (TP1 PP1)" in step.waiting_for


def test_new_thresholds_are_in_force_from_the_first_step() -> None:
    old, new = plan_of(A, small=[(1, 1, 4)], large=[(4, 1, 1)]), plan_of(B, small=[(1, 1, 2)], large=[(4, 1, 1)])
    world = World({"h100": 8})
    world.settle(old)
    step = next_step(new, list(world.replicas.values()), capacity={"h100": 8}, strategy="InPlace", current_plan=old)
    assert step.policy_plan_id == B


def test_old_thresholds_stay_until_a_new_stage_can_answer() -> None:
    old = plan_of(A, small=[(1, 1, 4)], large=[(8, 1, 3)])
    new = plan_of(B, small=[(1, 1, 4)], medium=[(4, 1, 2)], large=[(8, 1, 2)])
    world = World({"h100": 28})
    world.settle(old)
    steps = drive(world, new, old, "InPlace")
    switch = next(i for i, step in enumerate(steps) if step.policy_plan_id == B)
    assert switch > 0
    assert all("medium" not in step.stages for step in steps[:switch])
    assert steps[switch].routed[4].startswith("medium")


def ready(name: str, stage: str, tensor_parallel: int, *, routed: bool = True) -> ObservedReplica:
    return ObservedReplica(name, stage, "h100", tensor_parallel, 1, ReplicaState.Ready, None, routed)


def test_thresholds_that_ask_more_than_is_ready_wait_for_the_new_replicas() -> None:
    old = plan_of(A, load=0.8, small=[(1, 1, 1)], medium=[(8, 1, 1)], large=[(8, 1, 1)])
    new = plan_of(B, load=0.8, medium=[(8, 1, 2)], large=[(8, 1, 1)])
    running = [ready("small-0", "small", 1), ready("medium-1", "medium", 8), ready("large-2", "large", 8)]
    first = next_step(new, running, capacity={"h100": 32}, strategy="InPlace", current_plan=old)
    assert (first.policy_plan_id, first.stages) == (A, ("small", "medium", "large"))
    assert [r.stage for r in first.start] == ["medium"]
    assert first.drain == ()
    loaded = [*running, ready("medium-3", "medium", 8, routed=False)]
    then = next_step(new, loaded, capacity={"h100": 32}, strategy="InPlace", current_plan=old)
    assert (then.policy_plan_id, then.stages, then.drain) == (B, ("medium", "large"), ("small-0",))


def test_thresholds_that_relieve_move_at_once_though_more_is_to_come() -> None:
    old = plan_of(A, load=0.8, medium=[(8, 1, 1)], large=[(8, 1, 1)])
    new = plan_of(B, load=0.4, medium=[(8, 1, 1)], large=[(8, 1, 2)])
    running = [ready("medium-1", "medium", 8), ready("large-2", "large", 8)]
    step = next_step(new, running, capacity={"h100": 32}, strategy="InPlace", current_plan=old)
    assert step.policy_plan_id == B
    assert [r.stage for r in step.start] == ["large"]


def test_a_dropped_stage_leaves_the_policy_first_and_frees_its_gpus_later() -> None:
    old = plan_of(A, small=[(1, 1, 4)], medium=[(4, 1, 1)], large=[(8, 1, 1)])
    new = plan_of(B, load=0.4, small=[(1, 1, 8)], large=[(8, 1, 1)])
    world = World({"h100": 16})
    world.settle(old)
    step = next_step(new, list(world.replicas.values()), capacity={"h100": 16}, strategy="InPlace", current_plan=old)
    assert step.stages == ("small", "large")
    assert step.drain == ("medium-4",)
    assert step.delete == ()
    assert step.start == ()
    assert "routers to stop sending to medium-4" in step.waiting_for


def test_in_place_frees_no_more_than_the_load_can_spare() -> None:
    """Eight TP1 become four TP2 on a full pool at half the load that they would carry: that needs 4.7."""
    old, new = plan_of(A, small=[(1, 1, 8)], large=[(8, 1, 1)]), plan_of(B, small=[(2, 1, 4)], large=[(8, 1, 1)])
    world = World({"h100": 16})
    world.settle(old)
    least = 8
    chance = random.Random(1)
    for _ in range(200):
        step = next_step(
            new, list(world.replicas.values()), capacity={"h100": 16}, strategy="InPlace", current_plan=old
        )
        if step.done:
            break
        world.take(step)
        gpus = sum(r.gpus for r in world.replicas.values() if r.stage == "small" and r.routed)
        least = min(least, gpus)
        world.happen(chance)
    assert step.done
    assert least == 6, "two give way to the first TP2; two more would leave 4 where the load needs 4.7"


def test_the_last_stage_goes_dark_last_and_it_is_said() -> None:
    """Every GPU of the only large replica is needed for its successor, and no other can be freed."""
    old, new = plan_of(A, small=[(1, 1, 1)], large=[(4, 1, 1)]), plan_of(B, small=[(1, 1, 1)], large=[(2, 2, 1)])
    world = World({"h100": 5})
    world.settle(old)
    step = next_step(new, list(world.replicas.values()), capacity={"h100": 5}, strategy="InPlace", current_plan=old)
    assert step.drain == ("large-1",)
    assert "no replica serves large meanwhile" in step.waiting_for
    drive(world, new, old, "InPlace")


def test_a_first_stage_gives_way_before_the_last() -> None:
    """Both stages change shape on a full pool: the later stage can answer for the first, not the reverse."""
    old, new = plan_of(A, small=[(4, 1, 1)], large=[(4, 1, 1)]), plan_of(B, small=[(2, 2, 1)], large=[(2, 2, 1)])
    world = World({"h100": 8})
    world.settle(old)
    step = next_step(new, list(world.replicas.values()), capacity={"h100": 8}, strategy="InPlace", current_plan=old)
    assert step.drain == ("small-0",)


def test_make_before_break_waits_for_what_starts() -> None:
    old, new = plan_of(A, large=[(4, 1, 4)]), plan_of(B, large=[(8, 1, 2)])
    world = World({"h100": 24})
    world.settle(old)
    first = next_step(
        new, list(world.replicas.values()), capacity={"h100": 24}, strategy="MakeBeforeBreak", current_plan=old
    )
    assert len(first.start) == 1
    assert first.drain == ()
    world.take(first)
    second = next_step(
        new, list(world.replicas.values()), capacity={"h100": 24}, strategy="MakeBeforeBreak", current_plan=old
    )
    assert second.start == ()
    assert second.drain == ()


def _large(name: str, node: str | None, tp: int = 4) -> ObservedReplica:
    return ObservedReplica(name, "large", "h100", tp, 1, ReplicaState.Ready, node_group=node, routed=True)


def test_victims_are_chosen_so_that_a_node_becomes_empty() -> None:
    """Two of four TP4 go for a TP8: both from the same node, whichever names they have."""
    observed = [_large("a", "node-1"), _large("b", "node-2"), _large("c", "node-1"), _large("d", "node-2")]
    new = plan_of(B, large=[(4, 1, 2), (8, 1, 1)])
    step = next_step(
        new, observed, capacity={"h100": 16}, strategy="InPlace", current_plan=plan_of(A, large=[(4, 1, 4)])
    )
    assert step.drain == ("a", "c")


def test_a_node_that_stays_in_use_is_not_broken_into() -> None:
    """Of the surplus, the replica beside one that stays is spared for the one that is alone."""
    other = ObservedReplica("m", "medium", "h100", 4, 1, ReplicaState.Ready, node_group="node-1", routed=True)
    observed = [_large("a", "node-1"), _large("b", "node-2"), other]
    new = plan_of(B, medium=[(4, 1, 1)], large=[(4, 1, 1)])
    step = next_step(new, observed, capacity={"h100": 16}, strategy="MakeBeforeBreak", current_plan=None)
    assert step.drain == ("b",)


def test_weights_are_the_plans_and_old_shapes_keep_their_worth() -> None:
    old, new = plan_of(A, large=[(4, 1, 2)]), plan_of(B, large=[(8, 1, 1), (4, 1, 2)])
    observed = [_large("a", None), _large("b", None), _large("c", None, tp=8)]
    step = next_step(new, observed, capacity={"h100": 16}, strategy="InPlace", current_plan=old)
    assert dict(zip(step.routed, step.weights, strict=True)) == pytest.approx({"a": 0.25, "b": 0.25, "c": 0.5})
    new = plan_of(B, large=[(8, 1, 2)])
    step = next_step(new, observed, capacity={"h100": 24}, strategy="MakeBeforeBreak", current_plan=old)
    weights = dict(zip(step.routed, step.weights, strict=True))
    assert weights["b"] / weights["c"] == pytest.approx(0.5)


def test_too_few_gpus_are_numbered() -> None:
    step = next_step(plan_of(A, large=[(8, 1, 1)]), [], capacity={"h100": 6}, strategy="InPlace", current_plan=None)
    assert step.start == ()
    assert step.waiting_for.startswith("2 more GPUs of pool h100: the next replica needs 8, 6 are free")


def test_a_plan_without_live_stages_lets_everything_go() -> None:
    """How a suspended cascade releases its GPUs."""
    old = plan_of(A, large=[(4, 1, 2)])
    world = World({"h100": 8})
    world.settle(old)
    steps = drive(world, plan_of(B), old, "InPlace")
    assert steps[0].drain == ("large-0", "large-1")
    assert not world.replicas
