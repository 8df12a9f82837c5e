"""Planning again beside a plan that runs: its thresholds alone where that is enough, everything where it is not.

Another quality target, or a load within what the replicas carry, seldom needs another placement: the plan in
force keeps its frontier, which says about what the best placement would do instead. So thresholds are planned
first, which takes milliseconds and moves no replica; all is planned anew only where the replicas are no longer
allowed, cannot keep the floor or a target, or where the frontier promises more than `minImprovementPercent`.
"""

from __future__ import annotations

from collections.abc import Callable

from cascadia_api.cascade import CascadeDeploymentSpec
from cascadia_api.errors import InfeasibleError
from cascadia_api.plan import FrontierPoint, Plan, PlanLatency, PlanStage
from cascadia_solver import plan_document as document
from cascadia_solver.evaluation import PathTimes, path_times, stage_times
from cascadia_solver.inputs import PlanningInputs, traffic_of
from cascadia_solver.planner import plan_cascade
from cascadia_solver.rethreshold import replan_thresholds
from cascadia_solver.sites import pool_budgets
from cascadia_solver.standing import replicas_allowed, simulate_plan

__all__ = ["good_enough", "replan", "thresholds_alone"]


def replan(
    inputs: PlanningInputs,
    in_force: Plan,
    *,
    deadline_seconds: float = 60.0,
    progress: Callable[[str, float], None] | None = None,
) -> Plan:
    """Plan for changed inputs beside a plan in force.

    Args:
        inputs: Manifest, calibration set and traffic as they are now.
        in_force: The plan whose replicas run.
        deadline_seconds: See `plan_cascade`.
        progress: See `plan_cascade`.

    Returns:
        A plan of thresholds alone (`Plan.replicas_of` is set) or a whole one.

    Raises:
        InputError: The inputs are wrong or contradict each other.
        InfeasibleError: No plan can do what the manifest asks for; says what is missing.
    """
    spec = inputs.cascade.spec
    found = thresholds_alone(inputs, in_force)
    if found is not None and good_enough(spec, in_force, found):
        return found
    return plan_cascade(inputs, deadline_seconds=deadline_seconds, progress=progress)


def thresholds_alone(inputs: PlanningInputs, in_force: Plan) -> Plan | None:
    """Thresholds for the replicas in force, where those are allowed and keep the floor and the latency targets.

    Args:
        inputs: Manifest, calibration set and traffic as they are now.
        in_force: The plan whose replicas run.

    Returns:
        The plan, its latencies simulated; None where something is not kept.
    """
    spec = inputs.cascade.spec
    if not replicas_allowed(spec, pool_budgets(spec, inputs.available_gpus, inputs.free_by_node), in_force):
        return None
    traffic = traffic_of(inputs)
    try:
        found = replan_thresholds(inputs, in_force, traffic)
    except InfeasibleError:
        return None
    times, exits = simulate_plan(
        spec, traffic.facts, found, traffic.sample, inputs.sources, settle_seconds=found.latency.p95_ms / 1e3
    )
    seen = path_times(times, traffic.sample, exits)
    if seen.saturated or seen.excess(spec.objective.targets or []) > 0:
        return None
    stages = [
        PlanStage(**(dict(stage) | document.stage_figures(own))) if stage.gpus else stage
        for stage, own in zip(found.stages, stage_times(times), strict=True)
    ]
    return found.model_copy(update={"latency": _simulated(found.latency, seen, inputs.cost.name), "stages": stages})


def _simulated(latency: PlanLatency, times: PathTimes, source: str) -> PlanLatency:
    figures = document.latency_figures(times) | {"source": document.simulated_source(times, source)}
    return PlanLatency(**(dict(latency) | figures))


def good_enough(spec: CascadeDeploymentSpec, in_force: Plan, found: Plan) -> bool:
    """Whether another placement promises less than `minImprovementPercent` over thresholds alone.

    What it promises is read off the frontier of the plan in force: its best point at the floor. Costs grow in
    proportion to the load. Latencies at another load are not on it, so a load that has fallen by more than that
    percentage is planned for anew: the GPUs that it leaves idle may do better elsewhere.

    Args:
        spec: The manifest as it is now.
        in_force: The plan in force.
        found: Thresholds alone for its replicas, within the floor and the targets.
    """
    slack = 1 + spec.replanning.min_improvement_percent / 100
    floor = float(spec.objective.min_quality)
    placed_for = (in_force.replicas_of or in_force.demand).requests_per_second
    growth = found.demand.requests_per_second / placed_for
    confidence = None if found.quality.confidence is None else float(found.quality.confidence)
    if in_force.quality.confidence != confidence or in_force.quality.source != found.quality.source:
        return False  # the frontier's bounds are of another kind
    kept = [p for p in in_force.frontier if _assured(p) >= floor and _within_targets(spec, p)]
    if spec.objective.minimize == "Cost":
        return _cost(found) <= slack * growth * min((_cost_of(p, found) for p in kept), default=_cost(found) / growth)
    if growth * slack < 1:
        return False
    return found.latency.p95_ms <= slack * min((p.p95_ms for p in kept), default=found.latency.p95_ms)


def _assured(point: FrontierPoint) -> float:
    return point.quality_mean if point.quality_lower_bound is None else point.quality_lower_bound


def _within_targets(spec: CascadeDeploymentSpec, point: FrontierPoint) -> bool:
    """Whether a point keeps the targets that the frontier can tell of."""
    return all(
        point.p95_ms <= target.milliseconds
        for target in spec.objective.targets or ()
        if (target.metric, target.percentile) == ("EndToEnd", 95)
    )


def _cost(plan: Plan) -> float:
    return float(plan.gpus) if plan.cost_per_hour is None else plan.cost_per_hour


def _cost_of(point: FrontierPoint, plan: Plan) -> float:
    """In the unit of `_cost` of a plan."""
    return float(sum(point.gpus)) if plan.cost_per_hour is None else point.cost_per_hour or 0.0
