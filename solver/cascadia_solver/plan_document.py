"""The plan as the contract has it, from a chosen design."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadia_api.plan import (
    FrontierPoint,
    LadderStep,
    Percentiles,
    PlanAlternative,
    PlanDemand,
    PlanLatency,
    PlanQuality,
    PlanStage,
    ReplicaGroup,
    StageLatency,
)
from cascadia_solver.design import LEVEL_WITH, Design
from cascadia_solver.evaluation import Evaluation, PathTimes
from cascadia_solver.frontier_simulation import FrontierPlan
from cascadia_solver.inputs import Traffic
from cascadia_solver.ladder import Rung
from cascadia_solver.operating_point import LOAD_LIMIT
from cascadia_solver.search import Problem
from cascadia_solver.sources import Certainty

__all__ = [
    "alternative",
    "demand_of_plan",
    "frontier_of_plan",
    "ladder_of_plan",
    "latency_of_plan",
    "percentiles_of_plan",
    "quality_of_plan",
    "route_name",
    "stages_of_plan",
    "thresholds_of_plan",
    "unfit_alternative",
    "utilization",
    "what_decided",
]

Floats = NDArray[np.float64]
_SENTENCES = 16


def thresholds_of_plan(stages: Sequence[int], thresholds: Sequence[float], models: int) -> list[float | None]:
    """One entry a model: None where the stage accepts all, is the last or is dropped."""
    result: list[float | None] = [None] * models
    for model, threshold in zip(stages, thresholds, strict=False):
        result[model] = float(threshold) if np.isfinite(threshold) else None
    return result


def stages_of_plan(best: Evaluation, problem: Problem, names: Sequence[str]) -> list[PlanStage]:
    """Every model in order, dropped ones without GPUs."""
    plan = best.design
    route = plan.route
    thresholds = thresholds_of_plan(route.stages, route.thresholds, len(names))
    stages = [PlanStage(name=name, threshold=None, reach=0.0, gpus=0, pool=None, replicas=[]) for name in names]
    exits, sample = plan.routed.exits, problem.sample
    for j, model in enumerate(route.stages):
        replicas = plan.replicas[j]
        total = sum(rate * count for rate, count in zip(replicas.rates, replicas.counts, strict=True))
        stages[model] = PlanStage(
            name=names[model],
            threshold=thresholds[model],
            reach=float(plan.routed.reach[j]),
            skipped=float(((exits >= model) & ~sample.taken_by(model)).mean()),
            gpus=replicas.gpus,
            pool=problem.budgets[route.pools[j]].name,
            replicas=[
                ReplicaGroup(
                    tensor_parallel=option.shape.tensor_parallel,
                    pipeline_parallel=option.shape.pipeline_parallel,
                    count=count,
                    weight=rate / total if total > 0 else 1 / sum(replicas.counts),
                )
                for option, count, rate in zip(replicas.options, replicas.counts, replicas.rates, strict=True)
            ],
            **stage_figures(best.stages[j]),
            utilization=utilization(float(plan.routed.rates[j]), replicas.capacity),
        )
    return stages


def stage_figures(times: PathTimes) -> dict[str, Any]:
    """What a plan says of a stage's simulated latencies, by field."""
    slowest = times.percentile(95)
    figures = [percentiles_of_plan(times, metric) for metric in ("EndToEnd", "TimeToFirstToken", "TimePerOutputToken")]
    end, first, token = figures
    latency = None
    if end is not None and first is not None and token is not None:
        latency = StageLatency(end_to_end=end, time_to_first_token=first, time_per_output_token=token)
    return {"p95_ms": slowest * 1e3 if np.isfinite(slowest) else None, "latency": latency}


def percentiles_of_plan(times: PathTimes, metric: str) -> Percentiles | None:
    """The percentiles of one metric; None where some are unknown or infinite."""
    figures = {f"p{p}_ms": times.percentile(p, metric) * 1e3 for p in (50, 90, 95, 99)}
    return Percentiles(**figures) if all(np.isfinite(list(figures.values()))) else None


