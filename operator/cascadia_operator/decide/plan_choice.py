"""Which plan to go for, and whether another has to be made.

An ordered list of checks; the first that has an opinion decides. The plan in force is found in the
cluster (status, policy, plans), and the digest on each plan says what it was made from: so an operator
that was just started plans nothing again that was planned before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from cascadia_api.names import REPLAN_ANNOTATION
from cascadia_api.plan import Plan
from cascadia_operator.world import StoredPlan, World

__all__ = ["Choice", "PlanFailure", "Trouble", "choose_plan", "plan_in_force"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why something cannot go on without a change from outside.

    Attributes:
        reason: CamelCase, for the condition.
        message: What is wrong, in numbers where there are any, and what to do.
    """

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class PlanFailure:
    """How planning for the present inputs failed.

    Attributes:
        trouble: What went wrong.
        final: Whether the same inputs will fail again; otherwise planning is tried again later.
    """

    trouble: Trouble
    final: bool


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do about the plan.

    Attributes:
        stored: The plan to go for, or to stay with; None if there is none yet.
        current: Whether that plan answers the manifest as it stands.
        trigger: Why another plan has to be made now; empty if none has to.
        trigger_message: The facts behind the trigger.
        trouble: Why no plan answers the manifest.
        keeping: The plan whose replicas may stay when another is made; None where all is planned anew.
    """

    stored: StoredPlan | None
    current: bool = False
    trigger: str = ""
    trigger_message: str = ""
    trouble: Trouble | None = None
    keeping: Plan | None = None


Check: TypeAlias = Callable[[World, PlanFailure | None], Choice | None]


def plan_in_force(world: World) -> StoredPlan | None:
    """The plan that was last gone for: by the status, else by the routers' policy, else the newest."""
    named = world.plan_named(((world.status.get("plan") or {}).get("name")) or "")
    if named is not None:
        return named
    if world.pinned is not None and world.pinned.name == (world.status.get("plan") or {}).get("name"):
        return world.pinned
    by_policy = [s for s in world.plans if world.policy is not None and s.plan.plan_id == world.policy.plan_id]
    return by_policy[-1] if by_policy else (world.plans[-1] if world.plans else None)


def choose_plan(world: World, failure: PlanFailure | None) -> Choice:
    """Decide which plan to go for.

    Args:
        world: The cascade as it is.
        failure: How planning for the present inputs failed; None if it has not.
    """
    for check in _CHECKS:
        choice = check(world, failure)
        if choice is not None:
            return choice
    raise AssertionError("the last check always decides")


def _secret_missing(world: World, _: PlanFailure | None) -> Choice | None:
    """Pods that mount a Secret wait for it without a word."""
    if not world.missing_secrets:
        return None
    missing = "; ".join(f"{field} names Secret {name}, which is not there" for field, name in world.missing_secrets)
    return Choice(plan_in_force(world), trouble=Trouble("SecretNotFound", f"{missing}: create it"))


def _pinned(world: World, _: PlanFailure | None) -> Choice | None:
    """A pinned plan is applied, and no other."""
    reference = world.cascade.spec.plan_ref
    if reference is None:
        return None
    if world.pinned is None:
        message = f"spec.planRef names CascadePlan {reference.name}, which is not there: create it, or remove planRef"
        return Choice(plan_in_force(world), trouble=Trouble("PlanNotFound", message))
    mismatch = _mismatch(world, world.pinned)
    if mismatch:
        message = f"CascadePlan {reference.name} of spec.planRef does not fit the manifest: {mismatch}"
        return Choice(plan_in_force(world), trouble=Trouble("PlanMismatch", message))
    return Choice(world.pinned, current=True)


def _mismatch(world: World, stored: StoredPlan) -> str:
    spec = world.cascade.spec
    models, stages = [m.name for m in spec.models], [s.name for s in stored.plan.stages]
    if models != stages:
        return f"its stages are {', '.join(stages)}, the models are {', '.join(models)}"
    if stored.plan.scorer != spec.routing.scorer_id:
        return f"its thresholds are for scores of {stored.plan.scorer}, spec.routing.scorer is {spec.routing.scorer_id}"
    unknown = {s.pool for s in stored.plan.live_stages} - {pool.name for pool in spec.gpus.pools}
    return f"it uses pools that spec.gpus.pools lacks: {', '.join(sorted(map(str, unknown)))}" if unknown else ""


def _made_for_these_inputs(world: World, _: PlanFailure | None) -> Choice | None:
    """A plan made from the same inputs is good, also after a restart, also when a change was taken back."""
    matching = [stored for stored in world.plans if stored.inputs == world.inputs]
    if not matching:
        return None
    in_force = plan_in_force(world)
    chosen = in_force if in_force is not None and in_force in matching else matching[-1]
    return Choice(chosen, current=True)


def _held(world: World, _: PlanFailure | None) -> Choice | None:
    """A cascade that is paused or suspended is not planned for."""
    spec = world.cascade.spec
    return Choice(plan_in_force(world)) if spec.paused or spec.suspend else None


def _calibration_missing(world: World, _: PlanFailure | None) -> Choice | None:
    """A manifest that names a calibration set is not planned without it."""
    if not world.calibration.problem:
        return None
    return Choice(plan_in_force(world), trouble=Trouble("CalibrationNotFound", world.calibration.problem))


def _corrections_missing(world: World, _: PlanFailure | None) -> Choice | None:
    """A manifest that names corrections is not planned without them."""
    if not world.corrections.problem:
        return None
    return Choice(plan_in_force(world), trouble=Trouble("CorrectionsNotFound", world.corrections.problem))


def _failed(world: World, failure: PlanFailure | None) -> Choice | None:
    """What failed for these inputs fails again; the plan before stays."""
    return Choice(plan_in_force(world), trouble=failure.trouble) if failure is not None else None


def _needed(world: World, _: PlanFailure | None) -> Choice:
    """No plan was made from these inputs yet."""
    if not world.plans:
        return Choice(None, trigger="Created", trigger_message="the first plan")
    if world.status.get("observedGeneration") == world.generation:
        message = f"the calibration set, the corrections of step times or the annotation {REPLAN_ANNOTATION} changed"
    else:
        message = f"generation {world.generation} of the manifest changes what plans follow from"
    in_force = plan_in_force(world)
    # Only the load, the quality floor or the calibration set is another: thresholds alone may be enough.
    keep = in_force is not None and in_force.placement == world.placement != ""
    return Choice(
        in_force,
        trigger="SpecChanged",
        trigger_message=message,
        keeping=in_force.plan if in_force is not None and keep else None,
    )


_CHECKS: tuple[Check, ...] = (
    _secret_missing,
    _pinned,
    _made_for_these_inputs,
    _held,
    _calibration_missing,
    _corrections_missing,
    _failed,
    _needed,
)
