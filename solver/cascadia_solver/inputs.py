"""What a plan is made from, and the traffic that follows from it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cascadia_api.cascade import CascadeDeployment, TokenLengths
from cascadia_api.errors import InputError
from cascadia_api.plan import plan_id
from cascadia_solver.ability import able_models, drawn_needs, needs_shares
from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.catalogue.gpus import GPUS, GpuFacts
from cascadia_solver.catalogue.manifest import precision_of, repository
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.engine_settings import stage_sources
from cascadia_solver.observed import ObservedDemand, demand_of_observation
from cascadia_solver.prior import prior_accuracy, prior_table
from cascadia_solver.roofline import CostSource, Roofline
from cascadia_solver.sites import PoolBudget, catalogue_facts
from cascadia_solver.trace import Trace
from cascadia_solver.workload import (
    SAMPLE_REQUESTS,
    Demand,
    RequestSample,
    demand_of_manifest,
    demand_of_trace,
    match,
)

__all__ = ["SOLVER_VERSION", "PlanningInputs", "Traffic", "inputs_id", "traffic_of"]

Bools = NDArray[np.bool_]

SOLVER_VERSION = "11"
"""Grows when the same inputs may give another plan."""


@dataclass(frozen=True, slots=True)
class PlanningInputs:
    """Everything that a plan depends on.

    Attributes:
        cascade: The manifest.
        calibration: Calibration set of the manifest's models; None for the stated prior.
        trace: Traffic to plan for in place of the manifest's workload.
        observed: Traffic that routers saw, for a re-plan; goes before `trace`.
        available_gpus: Free GPUs by pool name; a pool that is not named has its `maxGpus`.
        free_by_node: Free GPUs of each node by pool name; nodes of a pool that is not named are wholly free.
        requests_per_second: Rate to scale the trace to; its own where None.
        seed: Seed of everything that is drawn.
        notes: What the plan's warnings should also say, as of rows skipped in a file.
        cost: Where step times come from, whatever the settings of engines; see `sources`.
    """

    cascade: CascadeDeployment
    calibration: CalibrationSet | None = None
    trace: Trace | None = None
    observed: ObservedDemand | None = None
    available_gpus: Mapping[str, int] | None = None
    free_by_node: Mapping[str, Sequence[int]] | None = None
    requests_per_second: float | None = None
    seed: int = 0
    notes: Sequence[str] = ()
    cost: CostSource = field(default_factory=Roofline)

    @property
    def sources(self) -> tuple[CostSource, ...]:
        """Where the step times of each model come from, the manifest's settings of its engine included."""
        return stage_sources(self.cascade.spec, self.cost)


@dataclass(frozen=True, eq=False)
class Traffic:
    """The requests that are planned for.

    Attributes:
        facts: Of the manifest's models.
        table: Calibration set, or the prior in its shape.
        demand: Rates and lengths.
        sample: Both joined, request by request.
    """

    facts: list[ModelFacts]
    table: CalibrationSet
    demand: Demand
    sample: RequestSample


def traffic_of(inputs: PlanningInputs, *, requests: int = SAMPLE_REQUESTS) -> Traffic:
    """Join demand and calibration set; what the planner and anyone who replays its demand start from.

    Args:
        inputs: What to plan from.
        requests: Size of the sample; a trace is taken as it is.

    Raises:
        InputError: An unknown model, a calibration set of other models or another scorer, impossible rates.
    """
    spec = inputs.cascade.spec
    facts = catalogue_facts(spec)
    models = tuple(model.name for model in spec.models)
    if inputs.calibration is None:
        accuracies = [prior_accuracy(repository(m), f.params_total) for m, f in zip(spec.models, facts, strict=True)]
        mean = float(spec.workload.output_tokens.mean)
        table = prior_table(
            models, accuracies, scorer=spec.routing.scorer_id, output_tokens_mean=mean, seed=inputs.seed
        )
    else:
        table = inputs.calibration
        if table.models != models:
            raise InputError(
                f"calibration set: it is of the models {', '.join(table.models)}, the manifest has {', '.join(models)}"
            )
        if table.scorer != spec.routing.scorer_id:
            raise InputError(
                f"calibration set: its scores are {table.scorer!r}, spec.routing.scorer is {spec.routing.scorer_id!r}"
            )
    demand = _demand(inputs, table, requests)
    table = _with_needs(table, _stated_needs(inputs, demand), inputs.seed)
    sample = match(demand, table, seed=inputs.seed)
    sample = replace(
        sample,
        able=able_models(facts, sample.input_tokens, sample.output_tokens, sample.needs),
        gate_tokens=spec.routing.streaming.gate_tokens,
        scorer_seconds=spec.routing.scorer.planned_latency_ms / 1000,
    )
    return Traffic(facts, table.with_able(_able_rows(table, facts, sample)), demand, sample)


def _stated_needs(inputs: PlanningInputs, demand: Demand) -> dict[str, float]:
    """Share of the traffic that needs each capability, as the trace or else the manifest says."""
    if demand.needs is not None:
        return needs_shares(demand.needs)
    needs = inputs.cascade.spec.workload.needs
    return {} if needs is None else {word: float(share) for word, share in needs.shares().items()}