def utilization(rate: float, capacity: float) -> float:
    """Load of a stage by the rate at which it saturates, extrapolated from the highest that is planned for."""
    return rate * LOAD_LIMIT / capacity


def quality_of_plan(design: Design, traffic: Traffic, confidence: float) -> PlanQuality:
    """Mean and bound, or the mean alone under a prior."""
    prior = traffic.table.source == "Prior"
    return PlanQuality(
        mean=design.route.mean,
        lower_bound=None if prior else design.route.assured,
        confidence=None if prior else confidence,
        source="Prior" if prior else "Calibration",
        requests=None if prior else len(traffic.table),
    )


def latency_of_plan(best: Evaluation, source: str, trust: Certainty) -> PlanLatency:
    """Percentiles of the simulated requests."""
    return PlanLatency(
        **latency_figures(best),
        source=simulated_source(best, source),
        uncertainty_percent=round(trust.uncertainty_percent, 1),
        extrapolates=[said[:1024] for said in trust.extrapolates[:_SENTENCES]],
    )


def latency_figures(times: PathTimes) -> dict[str, Any]:
    """What a plan says of simulated latencies along the path, by field."""
    return {f"p{p}_ms": times.percentile(p) * 1e3 for p in (50, 90, 95, 99)} | {
        "time_to_first_token_p95_ms": times.percentile(95, "TimeToFirstToken") * 1e3,
        "time_per_output_token_p95_ms": times.percentile(95, "TimePerOutputToken") * 1e3,
        "time_to_first_token": percentiles_of_plan(times, "TimeToFirstToken"),
        "time_per_output_token": percentiles_of_plan(times, "TimePerOutputToken"),
    }


def simulated_source(times: PathTimes, source: str) -> str:
    """Where simulated latencies are from, in words."""
    return f"event-jump simulation of {len(times.end_to_end)} requests on {source} step times"


def ladder_of_plan(rungs: Sequence[Rung], stages: Sequence[int], models: int) -> list[LadderStep]:
    """The ladder with one entry a model."""
    steps = []
    for rung in rungs:
        reach = [0.0] * models
        for model, share in zip(stages, rung.reach, strict=True):
            reach[model] = share
        steps.append(
            LadderStep(
                thresholds=thresholds_of_plan(stages, rung.thresholds, models),
                reach=reach,
                quality_mean=rung.mean,
                quality_lower_bound=rung.bound,
                max_requests_per_second=rung.requests_per_second,
            )
        )
    return steps


def demand_of_plan(traffic: Traffic, first_stage: int) -> PlanDemand:
    """What the plan assumed of the traffic."""
    sample = traffic.sample
    answers, scores = sample.output_tokens[:, first_stage], sample.scores[:, first_stage]
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    known = bool(np.isfinite(scores).all())
    return PlanDemand(
        requests_per_second=sample.requests_per_second,
        input_tokens_mean=float(sample.input_tokens.mean()),
        output_tokens_mean=float(answers.mean()),
        input_token_quantiles=_quantiles(sample.input_tokens, levels),
        output_token_quantiles=_quantiles(answers, levels),
        score_deciles=_quantiles(scores, np.arange(1, 10) / 10) if known else [],
        source=traffic.demand.source,
    )


def _quantiles(values: Floats, levels: ArrayLike) -> list[float]:
    """As `np.quantile`, which takes many times as long over ten thousand requests."""
    last = len(values) - 1
    return [float(q) for q in np.interp(np.asarray(levels) * last, np.arange(last + 1), np.sort(values))]


def frontier_of_plan(
    problem: Problem, others: Sequence[FrontierPlan], best: Evaluation, traffic: Traffic
) -> list[FrontierPoint]:
    """The plan among those that no other beats, by latency."""
    models = len(traffic.facts)
    prior = traffic.table.source == "Prior"
    design = best.design
    own = FrontierPoint(
        thresholds=thresholds_of_plan(design.route.stages, design.route.thresholds, models),
        gpus=_gpus_of_models(design.route.stages, design.gpus, models),
        p95_ms=best.percentile(95) * 1e3,
        cost_per_hour=design.cost(problem.prices) if problem.priced else None,
        quality_mean=design.route.mean,
        quality_lower_bound=None if prior else design.route.assured,
        chosen=True,
    )
    result = [
        FrontierPoint(
            thresholds=thresholds_of_plan(plan.stages, plan.thresholds, models),
            gpus=_gpus_of_models(plan.stages, plan.gpus, models),
            p95_ms=plan.p95 * 1e3,
            cost_per_hour=plan.cost if problem.priced else None,
            quality_mean=plan.mean,
            quality_lower_bound=None if prior else plan.assured,
        )
        for plan in others
    ]
    return sorted([own, *result], key=lambda point: point.p95_ms)


