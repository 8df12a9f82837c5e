"""What binds a plan, what came second, and what its limits cost: in words, from its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from cascadia_api.plan import FrontierPoint, Plan
from cascadia_solver.inputs import PlanningInputs
from cascadia_solver.neighbours import Neighbour, free_gpus

__all__ = ["binding", "quality_prices", "runner_up", "what_gpus_do"]

_CLOSE = 0.005
"""Smaller changes of a latency or a price are none."""


def binding(plan: Plan, inputs: PlanningInputs, around: Sequence[Neighbour]) -> list[str]:
    """Name the limits of which a little less would make a better plan."""
    least = _figure(plan, inputs) * (1 - _CLOSE)
    said: dict[str, str] = {}
    for of in sorted(around, key=lambda of: abs(of.step)):
        if of.plan is not None and not of.stricter and _figure(of.plan, inputs) < least:
            name = of.name[0].upper() + of.name[1:]
            said.setdefault(of.name, f"{name} binds: {of.moved}, {_effect(plan, of.plan, inputs)}.")
    return list(said.values()) or ["No limit binds: none makes a better plan if it is moved a little."]


def what_gpus_do(plan: Plan, inputs: PlanningInputs, around: Sequence[Neighbour]) -> list[str]:
    """What one GPU more and one fewer in each pool in use would do."""
    said = []
    pools = inputs.cascade.spec.gpus.pools
    for pool in pools:
        used = sum(stage.gpus for stage in plan.live_stages if stage.pool == pool.name)
        free = free_gpus(inputs, pool.name, pool.max_gpus)
        mine = [of for of in around if of.limit == "gpus" and of.pool == pool.name]
        if mine and used < free:
            of = f" of pool {pool.name}" if len(pools) > 1 else ""
            said.append(f"One more GPU{of} is there and would not help: {free - used} are left free.")
        for neighbour in mine:
            what = neighbour.refusal if neighbour.plan is None else _effect(plan, neighbour.plan, inputs)
            said.append(f"{neighbour.moved[0].upper()}{neighbour.moved[1:]}: {what}.")
    return said


def runner_up(plan: Plan, inputs: PlanningInputs, around: Sequence[Neighbour]) -> str | None:
    """The best other plan within floor and targets that is known, by what is minimised."""
    own, floor = _figure(plan, inputs), float(inputs.cascade.spec.objective.min_quality)
    found = [(_figure(of.plan, inputs), _own(of.plan), "") for of in around if of.plan is not None and of.stricter]
    if _frontier_tells(inputs):
        found += [
            (_figure_of_point(point, inputs), point, "about ")
            for point in plan.frontier
            if _worth(point, plan) >= floor and _in_time(point, inputs)
        ]
    mine = _own(plan)
    # What is better than the plan in the frontier's small simulation alone was not good enough in the large one.
    others = [of for of in found if of[0] >= own and (of[1].gpus, of[1].thresholds) != (mine.gpus, mine.thresholds)]
    if not others:
        return None
    _, best, about = min(others, key=lambda of: (of[0], of[1].p95_ms))
    names = [stage.name for stage in plan.stages]
    stages = " + ".join(f"{gpus} for {name}" for name, gpus in zip(names, best.gpus, strict=True) if gpus)
    paid = "" if best.cost_per_hour is None else f" for {best.cost_per_hour:.2f} an hour"
    return (
        f"The runner-up has a p95 of {about}{_seconds(best.p95_ms)}{paid}, quality {_worth(best, plan):.3f}, on "
        f"{_count(sum(best.gpus))}: {stages}."
    )


def quality_prices(plan: Plan, inputs: PlanningInputs, around: Sequence[Neighbour]) -> str | None:
    """What each point of quality costs: what is planned at each."""
    own = _figure(plan, inputs)
    objective = inputs.cascade.spec.objective
    floors = [of for of in around if of.limit == "floor" and of.moved.startswith("at ")]
    if not floors:
        return None
    prices = []
    for of in floors:
        floor = of.moved.removeprefix("at ")
        if of.plan is None:
            prices.append(f"{floor} cannot be had" if of.refusal.startswith("no plan") else f"{floor} {of.refusal}")
            continue
        value = _figure(of.plan, inputs)
        prices.append(f"{floor} {_amount(value, plan, inputs)}{_change(value / own - 1)}")
    what = "What quality costs" if objective.minimize == "Cost" else f"What quality costs in p{objective.percentile}"
    now = f"{float(objective.min_quality):g} at {_amount(own, plan, inputs)}"
    return f"{what}, against {now}: {', '.join(prices)}."


def _effect(plan: Plan, other: Plan, inputs: PlanningInputs) -> str:
    """What another plan is like, beside the plan."""
    percentile = inputs.cascade.spec.objective.percentile
    other_ms, own_ms = (getattr(of.latency, f"p{percentile}_ms") for of in (other, plan))
    ratio = other_ms / own_ms - 1
    paid = other.cost_per_hour is not None and plan.cost_per_hour is not None
    dearer = (other.cost_per_hour or 0) / (plan.cost_per_hour or 1) - 1 if paid else 0.0
    if abs(ratio) < _CLOSE and abs(dearer) < _CLOSE and other.gpus == plan.gpus:
        return "changes nothing"
    words = f"p{percentile} {_seconds(other_ms)}{_change(ratio)}"
    if paid:
        words += f" for {other.cost_per_hour:.2f} an hour{_change(dearer)}"
    return f"{words} on {_count(other.gpus)}"


def _change(share: float) -> str:
    return "" if abs(share) < _CLOSE else f" ({share:+.0%})"


def _figure(plan: Plan, inputs: PlanningInputs) -> float:
    """What is minimised: cost per hour (GPUs where there are no prices), or the percentile of latency, ms."""
    objective = inputs.cascade.spec.objective
    if objective.minimize == "Cost":
        return float(plan.gpus) if plan.cost_per_hour is None else plan.cost_per_hour
    return float(getattr(plan.latency, f"p{objective.percentile}_ms"))


def _figure_of_point(point: FrontierPoint, inputs: PlanningInputs) -> float:
    if inputs.cascade.spec.objective.minimize == "Cost":
        return float(sum(point.gpus)) if point.cost_per_hour is None else point.cost_per_hour
    return point.p95_ms


def _amount(value: float, plan: Plan, inputs: PlanningInputs) -> str:
    if inputs.cascade.spec.objective.minimize == "Latency":
        return _seconds(value)
    return f"{value:.2f} an hour" if plan.cost_per_hour is not None else _count(round(value))


def _own(plan: Plan) -> FrontierPoint:
    return next(point for point in plan.frontier if point.chosen)


def _worth(point: FrontierPoint, plan: Plan) -> float:
    if plan.quality.lower_bound is None:
        return point.quality_mean
    return 0.0 if point.quality_lower_bound is None else point.quality_lower_bound


def _frontier_tells(inputs: PlanningInputs) -> bool:
    """Whether the p95 of end-to-end latency, which the frontier's points have, is all that the objective is about."""
    objective = inputs.cascade.spec.objective
    named = [(target.metric, target.percentile) for target in objective.targets or []]
    if objective.minimize == "Latency":
        named.append(("EndToEnd", objective.percentile))
    return all(of == ("EndToEnd", 95) for of in named)


def _in_time(point: FrontierPoint, inputs: PlanningInputs) -> bool:
    return all(point.p95_ms <= target.milliseconds for target in inputs.cascade.spec.objective.targets or [])


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.{1 if milliseconds >= 1e4 else 2}f} s"


def _count(gpus: int) -> str:
    return "1 GPU" if gpus == 1 else f"{gpus} GPUs"
