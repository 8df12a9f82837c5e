"""A plan whose replicas stand: what they do under some traffic, and whether the inputs still allow them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cascadia_api.cascade import CascadeDeploymentSpec
from cascadia_api.plan import Plan
from cascadia_solver.catalogue.manifest import gpu_of, precision_of
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.replay import exit_stages
from cascadia_solver.roofline import CostSource, Shape
from cascadia_solver.simulation import CascadeTimes, StageReplicas
from cascadia_solver.sites import PoolBudget
from cascadia_solver.steady_state import at_work
from cascadia_solver.workload import RequestSample

__all__ = ["replicas_allowed", "simulate_plan"]


def simulate_plan(
    spec: CascadeDeploymentSpec,
    facts: Sequence[ModelFacts],
    plan: Plan,
    sample: RequestSample,
    sources: Sequence[CostSource],
    *,
    settle_seconds: float = 0.0,
) -> tuple[CascadeTimes, NDArray[np.int64]]:
    """Simulate a plan under some traffic, request by request.

    Args:
        spec: The manifest's.
        facts: Of the manifest's models.
        plan: The plan.
        sample: The traffic: n requests.
        sources: Where the step times of each model come from.
        settle_seconds: As for `steady_state.at_work`.

    Returns:
        The times, and the model that answers each request [n].
    """
    live = [index for index, stage in enumerate(plan.stages) if stage.gpus]
    thresholds = [-math.inf if (h := plan.stages[index].threshold) is None else h for index in live[:-1]]
    exits = exit_stages(live, thresholds, sample.scores, sample.able)
    stages = [_replicas(spec, facts[index], plan, index, sources[index]) for index in range(len(plan.stages))]
    return at_work(stages, sample, exits, settle_seconds=settle_seconds), exits


def _replicas(
    spec: CascadeDeploymentSpec, facts: ModelFacts, plan: Plan, index: int, source: CostSource
) -> StageReplicas:
    model, stage = spec.models[index], plan.stages[index]
    if not stage.gpus:
        return StageReplicas([], [])
    pool = next(pool for pool in spec.gpus.pools if pool.name == stage.pool)
    gpu, precision = gpu_of(pool), precision_of(model, facts)
    steps, weights = [], []
    for group in stage.replicas:
        shape = Shape(group.tensor_parallel, group.pipeline_parallel)
        step = source.step_model(facts, gpu, shape, precision, gpus_per_node=pool.gpus_per_node or 8)
        steps += [step] * group.count
        weights += [group.weight] * group.count
    return StageReplicas(steps, weights)


def replicas_allowed(spec: CascadeDeploymentSpec, budgets: Sequence[PoolBudget], plan: Plan) -> bool:
    """Whether a manifest still allows the replicas of a plan: its models, pools, limits and GPUs.

    What an engine runs (weights, precision) is not in a plan: whoever asks knows that it has not changed.
    """
    if [stage.name for stage in plan.stages] != [model.name for model in spec.models]:
        return False
    left = {budget.name: budget.gpus for budget in budgets}
    for model, stage in zip(spec.models, plan.stages, strict=True):
        if sum(group.count for group in stage.replicas) < (model.min_replicas or 0):
            return False
        if not stage.gpus:
            continue
        pool = stage.pool or ""
        if pool not in left or (model.pools and pool not in model.pools):
            return False
        left[pool] -= stage.gpus
        limits = model.parallelism
        for group in stage.replicas:
            if limits is not None and (
                group.tensor_parallel > (limits.max_tensor_parallel or group.tensor_parallel)
                or group.pipeline_parallel > (limits.max_pipeline_parallel or group.pipeline_parallel)
            ):
                return False
    most = spec.routing.max_escalations
    few_enough = most is None or len(plan.live_stages) <= most + 1
    return few_enough and min(left.values()) >= 0
