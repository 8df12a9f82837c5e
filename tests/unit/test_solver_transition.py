"""Transitions: the worked cases."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from cascadia_solver.transition import (
    ObservedReplica,
    ReplicaState,
    next_step,
)
from tests.support.transition_world import A, B, World, drive, plan_of


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


def test_a_small_successor_goes_before_a_large_addition_unless_it_might_take_its_node() -> None:
    """5 GPUs are free. If the second medium takes 4, the only small one has to go before its successor can start."""
    old = plan_of(A, small=[(1, 1, 1)], medium=[(4, 1, 1)], large=[(4, 1, 1)])
    new = plan_of(B, small=[(2, 1, 1)], medium=[(4, 1, 2)], large=[(4, 1, 1)])
    for nodes_known, first in ((False, "small"), (True, "medium")):
        world = World({"h100": 14}, nodes_known=nodes_known)
        world.settle(old)
        steps = drive(world, new, old, "InPlace")
        assert [d.stage for d in steps[0].start] == [first]
        dark = any("no replica serves small" in step.waiting_for for step in steps)
        assert dark == nodes_known


def test_the_demos_move_to_all_gpus_keeps_its_first_stage() -> None:
    """18 GPUs are free for 28: with the large ones first, 2 would be left for a small successor of 4."""
    old = plan_of(A, load=0.8, small=[(2, 1, 1)], medium=[(4, 1, 1)], large=[(8, 1, 1)])
    new = plan_of(B, load=0.8, small=[(4, 1, 1)], medium=[(4, 1, 1), (8, 1, 1)], large=[(8, 1, 2)])
    world = World({"h100": 32}, nodes_known=False)
    world.settle(old)
    steps = drive(world, new, old, "InPlace")
    assert Counter(d.stage for d in steps[0].start) == {"small": 1, "large": 1}
    assert not any("no replica serves" in step.waiting_for for step in steps)


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
