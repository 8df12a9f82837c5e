"""New thresholds for a plan's replicas as they stand: what a change of load or of the quality floor needs first.

No GPU moves, so there is nothing to allocate: every threshold vector of the live stages is replayed on the new
traffic, its latency on the given replicas is estimated in closed form, and the fastest within the quality floor is
taken. That costs milliseconds. `replanning.thresholds_alone` then simulates what was taken.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cascadia_api.errors import InfeasibleError, InputError, Shortfall
from cascadia_api.plan import (
    FrontierPoint,
    KeptReplicas,
    Plan,
    PlanLatency,
    PlanQuality,
    PlanSolver,
    PlanStage,
    plan_id,
)
from cascadia_solver import plan_document as document
from cascadia_solver.catalogue.manifest import gpu_of, precision_of
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.certification import estimate_quality
from cascadia_solver.infeasible import quality_out_of_reach
from cascadia_solver.inputs import SOLVER_VERSION, PlanningInputs, Traffic, inputs_id, traffic_of
from cascadia_solver.ladder import ladder
from cascadia_solver.lengths import PROMPT_TOKENS_PER_STEP, length_profile
from cascadia_solver.operating_point import load_curves
from cascadia_solver.ordering import ascending
from cascadia_solver.path_estimate import path_latency
from cascadia_solver.replay import ThresholdGrid, exit_stages, stage_loads, threshold_grids
from cascadia_solver.roofline import Shape
from cascadia_solver.sites import pool_budgets
from cascadia_solver.sources import Certainty, certainty
from cascadia_solver.workload import RequestSample

__all__ = ["replan_thresholds"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_REQUESTS = 2500
_AT_FIRST, _AT_LAST = 256, 1000
_HARDLY_SLOWER = 1.1
"""The closed form of so few requests is off by about so much."""
_SHOWN_AT = (50, 90, 95, 99)
_FRONTIER = 64
_FEWEST_SEEN = 50
"""Where fewer requests come to a stage than this, those that come are taken to be like all."""
_HOPELESS = 0.05
"""Vectors estimated at so much below the quality floor are not looked at."""


@dataclass(frozen=True, eq=False)
class _Placed:
    """One stage's replicas under the traffic that comes to it.

    Attributes:
        levels: Ascending latencies, s [LEVELS].
        carried: Rate of all replicas there, 1/s [LEVELS].
        parts: Wait s, prefill s/token and decode s/token there [LEVELS, 3].
        trust: In the cost source.
    """

    levels: Floats
    carried: Floats
    parts: Floats
    trust: Certainty


def replan_thresholds(inputs: PlanningInputs, plan: Plan, traffic: Traffic | None = None) -> Plan:
    """Choose thresholds anew for a plan's replicas.

    Args:
        inputs: Manifest, calibration set and traffic as they are now.
        plan: The plan whose replicas stay.
        traffic: What `traffic_of` says of the inputs, where the caller has it.

    Returns:
        A plan with the same replicas; its latencies are the closed form's, which is far off near saturation: they
        are for whoever simulates it.

    Raises:
        InputError: The plan is of other models or pools.
        InfeasibleError: No thresholds keep the quality floor, or the replicas do not carry those that do.
    """
    started = os.times()
    spec = inputs.cascade.spec
    names = [model.name for model in spec.models]
    if [stage.name for stage in plan.stages] != names:
        raise InputError(f"the plan is of the models {', '.join(stage.name for stage in plan.stages)}, not {names}")
    traffic = traffic or traffic_of(inputs)
    sample = traffic.sample
    live = [index for index, stage in enumerate(plan.stages) if stage.gpus]
    (grid,) = threshold_grids(traffic.table, candidates=live, forced=live, max_escalations=None)
    percentile = float(spec.objective.percentile)
    few = _thinned(sample, live[-1])
    seen = [_seen(sample, plan, live, model) for model in live]
    placed = [
        _placed(inputs, traffic.facts[model], sample, rows, model, plan.stages[model], percentile)
        for model, rows in zip(live, seen, strict=True)
    ]
    loads = stage_loads(grid, sample)
    typical = [sample.output_tokens[rows, model].mean() for model, rows in zip(live, seen, strict=True)]
    rates = loads.tokens / np.array(typical) * sample.requests_per_second
    study = estimate_quality(traffic.table, [grid], weights=traffic.demand.row_weights)
    floor, confidence = float(spec.objective.min_quality), float(spec.objective.confidence)
    latency, times_of = _latency(grid, placed, rates, study.estimates[0], few, floor, percentile)
    (quality,) = study.certified(
        [latency], [np.empty(0, dtype=np.int64)], floor=floor, confidence=confidence, seed=inputs.seed
    )
    good = np.flatnonzero((quality.assured >= floor) & np.isfinite(latency))
    if not len(good):
        anyhow = study.certified(
            [np.zeros(len(grid))], [np.empty(0, dtype=np.int64)], floor=floor, confidence=confidence, seed=inputs.seed
        )
        if float(anyhow[0].assured.max()) < floor:
            raise quality_out_of_reach(spec.objective, study, anyhow)
        carried = min(float(stage.carried[-1]) for stage in placed)
        raise InfeasibleError(
            "Overloaded",
            f"the plan's replicas do not carry {sample.requests_per_second:.3g} requests/s at minQuality {floor:g}: "
            "plan anew, with more GPUs if need be",
            shortfalls=[Shortfall("requests/s of the tightest stage", sample.requests_per_second, carried)],
        )
    best = int(good[latency[good].argmin()])
    (times,) = times_of(np.array([best]))
    overloaded = spec.objective.min_quality_overloaded
    thresholds = grid.vector(best)
    rungs = ladder(
        thresholds,
        [float(stage.carried[-1] * loads.reach[best, j] * sample.requests_per_second / rates[best, j])
         if rates[best, j] > 0 else np.inf for j, stage in enumerate(placed)],
        grid,
        quality,
        loads,
        requests_per_second=sample.requests_per_second,
        floor=floor,
        overloaded=None if overloaded is None else float(overloaded),
    )  # fmt: skip
    of_models = document.thresholds_of_plan(live, thresholds, len(names))
    prior = traffic.table.source == "Prior"
    budgets = pool_budgets(spec, inputs.available_gpus, inputs.free_by_node)
    origin = plan.replicas_of or KeptReplicas(plan_id=plan.plan_id, requests_per_second=plan.demand.requests_per_second)
    spent = sum(os.times()[:2]) - sum(started[:2])
    found = plan.model_copy(
        update={
            "plan_id": plan_id({"inputs": inputs_id(inputs, traffic.table, budgets), "replicasOf": origin.plan_id}),
            "replicas_of": origin,
            "thresholds": of_models,
            "stages": _stages(plan, live, of_models, (loads.reach[best], loads.passed_by[best]), rates[best], placed),
            "ladder": document.ladder_of_plan(rungs, live, len(names)),
            "quality": PlanQuality(
                mean=float(quality.mean[best]),
                lower_bound=None if prior else float(quality.assured[best]),
                confidence=None if prior else confidence,
                source="Prior" if prior else "Calibration",
                requests=None if prior else len(traffic.table),
            ),
            "latency": PlanLatency(
                **{
                    f"p{p}_ms": float(value) * 1e3
                    for p, value in zip(_SHOWN_AT, np.percentile(times, _SHOWN_AT), strict=True)
                },
                source=f"closed form on {inputs.cost.name} step times",
                uncertainty_percent=max(stage.trust.uncertainty_percent for stage in placed),
                extrapolates=[said for stage in placed for said in stage.trust.extrapolates][:16],
            ),
            "demand": document.demand_of_plan(traffic, live[0]),
            "alternatives": [],
            "solver": PlanSolver(
                status="Feasible",
                objective="EndToEnd",
                gap=0.0,
                elapsed_ms=spent * 1e3,
                threshold_vectors=len(grid),
                version=SOLVER_VERSION,
            ),
            "warnings": [*inputs.notes, f"only thresholds were planned: the replicas are those of {origin.plan_id}"],
        }
    )
    return found.model_copy(update={"frontier": _frontier(found)})


def _frontier(plan: Plan) -> list[FrontierPoint]:
    """The frontier of the plan that placed the replicas, with this plan in it."""
    others = [point.model_copy(update={"chosen": False}) if point.chosen else point for point in plan.frontier]
    own = FrontierPoint(
        thresholds=plan.thresholds,
        gpus=[stage.gpus for stage in plan.stages],
        p95_ms=plan.latency.p95_ms,
        cost_per_hour=plan.cost_per_hour,
        quality_mean=plan.quality.mean,
        quality_lower_bound=plan.quality.lower_bound,
        chosen=True,
    )
    return sorted([own, *others[: _FRONTIER - 1]], key=lambda point: point.p95_ms)


def _thinned(sample: RequestSample, model: int) -> RequestSample:
    """Requests evenly spread over how long a model takes for them, in that order: enough for a closed form."""
    order = ascending(PROMPT_TOKENS_PER_STEP * sample.output_tokens[:, model] + sample.input_tokens)
    step = max(1, len(sample) // _REQUESTS)
    rows = order[step // 2 :: step]
    return replace(
        sample,
        arrivals=sample.arrivals[rows],
        input_tokens=sample.input_tokens[rows],
        output_tokens=sample.output_tokens.take(rows, axis=0),
        scores=sample.scores.take(rows, axis=0),
        quality=sample.quality.take(rows, axis=0),
        row=sample.row[rows],
        needs=None if sample.needs is None else sample.needs[rows],
        able=None if sample.able is None else sample.able[rows],
    )


def _seen(sample: RequestSample, plan: Plan, live: Sequence[int], model: int) -> Integers:
    """Requests that come to a stage under the thresholds in force, which those looked for will be near to.

    Which requests come decides on what replicas carry: those that get to a large model have longer answers.
    """
    able = np.ones(len(sample), dtype=bool) if sample.able is None else sample.able[:, model]
    thresholds = [np.inf if (h := plan.thresholds[k]) is None else h for k in live[:-1]]
    rows = np.flatnonzero(able & (exit_stages(live, thresholds, sample.scores, sample.able) >= model))
    return rows if len(rows) >= _FEWEST_SEEN else np.flatnonzero(able)


def _placed(
    inputs: PlanningInputs,
    facts: ModelFacts,
    sample: RequestSample,
    rows: Integers,
    model: int,
    stage: PlanStage,
    percentile: float,
) -> _Placed:
    """A stage's replicas under the traffic of some requests."""
    spec = inputs.cascade.spec
    pool = next((pool for pool in spec.gpus.pools if pool.name == stage.pool), None)
    if pool is None:
        raise InputError(f"the plan's stage {stage.name!r} is on pool {stage.pool!r}, which the manifest does not have")
    gpu, source = gpu_of(pool), inputs.sources[model]
    precision = precision_of(spec.models[model], facts)
    shapes = [Shape(group.tensor_parallel, group.pipeline_parallel) for group in stage.replicas]
    steps = [source.step_model(facts, gpu, shape, precision, gpus_per_node=pool.gpus_per_node or 8) for shape in shapes]
    profile = length_profile(sample.input_tokens[rows], sample.output_tokens[rows, model])
    curves = load_curves(steps, [profile], percentile)
    levels = np.unique(curves.latency[0])
    carried, parts = np.zeros(len(levels)), np.zeros((len(levels), 3))
    for r, group in enumerate(stage.replicas):
        rate = np.interp(levels, curves.latency[0, r], curves.rate[0, r], left=0.0)
        carried += group.count * rate
        for k in range(3):
            parts[:, k] += group.count * rate * np.interp(rate, curves.rate[0, r], curves.parts[0, r, :, k])
    idle = curves.parts[0, :, 0].mean(axis=0)
    parts = np.where(carried[:, None] > 0, parts / np.maximum(carried, 1e-12)[:, None], idle)
    return _Placed(levels, carried, parts, certainty((source, stage.name, facts, gpu, shape) for shape in shapes))


