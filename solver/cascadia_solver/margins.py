"""What a plan's limits cost: what binds it, the plan that came second, and what one more of each would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.errors import InfeasibleError
from cascadia_api.plan import FrontierPoint, Plan
from cascadia_solver.inputs import PlanningInputs

__all__ = ["binding", "neighbours", "quality_prices", "runner_up"]

_POINTS = (-0.02, -0.01, 0.01, 0.02, 0.03)
"""Changes of quality whose price is told."""
_CLOSE = 0.005
"""Smaller changes of a latency or a price are none."""


def binding(plan: Plan, inputs: PlanningInputs) -> list[str]:
    """Name the limits without which the frontier holds a better plan, best gain first."""
    figure, own = _figure(inputs), _own(plan)
    if own is None:
        return []
    floor = float(inputs.cascade.spec.objective.min_quality)
    good = [p for p in plan.frontier if figure(p) < figure(own) * (1 - _CLOSE)]
    said = []
    worse = [p for p in good if _worth(p, plan) < floor and _in_time(p, inputs)]
    if worse:
        best = max(worse, key=lambda p: _worth(p, plan))
        said.append(
            f"The quality floor of {floor:g} binds: a plan of quality {_worth(best, plan):.3f} has {_figures(best)}, "
            f"on {_gpus(sum(best.gpus))}."
        )
    late = [p for p in good if _worth(p, plan) >= floor and not _in_time(p, inputs)]
    if late:
        best = min(late, key=lambda p: p.p95_ms)
        said.append(
            f"The latency target binds: a plan that keeps the floor on {_gpus(sum(best.gpus))} has {_figures(best)}."
        )
    return said


def runner_up(plan: Plan, inputs: PlanningInputs) -> str | None:
    """The best other plan on the frontier within floor and targets, by what is minimised."""
    figure, own = _figure(inputs), _own(plan)
    floor = float(inputs.cascade.spec.objective.min_quality)
    others = [p for p in plan.frontier if not p.chosen and _worth(p, plan) >= floor and _in_time(p, inputs)]
    if not others or own is None:
        return None
    best = min(others, key=lambda p: (figure(p), p.p95_ms))
    names = [stage.name for stage in plan.stages]
    stages = " + ".join(f"{gpus} for {name}" for name, gpus in zip(names, best.gpus, strict=True) if gpus)
    return (
        f"The runner-up has {_figures(best)}, quality {_worth(best, plan):.3f}, on {_gpus(sum(best.gpus))}: {stages}."
    )


def quality_prices(plan: Plan, inputs: PlanningInputs) -> str | None:
    """What each point of quality costs, by the frontier's best plan at each."""
    figure, own = _figure(inputs), _own(plan)
    if own is None:
        return None
    start = max(float(inputs.cascade.spec.objective.min_quality), 0.0)
    money = inputs.cascade.spec.objective.minimize == "Cost"
    prices = []
    for step in _POINTS:
        enough = [p for p in plan.frontier if _worth(p, plan) >= start + step and (not money or _in_time(p, inputs))]
        if not enough:
            within = " within the latency target" if any(_worth(p, plan) >= start + step for p in plan.frontier) else ""
            prices.append(f"{start + step:.2f} cannot be had{within}")
            break
        least = min(figure(p) for p in enough)
        change = least / figure(own) - 1
        same = abs(change) < _CLOSE
        prices.append(f"{start + step:.2f} {_amount(least, plan, money=money)}" + ("" if same else f" ({change:+.0%})"))
    what = "What quality costs" if money else "What quality costs in p95"
    return f"{what}, against {start:g} at {_amount(figure(own), plan, money=money)}: {', '.join(prices)}."