def _with_needs(table: CalibrationSet, shares: Mapping[str, float], seed: int) -> CalibrationSet:
    """The table, with needs dealt to its rows at these shares where it does not say itself what they need."""
    if table.needs is not None or not shares:
        return table
    return replace(table, needs=drawn_needs(shares, len(table), np.random.default_rng((seed, 7))))


def _able_rows(table: CalibrationSet, facts: Sequence[ModelFacts], sample: RequestSample) -> Bools | None:
    """Which models can take each row, with what it needs and the lengths of a request that was matched with it.

    Requests may be longer or shorter than the set's own, and quality is of what the traffic gets.
    """
    like = np.arange(len(table)) % len(sample)  # rows of a large set that no request was matched with
    like[sample.row] = np.arange(len(sample))
    return able_models(facts, sample.input_tokens[like], sample.output_tokens[like], table.needs)


def _demand(inputs: PlanningInputs, table: CalibrationSet, requests: int) -> Demand:
    spec = inputs.cascade.spec
    rate = inputs.requests_per_second
    if rate is not None and not 0 < rate < math.inf:
        raise InputError(f"requests per second are {rate}; they must be a number above 0")
    if inputs.observed is not None:
        return demand_of_observation(inputs.observed, table, requests=requests, seed=inputs.seed)
    if inputs.trace is not None:
        return demand_of_trace(inputs.trace, len(spec.models), requests_per_second=rate)
    workload = spec.workload
    if rate is not None:
        workload = workload.model_copy(update={"requests_per_second": f"{rate:.6f}"})
    return demand_of_manifest(workload, len(spec.models), requests=requests, seed=inputs.seed)


def inputs_id(inputs: PlanningInputs, table: CalibrationSet, budgets: Sequence[PoolBudget]) -> str:
    """Id of the plan that these inputs give: equal on every machine for inputs of equal value.

    Only what the plan depends on goes in: images, rollout or labels do not change it.
    """
    spec = inputs.cascade.spec
    facts = catalogue_facts(spec)
    objective = spec.objective
    targets = [[t.metric, t.percentile, t.milliseconds] for t in objective.targets or ()]
    overloaded = objective.min_quality_overloaded  # only the ladder depends on it
    rooms = {budget.name: budget.room for budget in budgets if budget.room is not None}
    return plan_id(
        ({"rooms": rooms} if rooms else {})
        | {
            "version": SOLVER_VERSION,
            "models": [
                {
                    "name": model.name,
                    "architecture": repository(model),
                    "precision": precision_of(model, its),
                    **({"config": model.config_json} if model.config_json is not None else {}),
                    "limits": None if model.parallelism is None else model.parallelism.model_dump(),
                    "minReplicas": model.min_replicas or 0,
                    "pools": model.pools,
                }
                for model, its in zip(spec.models, facts, strict=True)
            ],
            "pools": [[b.name, _gpu_id(b.gpu), b.gpus, b.gpus_per_node, b.price] for b in budgets],
            "objective": {
                "minQuality": float(objective.min_quality),
                "confidence": float(objective.confidence),
                "minimize": objective.minimize,
                "percentile": objective.percentile,
                "targets": sorted(targets),
                **({} if overloaded is None else {"minQualityOverloaded": float(overloaded)}),
            },
            "scorer": spec.routing.scorer_id,
            "scorerLatencyMs": spec.routing.scorer.planned_latency_ms,
            "maxEscalations": spec.routing.max_escalations,
            "calibration": table.digest if inputs.calibration is not None else "prior",
            "demand": _demand_id(inputs),
            "seed": inputs.seed,
            **_cost_id(inputs.sources),
        }
    )


def _cost_id(sources: Sequence[CostSource]) -> dict[str, Any]:
    """Where step times come from, model by model, where that is not the roofline for all."""
    return {} if all(source == Roofline() for source in sources) else {"cost": [repr(source) for source in sources]}


def _gpu_id(gpu: GpuFacts) -> Any:
    return gpu.name if gpu.name in GPUS else asdict(gpu)


def _demand_id(inputs: PlanningInputs) -> dict[str, Any]:
    if inputs.observed is not None:
        seen = inputs.observed
        histograms = (seen.input_tokens, seen.output_tokens, seen.scores)
        return {"rate": seen.requests_per_second, "stage": seen.stage, "counts": [h.counts for h in histograms]}
    if inputs.trace is not None:
        state = hashlib.sha256()
        for array in (inputs.trace.arrivals, inputs.trace.input_tokens, inputs.trace.output_tokens):
            state.update(np.ascontiguousarray(array).tobytes())
        if inputs.trace.needs is not None:
            state.update(inputs.trace.needs.tobytes())
        return {"trace": state.hexdigest(), "rate": inputs.requests_per_second}
    workload = inputs.cascade.spec.workload

    def lengths(tokens: TokenLengths) -> list[int]:
        return [tokens.mean, tokens.p95]

    needs = {} if workload.needs is None else workload.needs.shares()
    return {
        "needs": {word: float(share) for word, share in needs.items()},
        "rate": inputs.requests_per_second or float(workload.requests_per_second),
        "input": lengths(workload.input_tokens),
        "output": lengths(workload.output_tokens),
    }