def _latency(
    grid: ThresholdGrid,
    placed: Sequence[_Placed],
    rates: Floats,
    estimate: Floats,
    sample: RequestSample,
    floor: float,
    percentile: float,
) -> tuple[Floats, Callable[[Integers], Floats]]:
    """Latency of each vector that may be the best on the replicas at its quality.

    All that are carried are looked at with few requests, and those that are hardly slower than every other of
    their quality with more: which requests go how far decides on the percentile.

    Args:
        grid: V vectors.
        placed: The stages' replicas.
        rates: Rate at each stage [V, stages].
        estimate: Of their quality [V].
        sample: The traffic, evenly spread in the order of its lengths: n requests.
        floor: Quality floor.
        percentile: Of path latency.

    Returns:
        The percentile of path latency of each vector, s, infinite where it saturates a stage or another is faster
        [V]; and a function that gives the latencies of K vectors, s [K, n].
    """
    carried = estimate >= min(floor - _HOPELESS, estimate.max())
    parts = []
    for j, stage in enumerate(placed):
        carried &= rates[:, j] <= stage.carried[-1]
        parts.append(np.stack([np.interp(rates[:, j], stage.carried, part) for part in stage.parts.T], axis=1))
    position = np.unravel_index(np.arange(len(grid)), grid.shape) if grid.shape else ()
    thresholds = [levels[k] for levels, k in zip(grid.levels, position, strict=True)]

    def times_of(vectors: Integers, shown: slice | Integers = slice(None)) -> Floats:
        return path_latency(
            grid.stages, [t[vectors] for t in thresholds], [p[vectors] for p in parts],
            sample.input_tokens[shown], sample.output_tokens[shown], sample.scores[shown],
            None if sample.able is None else sample.able[shown], sample.gate_tokens, sample.scorer_seconds,
        )  # fmt: skip

    latency = np.full(len(grid), np.inf)
    vectors = np.flatnonzero(carried)
    for most in (_AT_FIRST, _AT_LAST):
        count = min(most, len(sample))
        times = times_of(vectors, ((np.arange(count) + 0.5) / count * len(sample)).astype(np.int64))
        kth = min(count - 1, int(percentile / 100 * count))
        seconds = np.partition(times, kth, axis=1)[:, kth]
        if most == _AT_LAST:
            latency[vectors] = seconds
            break
        best_first = np.argsort(-estimate[vectors], kind="stable")
        least = np.empty(len(vectors))
        least[best_first] = np.minimum.accumulate(seconds[best_first])
        vectors = vectors[seconds <= _HARDLY_SLOWER * least]
    return latency, times_of


def _stages(
    plan: Plan,
    live: Sequence[int],
    thresholds: Sequence[float | None],
    shares: tuple[Floats, Floats],
    rates: Floats,
    placed: Sequence[_Placed],
) -> list[PlanStage]:
    """The plan's stages with other thresholds; `shares` are of the requests that each serves and that pass it by."""
    stages = list(plan.stages)
    for j, model in enumerate(live):
        level = np.interp(rates[j], placed[j].carried, placed[j].levels)
        changed = {
            "threshold": thresholds[model],
            "reach": float(shares[0][j]),
            "skipped": float(shares[1][j]),
            "p95_ms": float(level) * 1e3,
            "latency": None,  # the closed form knows no percentile of first tokens
            "utilization": document.utilization(float(rates[j]), float(placed[j].carried[-1])),
        }
        stages[model] = PlanStage(**(dict(stages[model]) | changed))
    return stages