def neighbours(plan: Plan, inputs: PlanningInputs, replan: Callable[[PlanningInputs], Plan]) -> list[str]:
    """What one GPU more and one fewer in each pool in use would do; each takes a planning of its own."""
    said = []
    for pool in inputs.cascade.spec.gpus.pools:
        used = sum(stage.gpus for stage in plan.live_stages if stage.pool == pool.name)
        if not used or (inputs.free_by_node or {}).get(pool.name) is not None:
            continue
        free = min(pool.max_gpus, (inputs.available_gpus or {}).get(pool.name, pool.max_gpus))
        of = f" of pool {pool.name}" if len(inputs.cascade.spec.gpus.pools) > 1 else ""
        if used < free:
            said.append(f"One more GPU{of} is there and would not help: {free - used} are left free.")
        else:
            said.append(f"One GPU more{of}: {_effect(plan, _with_gpus(inputs, pool.name, free + 1), replan)}.")
        said.append(f"One GPU fewer{of}: {_effect(plan, _with_gpus(inputs, pool.name, used - 1), replan)}.")
    return said


def _effect(plan: Plan, inputs: PlanningInputs, replan: Callable[[PlanningInputs], Plan]) -> str:
    try:
        other = replan(inputs)
    except InfeasibleError as error:
        return f"no plan is feasible ({error.reason})"
    ratio = other.latency.p95_ms / plan.latency.p95_ms - 1
    paid = other.cost_per_hour is not None and plan.cost_per_hour is not None
    dearer = (other.cost_per_hour or 0) / (plan.cost_per_hour or 1) - 1 if paid else 0.0
    if abs(ratio) < _CLOSE and abs(dearer) < _CLOSE and other.gpus == plan.gpus:
        return "changes nothing"
    words = f"p95 {other.latency.p95_ms / 1e3:.1f} s ({ratio:+.0%})"
    if paid:
        words += f" for {other.cost_per_hour:.2f} an hour"
    return f"{words} on {_gpus(other.gpus)}"


def _with_gpus(inputs: PlanningInputs, pool: str, gpus: int) -> PlanningInputs:
    spec = inputs.cascade.spec
    pools = [p.model_copy(update={"max_gpus": max(1, gpus)}) if p.name == pool else p for p in spec.gpus.pools]
    changed = spec.model_copy(update={"gpus": spec.gpus.model_copy(update={"pools": pools})})
    cascade: CascadeDeployment = inputs.cascade.model_copy(update={"spec": changed})
    return replace(inputs, cascade=cascade, available_gpus=dict(inputs.available_gpus or {}) | {pool: gpus})


def _figure(inputs: PlanningInputs) -> Callable[[FrontierPoint], float]:
    """What is minimised, of a point of the frontier."""
    if inputs.cascade.spec.objective.minimize == "Cost":
        return lambda p: float(sum(p.gpus)) if p.cost_per_hour is None else p.cost_per_hour
    return lambda p: p.p95_ms


def _amount(value: float, plan: Plan, *, money: bool) -> str:
    if not money:
        return f"{value / 1e3:.1f} s"
    return f"{value:.2f} an hour" if plan.cost_per_hour is not None else _gpus(round(value))


def _own(plan: Plan) -> FrontierPoint | None:
    return next((point for point in plan.frontier if point.chosen), None)


def _worth(point: FrontierPoint, plan: Plan) -> float:
    if plan.quality.lower_bound is None:
        return point.quality_mean
    return 0.0 if point.quality_lower_bound is None else point.quality_lower_bound


def _in_time(point: FrontierPoint, inputs: PlanningInputs) -> bool:
    """Whether a point keeps the end-to-end targets at the percentile that the frontier is of."""
    objective = inputs.cascade.spec.objective
    limits: Sequence[int] = [
        t.milliseconds
        for t in objective.targets or []
        if t.metric == "EndToEnd" and t.percentile == objective.percentile
    ]
    return all(point.p95_ms <= limit for limit in limits)


def _figures(point: FrontierPoint) -> str:
    cost = "" if point.cost_per_hour is None else f" for {point.cost_per_hour:.2f} an hour"
    return f"a p95 of about {point.p95_ms / 1e3:.1f} s{cost}"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
