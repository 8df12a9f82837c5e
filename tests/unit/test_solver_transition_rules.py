"""Transitions between any two plans: what holds at every step, and that they end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.plan import Plan
from cascadia_solver.transition import (
    Step,
    Strategy,
    desired_replicas,
    next_step,
)
from tests.support.transition_world import STAGES, A, B, World, drive, plan_of


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


@settings(max_examples=100, deadline=None)
@given(plans(A), plans(B), st.sampled_from(["InPlace", "MakeBeforeBreak"]), st.integers(0, 1000))
def test_no_stage_goes_dark_where_there_is_room_for_successors(
    old: Plan, new: Plan, strategy: Strategy, seed: int
) -> None:
    """Room for one new replica of each stage that keeps none of its own is enough, whatever else is to start."""
    both = {s.name for s in old.live_stages} & {s.name for s in new.live_stages}
    kept = Counter(d.kind for d in desired_replicas(old)) & Counter(d.kind for d in desired_replicas(new))
    room, need = pool_gpus(old), pool_gpus(new)
    for stage in both - {kind[0] for kind in kept}:
        successor = min((d for d in desired_replicas(new) if d.stage == stage), key=lambda d: d.gpus)
        room[successor.pool] += successor.gpus
    world = World(dict(room | need), nodes_known=False)
    world.settle(old)
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