def alternative(name: str, problem: Problem, other: Evaluation, best: Evaluation) -> PlanAlternative:
    """A plan that was not chosen, in numbers.

    Args:
        name: In words.
        problem: What was searched.
        other: The plan.
        best: The one that was chosen.
    """
    p95 = other.percentile(95)
    return PlanAlternative(
        name=name,
        p95_ms=p95 * 1e3 if np.isfinite(p95) else None,
        quality_mean=other.design.route.mean,
        cost_per_hour=other.design.cost(problem.prices) if problem.priced else None,
        reason=_worse(problem, other, best),
    )


def unfit_alternative(
    name: str, problem: Problem, other: Design, times: PathTimes | None, reason: str
) -> PlanAlternative:
    """A plan that could not be chosen; without a latency if it was not simulated."""
    return PlanAlternative(
        name=name,
        p95_ms=None if times is None or times.saturated else times.percentile(95) * 1e3,
        quality_mean=other.route.mean,
        cost_per_hour=other.cost(problem.prices) if problem.priced else None,
        reason=reason,
    )


def _worse(problem: Problem, other: Evaluation, best: Evaluation) -> str:
    if other.saturated:
        return "its queues grow without bound"
    if other.excess(problem.objective.targets or []) > 0:
        return f"it misses a latency target, with a p95 of {other.percentile(95):.1f} s"
    percentile = problem.percentile
    return what_decided(
        f"p{percentile:.0f}",
        (other.percentile(percentile), best.percentile(percentile)),
        (other.design.cost(problem.prices), best.design.cost(problem.prices)),
        (sum(other.design.gpus), sum(best.design.gpus)),
        cheapest=problem.cheapest,
    )


def what_decided(
    name: str,
    seconds: tuple[float, float],
    costs: tuple[float, float],
    gpus: tuple[int, int],
    *,
    cheapest: bool,
) -> str:
    """In which figure a plan is worse than the chosen one; a tie in what is minimised is decided by the next.

    Args:
        name: Of the percentile.
        seconds: That percentile of both, s.
        costs: Of both, per hour.
        gpus: Of both.
        cheapest: Whether cost is minimised, not latency.
    """
    decimals = next((d for d in (1, 2, 3) if f"{seconds[0]:.{d}f}" != f"{seconds[1]:.{d}f}"), 1)
    slower = f"its {name} is {seconds[0]:.{decimals}f} s against {seconds[1]:.{decimals}f} s"
    dearer = f"it costs {costs[0]:.2f} an hour against {costs[1]:.2f}"
    if cheapest:
        return dearer if f"{costs[0]:.2f}" != f"{costs[1]:.2f}" else f"it costs as much; {slower}"
    if seconds[0] > seconds[1] * (1 + LEVEL_WITH):
        return slower
    if f"{costs[0]:.2f}" != f"{costs[1]:.2f}":
        return f"{slower}, within {LEVEL_WITH:.0%}; {dearer}"
    return (
        f"{slower}, within {LEVEL_WITH:.0%}; it takes {gpus[0]} GPUs against {gpus[1]}"
        if gpus[0] != gpus[1]
        else slower
    )


def route_name(stages: Sequence[int], names: Sequence[str]) -> str:
    """A choice of stages in words."""
    return " -> ".join(names[model] for model in stages) if len(stages) > 1 else f"{names[stages[0]]} alone"


def _gpus_of_models(stages: Sequence[int], gpus: Sequence[int], models: int) -> list[int]:
    result = [0] * models
    for model, count in zip(stages, gpus, strict=True):
        result[model] = count
    return result
