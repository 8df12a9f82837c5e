"""A plan's neighbours: the plans that are made where one limit is a little other than it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from cascadia_api.cascade import CascadeDeploymentSpec
from cascadia_api.errors import InfeasibleError, PlanningTimeoutError
from cascadia_api.plan import Plan
from cascadia_solver.inputs import PlanningInputs

__all__ = ["Neighbour", "free_gpus", "neighbours"]

_POINTS = (-0.02, -0.01, 0.01, 0.02, 0.03)
"""Changes of the quality floor whose price is told."""
_LOOSER = 1.1
"""Targets are asked again at so many times their milliseconds."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What planning says where one limit is another.

    Attributes:
        limit: Which.
        name: The limit as it is, in words.
        moved: How it was moved, in words.
        step: The same as a number: of the floor, or of GPUs.
        pool: Of the GPUs.
        plan: What was planned; None if nothing.
        refusal: Why not.
    """

    limit: Literal["floor", "target", "replicas", "gpus"]
    name: str
    moved: str
    step: float = 0.0
    pool: str = ""
    plan: Plan | None = None
    refusal: str = ""

    @property
    def stricter(self) -> bool:
        """Whether its plan keeps the limits as they are, too."""
        return (self.limit == "floor" and self.step > 0) or (self.limit == "gpus" and self.step < 0)


def neighbours(
    plan: Plan,
    inputs: PlanningInputs,
    replan: Callable[[PlanningInputs], Plan],
    progress: Callable[[str, float], None] | None = None,
) -> list[Neighbour]:
    """Move each limit a little, one at a time, and plan: about as long again for each as the plan took.

    Args:
        plan: The plan.
        inputs: What it was made from.
        replan: Makes a plan.
        progress: Told what is being planned and the share that is done, 0 to 1.
    """
    asked = [*_floors(inputs), *_targets(inputs), *_replicas(plan, inputs), *_gpus(plan, inputs)]
    found: list[Neighbour] = []
    for k, (neighbour, changed) in enumerate(asked):
        if progress is not None:
            progress(f"{neighbour.name} {neighbour.moved}", k / len(asked))
        if neighbour.limit == "floor" and found and found[-1].plan is None and 0 < found[-1].step < neighbour.step:
            continue  # a higher floor than one that cannot be kept
        try:
            found.append(replace(neighbour, plan=replan(changed)))
        except InfeasibleError as error:
            nearest = f"; nearest feasible: {error.nearest}" if error.nearest else ""
            found.append(replace(neighbour, refusal=f"no plan is feasible ({error.reason}{nearest})"))
        except PlanningTimeoutError as error:
            found.append(replace(neighbour, refusal=f"not known: {error}"))
    return found


def _floors(inputs: PlanningInputs) -> Iterator[tuple[Neighbour, PlanningInputs]]:
    """Some points lower and higher, and none."""
    floor = float(inputs.cascade.spec.objective.min_quality)
    for step in _POINTS:
        if 0 <= floor + step <= 1:
            other = f"{floor + step:.6g}"
            changed = _with_objective(inputs, min_quality=other, min_quality_overloaded=None)
            yield Neighbour("floor", f"the quality floor of {floor:g}", f"at {other}", step), changed
    changed = _with_objective(inputs, min_quality="0", min_quality_overloaded=None)
    yield Neighbour("floor", f"the quality floor of {floor:g}", "without it", -floor), changed


def _targets(inputs: PlanningInputs) -> Iterator[tuple[Neighbour, PlanningInputs]]:
    """Each target a tenth looser, and left out."""
    targets = inputs.cascade.spec.objective.targets or []
    for k, target in enumerate(targets):
        looser = target.model_copy(update={"milliseconds": round(target.milliseconds * _LOOSER)})
        name = f"the target of {target.milliseconds} ms on {target.metric} p{target.percentile}"
        for moved, instead in ((f"at {looser.milliseconds} ms", [looser]), ("without it", [])):
            others = [*targets[:k], *instead, *targets[k + 1 :]]
            yield Neighbour("target", name, moved), _with_objective(inputs, targets=others or None)


def _replicas(plan: Plan, inputs: PlanningInputs) -> Iterator[tuple[Neighbour, PlanningInputs]]:
    """Where some stage has no more replicas than it has to."""
    models = inputs.cascade.spec.models
    tight = [
        model.name
        for model, stage in zip(models, plan.stages, strict=True)
        if model.min_replicas and sum(group.count for group in stage.replicas) <= model.min_replicas
    ]
    if tight:
        free = [model.model_copy(update={"min_replicas": None}) for model in models]
        yield (
            Neighbour("replicas", f"the minReplicas of {', '.join(tight)}", "without it"),
            _with_spec(inputs, models=free),
        )


def _gpus(plan: Plan, inputs: PlanningInputs) -> Iterator[tuple[Neighbour, PlanningInputs]]:
    """One GPU more and fewer, and a node more, of each pool in use; not where GPUs are told node by node."""
    pools = inputs.cascade.spec.gpus.pools
    for pool in pools:
        used = sum(stage.gpus for stage in plan.live_stages if stage.pool == pool.name)
        if not used or (inputs.free_by_node or {}).get(pool.name) is not None:
            continue
        free = free_gpus(inputs, pool.name, pool.max_gpus)
        of = f" of pool {pool.name}" if len(pools) > 1 else ""
        name = f"the GPU budget{of}"
        for step in sorted({1, pool.gpus_per_node or 8}) if used == free else []:
            moved = f"one GPU more{of}" if step == 1 else f"{step} GPUs more{of}"
            yield Neighbour("gpus", name, moved, step, pool.name), _with_gpus(inputs, pool.name, free + step)
        yield Neighbour("gpus", name, f"one GPU fewer{of}", -1, pool.name), _with_gpus(inputs, pool.name, used - 1)


def _with_objective(inputs: PlanningInputs, **changes: Any) -> PlanningInputs:
    return _with_spec(inputs, objective=inputs.cascade.spec.objective.model_copy(update=changes))


def _with_spec(inputs: PlanningInputs, **changes: Any) -> PlanningInputs:
    spec: CascadeDeploymentSpec = inputs.cascade.spec.model_copy(update=changes)
    return replace(inputs, cascade=inputs.cascade.model_copy(update={"spec": spec}))


def _with_gpus(inputs: PlanningInputs, pool: str, gpus: int) -> PlanningInputs:
    has = inputs.cascade.spec.gpus
    pools = [p.model_copy(update={"max_gpus": max(1, gpus)}) if p.name == pool else p for p in has.pools]
    changed = _with_spec(inputs, gpus=has.model_copy(update={"pools": pools}))
    return replace(changed, available_gpus=dict(inputs.available_gpus or {}) | {pool: gpus})


def free_gpus(inputs: PlanningInputs, pool: str, most: int) -> int:
    """GPUs of a pool that can be had: `most` by the manifest, or those that are available."""
    return min(most, (inputs.available_gpus or {}).get(pool, most))
