"""Why this plan, in words and numbers."""

from __future__ import annotations

from collections.abc import Callable

from cascadia_api.plan import Plan, PlanStage
from cascadia_solver.inputs import PlanningInputs
from cascadia_solver.margins import binding, quality_prices, runner_up, what_gpus_do
from cascadia_solver.neighbours import neighbours
from cascadia_solver.planner import plan_cascade
from cascadia_solver.sites import pool_budgets

__all__ = ["explain"]

_BUSY = 1.25


def explain(plan: Plan, inputs: PlanningInputs, progress: Callable[[str, float], None] | None = None) -> list[str]:
    """Say what binds the plan, what each stage does, what came second, and what each limit costs.

    What other limits would give is planned, some ten times: each takes about as long as the plan did.

    Args:
        plan: The plan.
        inputs: What it was made from.
        progress: Told what is being planned and the share that is done, 0 to 1.

    Returns:
        Sentences, most important first.
    """
    objective = inputs.cascade.spec.objective
    said = [_summary(plan, objective.minimize, objective.percentile), _quality(plan, float(objective.min_quality))]
    said += [_stage(stage, plan) for stage in plan.live_stages]
    said += [
        f"{stage.name} has no stage: the cascade does better without it." for stage in plan.stages if not stage.gpus
    ]
    around = neighbours(plan, inputs, plan_cascade, progress)
    said += [*binding(plan, inputs, around), _capacity(plan, inputs)]
    said += [said for said in (runner_up(plan, inputs, around), quality_prices(plan, inputs, around)) if said]
    said += what_gpus_do(plan, inputs, around)
    said += [f"Not {other.name}: {other.reason}." for other in plan.alternatives]
    said.append(_trust(plan))
    return said


def _summary(plan: Plan, minimize: str, percentile: int) -> str:
    path = " -> ".join(stage.name for stage in plan.live_stages)
    cost = "" if plan.cost_per_hour is None else f" for {plan.cost_per_hour:.2f} an hour"
    target = "the lowest cost" if minimize == "Cost" else f"the lowest p{percentile}"
    return (
        f"{path} on {_gpus(plan.gpus)}{cost} has {target} found at {plan.demand.requests_per_second:.3g} requests/s: "
        f"p50 {plan.latency.p50_ms / 1e3:.1f} s, p95 {plan.latency.p95_ms / 1e3:.1f} s."
    )


def _trust(plan: Plan) -> str:
    latency = plan.latency
    sure = "" if latency.uncertainty_percent is None else f", off by {latency.uncertainty_percent:.0f} % in the median"
    beyond = f" Extrapolated: {'; '.join(latency.extrapolates)}." if latency.extrapolates else ""
    return f"Latencies are of an {latency.source}{sure}.{beyond}"


def _quality(plan: Plan, floor: float) -> str:
    quality = plan.quality
    if quality.lower_bound is None:
        return f"Quality is {quality.mean:.3f} by a published prior, against a floor of {floor:g}; nothing bounds it."
    sure = f"{100 * (quality.confidence or 0):.9g}%"
    return (
        f"Mean quality is {quality.mean:.3f} on {quality.requests} calibration requests; with {sure} "
        f"confidence it is at least {quality.lower_bound:.3f}, against a floor of {floor:g}."
    )


def _stage(stage: PlanStage, plan: Plan) -> str:
    shapes = " + ".join(
        f"{group.count} x TP{group.tensor_parallel}"
        + (f" PP{group.pipeline_parallel}" if group.pipeline_parallel > 1 else "")
        for group in stage.replicas
    )
    answers = (
        "and answers all of them"
        if stage is plan.live_stages[-1] or stage.threshold is None
        else (f"and answers those that score at least {stage.threshold:.3g}")
    )
    slow = "" if stage.p95_ms is None else f", p95 {stage.p95_ms / 1e3:.1f} s there"
    past = "" if stage.skipped <= 0 else f" ({stage.skipped:.0%} pass it by, which it cannot take)"
    return (
        f"{stage.name} sees {stage.reach:.0%} of the requests{past} {answers}: {_gpus(stage.gpus)} as {shapes}{slow}."
    )


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _capacity(plan: Plan, inputs: PlanningInputs) -> str:
    spec = inputs.cascade.spec
    budget = sum(pool.gpus for pool in pool_budgets(spec, inputs.available_gpus, inputs.free_by_node))
    own = next((step for step in plan.ladder if step.thresholds == plan.thresholds), None)
    rate = plan.demand.requests_per_second
    if own is not None and own.max_requests_per_second < _BUSY * rate:
        return (
            f"Little capacity is left: these replicas carry {own.max_requests_per_second:.3g} requests/s at these "
            f"thresholds, against {rate:.3g}."
        )
    if plan.gpus < budget:
        gain = "cost more" if spec.objective.minimize == "Cost" else "make it less than 1 % faster"
        return f"{budget - plan.gpus} of {budget} GPUs are left free: they would {gain}."
    return f"None of the {budget} GPUs is left free."
