"""The next step of a cascade: towards its plan, or towards holding no GPU at all."""

from __future__ import annotations

from collections.abc import Sequence

from cascadia_api.plan import Plan
from cascadia_operator.decide.plan_choice import Choice
from cascadia_operator.decide.replicas import observed_replicas
from cascadia_operator.world import World
from cascadia_solver.transition import ObservedReplica, ReplicaState, Step, next_step

__all__ = ["step_towards", "suspension_step"]


def step_towards(world: World, choice: Choice) -> tuple[Step | None, list[ObservedReplica], Plan | None]:
    """Say what may be done now.

    Returns:
        The step (None without a plan), the replicas that it was decided on, and the plan whose thresholds
        the step puts in force.
    """
    observed = observed_replicas(world, settled=choice.current)
    if choice.stored is None:
        return None, observed, None
    plan = choice.stored.plan
    if world.cascade.spec.suspend:
        return suspension_step(plan, observed), observed, plan
    before = _plan_of_the_policy(world)
    step = next_step(
        plan,
        observed,
        capacity=world.available,
        strategy=world.cascade.spec.rollout.strategy,
        current_plan=before,
    )
    in_force = before if before is not None and step.policy_plan_id == before.plan_id else plan
    return step, observed, in_force


def _plan_of_the_policy(world: World) -> Plan | None:
    """The plan that the routers enforce now."""
    if world.policy is None:
        return None
    candidates = [*world.plans, *([world.pinned] if world.pinned else [])]
    return next((s.plan for s in reversed(candidates) if s.plan.plan_id == world.policy.plan_id), None)


def suspension_step(plan: Plan, observed: Sequence[ObservedReplica]) -> Step:
    """Let every replica go: out of the policy first, then deleted, which lets it finish its requests."""
    leaving = [r for r in observed if not r.routed and r.state is not ReplicaState.Draining]
    stages = plan.live_stages
    return Step(
        start=(),
        routed=(),
        weights=(),
        drain=tuple(sorted(r.name for r in observed if r.routed)),
        delete=tuple(sorted(r.name for r in leaving)),
        stages=tuple(stage.name for stage in stages),
        thresholds=tuple(stage.threshold for stage in stages),
        policy_plan_id=plan.plan_id,
        done=not observed,
        waiting_for=f"{len(observed)} replicas to finish their requests and go" if observed else "",
    )
