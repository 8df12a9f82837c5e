"""The planner: the whole bi-level search, from inputs to a plan.

Outer level: every threshold vector of every choice of stages is replayed on the calibration set
(quality and its simultaneous bound) and on the traffic (load of each stage), and screened in closed
form. Inner level: for the best of them, the best replicas for every number of GPUs, and the allocation
for the end-to-end objective. Finalists are simulated request by request on the same draws; a local
search by simulation takes the last steps, and the paper's MILP certifies the exact inner search.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from cascadia_api.errors import InfeasibleError, PlanningTimeoutError, Shortfall
from cascadia_api.plan import Plan, PlanAlternative, PlanSolver
from cascadia_solver import plan_document as document
from cascadia_solver.allocation import max_stage_allocation
from cascadia_solver.certification import QualityStudy, estimate_quality
from cascadia_solver.certified_vectors import certified
from cascadia_solver.design import Design, Route
from cascadia_solver.evaluation import Evaluation
from cascadia_solver.frontier_simulation import FrontierPlan, simulated_frontier
from cascadia_solver.infeasible import latency_out_of_reach, quality_out_of_reach, too_few_gpus
from cascadia_solver.inputs import SOLVER_VERSION, PlanningInputs, Traffic, inputs_id, traffic_of
from cascadia_solver.ladder import ladder
from cascadia_solver.milp import MilpResult, SolverName, solve_allocation
from cascadia_solver.replay import stage_loads, threshold_grids
from cascadia_solver.screened_simulation import corrected
from cascadia_solver.search import Problem, candidates, design_route, lower_bound, pool_choices, screen_all
from cascadia_solver.selection import best_of, confirmed, improve, simulate_finalists, simulated
from cascadia_solver.sites import find_sites, pool_budgets
from cascadia_solver.sources import certainty
from cascadia_solver.workload import RequestSample

__all__ = ["PlanningInputs", "plan_cascade"]

_LEAST_SOLVER_SECONDS = 1.0
_RETRY = "plan again; the first planning after an installation also compiles the planner"
_MILP_TOLERANCE = 1e-6
_NO_GAP = 1e-6
_SLOW = 95.0
_OTHER_DRAW = 1_000_003
_CONFIRMING = 40_000
"""Requests of the simulation that confirms latency targets: the noise of a p95 is half that of 10,000."""

Progress = Callable[[str, float], None]


def plan_cascade(
    inputs: PlanningInputs,
    *,
    deadline_seconds: float = 60.0,
    progress: Progress | None = None,
    solver: SolverName = "CBC",
) -> Plan:
    """Make the best plan that the inputs allow.

    Args:
        inputs: What to plan from.
        deadline_seconds: Wall time after which the best plan so far is returned, marked `TimedOut`.
        progress: Told what is being done and the share that is done, 0 to 1.
        solver: What solves the MILP that certifies the allocation.

    Returns:
        The plan. The same inputs give the same plan, but for the time it took and after a time-out.

    Raises:
        InputError: The inputs are wrong or contradict each other.
        InfeasibleError: No plan can do what the manifest asks for; says what is missing.
        PlanningTimeoutError: The deadline came before it was known whether one can.
    """
    started = _cpu_seconds()
    ends = time.monotonic() + deadline_seconds
    tell = progress or (lambda _what, _share: None)

    def expired() -> bool:
        return time.monotonic() >= ends

    tell("matching traffic and calibration", 0.0)
    spec = inputs.cascade.spec
    traffic = traffic_of(inputs)
    tell("replaying threshold vectors", 0.1)
    problem = _problem(inputs, traffic)
    tell("screening", 0.3)
    screened = screen_all(problem, expired, lambda share: tell("screening", 0.3 + 0.3 * share))
    screened = corrected(problem, screened, len(spec.models))
    problem, screened = certified(problem, screened)
    designs = candidates(problem, screened, expired, lambda share: tell("allocating GPUs", 0.6 + 0.2 * share))
    if not designs:
        if expired():
            raise PlanningTimeoutError(f"no plan was found within {deadline_seconds:g} s; there may be one: {_RETRY}")
        raise _no_design(inputs, traffic, problem)
    # A slow request's latency, as far as it is known before anything is simulated.
    problem = replace(problem, settle_seconds=designs[0].path_percentile(_SLOW))
    tell("simulating finalists", 0.8)
    models = len(spec.models)
    finalists = simulate_finalists(problem, designs, models, expired)
    evaluations = improve(problem, finalists, models, expired)
    tell("confirming latency targets", 0.87)
    evaluations = confirmed(problem, evaluations, lambda: _larger_sample(inputs), models, expired)
    best = best_of(problem, evaluations)
    if problem.cheapest and best.excess(problem.targets, deviations=best.deviations) > 0 and not expired():
        # Before the targets are said to be out of reach: the fastest designs, whatever they cost.
        fastest = replace(problem, objective=problem.objective.model_copy(update={"minimize": "Latency"}))
        more = simulate_finalists(fastest, candidates(fastest, screened, expired, lambda _: None), models, expired)
        more = improve(problem, [*evaluations, *improve(fastest, more, models, expired)], models, expired)
        evaluations = confirmed(problem, more, lambda: _larger_sample(inputs), models, expired)
        best = best_of(problem, evaluations)
    if best.excess(problem.targets, deviations=best.deviations) > 0:
        missed = latency_out_of_reach(best, problem.targets, deviations=best.deviations)
        if expired():
            raise PlanningTimeoutError(
                f"no plan within the latency targets was found in {deadline_seconds:g} s; there may be one "
                f"(of the best so far: {missed.nearest}): {_RETRY}"
            )
        raise missed
    tell("certifying", 0.9)
    certificate = _certify(best.design, problem, max(_LEAST_SOLVER_SECONDS, ends - time.monotonic()), solver)
    alternatives = _alternatives(problem, evaluations, best, [m.name for m in spec.models], expired)
    timed_out = expired()
    tell("simulating the frontier", 0.95)
    frontier = simulated_frontier(problem, screened, evaluations, best, models, expired)
    tell("writing the plan", 0.99)
    plan = _plan(inputs, traffic, problem, frontier, best, alternatives)
    found = _solver(best.design, problem, certificate, timed_out, _cpu_seconds() - started)
    warnings = _warnings(inputs, traffic, problem, best, certificate, timed_out)
    tell("done", 1.0)
    return plan.model_copy(update={"solver": found, "warnings": warnings})


def _larger_sample(inputs: PlanningInputs) -> RequestSample:
    """More requests of the same traffic, drawn independently of those that designs are chosen on."""
    other = replace(inputs, seed=inputs.seed + _OTHER_DRAW)
    return traffic_of(other, requests=_CONFIRMING).sample


def _problem(inputs: PlanningInputs, traffic: Traffic) -> Problem:
    """Set the problem up; raises `InfeasibleError` where the models that must have a stage fit nowhere."""
    spec = inputs.cascade.spec
    budgets = pool_budgets(spec, inputs.available_gpus, inputs.free_by_node)
    if not any(budget.gpus for budget in budgets):
        raise InfeasibleError(
            "InsufficientGPUs",
            f"no GPU is available: {', '.join(f'pool {b.name} has 0' for b in budgets)}; free some, or add a pool",
            shortfalls=[Shortfall(f"GPUs of pool {b.name}", 1, 0) for b in budgets],
        )
    percentile = float(spec.objective.percentile)
    sites = find_sites(spec, traffic.facts, budgets, traffic.sample, percentile=percentile, sources=inputs.sources)
    forced = {index for index, model in enumerate(spec.models) if model.min_replicas}
    priced = all(budget.price is not None for budget in budgets)
    fitting = {model for model, _ in sites.at}
    usable = bool(fitting) and fitting >= forced
    study = _study(inputs, traffic, fitting if usable else set(range(len(spec.models))))
    problem = Problem(
        objective=spec.objective,
        budgets=budgets,
        prices=[budget.price if priced and budget.price is not None else 1.0 for budget in budgets],
        priced=priced,
        sample=traffic.sample,
        sites=sites,
        study=study,
        qualities=study.qualities,
        seed=inputs.seed,
    )
    if not usable:
        raise _no_design(inputs, traffic, problem)
    return problem


def _study(inputs: PlanningInputs, traffic: Traffic, models: set[int]) -> QualityStudy:
    spec = inputs.cascade.spec
    grids = threshold_grids(
        traffic.table,
        candidates=models,
        forced={index for index, model in enumerate(spec.models) if model.min_replicas},
        max_escalations=spec.routing.max_escalations,
    )
    # Dealt into folds in one way for good: another sample of the traffic is no reason for other thresholds.
    return estimate_quality(traffic.table, grids, weights=traffic.demand.row_weights)


def _no_design(inputs: PlanningInputs, traffic: Traffic, problem: Problem) -> InfeasibleError:
    """Why nothing within the quality floor fits: no vector of any models keeps it, or the GPUs are too few."""
    spec = inputs.cascade.spec
    study = _study(inputs, traffic, set(range(len(spec.models))))
    anything = [np.zeros(len(grid)) for grid in study.grids]
    nothing = [np.empty(0, dtype=np.int64) for _ in study.grids]
    best = study.certified(
        anything, nothing, floor=problem.floor, confidence=float(spec.objective.confidence), seed=inputs.seed
    )
    if max(float(quality.assured.max()) for quality in best) < problem.floor:
        return quality_out_of_reach(spec.objective, study, best)
    return too_few_gpus(replace(problem, study=study, qualities=best), spec, traffic.facts, inputs.sources)


def _certify(plan: Design, problem: Problem, seconds: float, solver: SolverName) -> MilpResult:
    """Hold the exact min-max search of the plan's own tables against the MILP.

    Raises:
        ArithmeticError: They disagree, which neither data nor input can cause.
    """
    tables, pools = plan.routed.latencies, plan.route.pools
    exact = max_stage_allocation(tables, problem.limits, pools)
    result = solve_allocation(tables, problem.limits, pools, deadline_seconds=seconds, solver=solver)
    agree = result.status != "Optimal" or (
        exact is not None and abs(result.latency - exact.latency) <= _MILP_TOLERANCE * exact.latency
    )
    if not agree:
        raise ArithmeticError(f"the exact search found {exact}, the MILP {result}")
    return result


def _alternatives(
    problem: Problem,
    evaluations: Sequence[Evaluation],
    best: Evaluation,
    names: Sequence[str],
    expired: Callable[[], bool],
) -> list[PlanAlternative]:
    """Every single model, and the best design of each other choice of stages that was simulated."""
    result: list[PlanAlternative] = []
    for g, grid in enumerate(problem.grids):
        if len(grid.stages) == 1 and grid.stages != best.design.route.stages and not expired():
            result.append(_single(problem, g, best, names))
    others: dict[tuple[int, ...], Evaluation] = {}
    for evaluation in evaluations:
        stages = evaluation.design.route.stages
        if len(stages) > 1 and stages != best.design.route.stages:
            kept = others.get(stages)
            others[stages] = evaluation if kept is None else best_of(problem, [kept, evaluation])
    result += [
        document.alternative(document.route_name(stages, names), problem, other, best)
        for stages, other in others.items()
    ]
    return result[:16]


def _single(problem: Problem, g: int, best: Evaluation, names: Sequence[str]) -> PlanAlternative:
    grid, quality = problem.grids[g], problem.qualities[g]
    name = document.route_name(grid.stages, names)
    assured, mean = float(quality.assured[0]), float(quality.mean[0])
    found = None
    for pools in pool_choices(problem, grid):
        route = Route(grid.stages, (), pools, mean, assured)
        other = design_route(problem, route)
        if other is not None and (found is None or other.estimate < found.estimate):
            found = other
    reason = ""
    if assured < problem.floor:
        what = "mean quality" if quality.bound is None else "quality bound"
        reason = f"its {what} {assured:.3f} is below the floor of {problem.floor:g}"
    if found is None:
        rate = f"{problem.sample.requests_per_second:.3g} requests/s are more than the GPUs carry"
        return PlanAlternative(name=name, quality_mean=mean, reason=f"{reason}; {rate}" if reason else rate)
    if reason:
        # Of those out for their quality only the largest model's latency is of interest: it is what a cascade saves.
        times = simulated(problem, found, len(names)) if grid.stages[0] == len(names) - 1 else None
        return document.unfit_alternative(name, problem, found, times, reason)
    return document.alternative(name, problem, simulated(problem, found, len(names)), best)


def _plan(
    inputs: PlanningInputs,
    traffic: Traffic,
    problem: Problem,
    frontier: Sequence[FrontierPlan],
    best: Evaluation,
    alternatives: Sequence[PlanAlternative],
) -> Plan:
    spec = inputs.cascade.spec
    plan, names = best.design, [model.name for model in spec.models]
    g = next(k for k, grid in enumerate(problem.grids) if grid.stages == plan.route.stages)
    overloaded = spec.objective.min_quality_overloaded
    rungs = ladder(
        plan.route.thresholds,
        [replicas.capacity for replicas in plan.replicas],
        problem.grids[g],
        problem.qualities[g],
        stage_loads(problem.grids[g], traffic.sample),
        requests_per_second=traffic.sample.requests_per_second,
        floor=problem.floor,
        overloaded=None if overloaded is None else float(overloaded),
    )
    sources = inputs.sources
    trust = certainty(
        (
            (sources[m], names[m], traffic.facts[m], problem.budgets[p].gpu, option.shape)
            for m, p, replicas in zip(plan.route.stages, plan.route.pools, plan.replicas, strict=True)
            for option in replicas.options
        ),
    )
    return Plan(
        plan_id=inputs_id(inputs, traffic.table, problem.budgets),
        cascade=inputs.cascade.metadata.name,
        thresholds=document.thresholds_of_plan(plan.route.stages, plan.route.thresholds, len(names)),
        stages=document.stages_of_plan(best, problem, names),
        ladder=document.ladder_of_plan(rungs, plan.route.stages, len(names)),
        quality=document.quality_of_plan(plan, traffic, float(spec.objective.confidence)),
        latency=document.latency_of_plan(best, inputs.cost.name, trust),
        cost_per_hour=plan.cost(problem.prices) if problem.priced else None,
        demand=document.demand_of_plan(traffic, plan.route.stages[0]),
        frontier=document.frontier_of_plan(problem, frontier, best, traffic),
        alternatives=list(alternatives),
        solver=PlanSolver(
            status="Feasible",
            objective="EndToEnd",
            gap=0.0,
            elapsed_ms=0.0,
            threshold_vectors=0,
            version=SOLVER_VERSION,
        ),
        scorer=traffic.table.scorer,
    )


def _solver(plan: Design, problem: Problem, certificate: MilpResult, timed_out: bool, seconds: float) -> PlanSolver:
    # Of latencies the search's own allocation is held against the bound: simulation may have preferred other replicas.
    value = (
        plan.cost(problem.prices) if problem.cheapest else replace(plan, sets={}).path_percentile(problem.percentile)
    )
    bound = plan.bound if plan.exhaustive and not any(problem.rooms) else lower_bound(problem, plan, value)
    gap = max(0.0, value / bound - 1) if bound > 0 else 0.0
    # On partly used nodes who gets the whole ones is tried, not proven: the bound lets every stage have them.
    proven = plan.exhaustive and certificate.status == "Optimal" and not any(problem.rooms) and gap <= _NO_GAP
    return PlanSolver(
        status="TimedOut" if timed_out else "Optimal" if proven else "Feasible",
        objective="EndToEnd",
        gap=gap,
        elapsed_ms=seconds * 1e3,
        threshold_vectors=sum(len(grid) for grid in problem.grids),
        version=SOLVER_VERSION,
    )


def _warnings(
    inputs: PlanningInputs,
    traffic: Traffic,
    problem: Problem,
    best: Evaluation,
    certificate: MilpResult,
    timed_out: bool,
) -> list[str]:
    spec, sample, table = inputs.cascade.spec, traffic.sample, traffic.table
    said = list(inputs.notes)
    if table.source == "Prior":
        said.append(
            "quality is a published prior, not measured on your traffic, and not bounded: give a calibration set"
        )
    for model, error in sorted(problem.sites.unfit.items()):
        said.append(f"planned without {spec.models[model].name}: {error}")
    lost = float((~np.isfinite(best.end_to_end)).mean())
    if lost > 0:
        said.append(
            f"{lost:.2%} of the requests have more tokens than a replica's key-value cache holds: they are refused"
        )
    elif best.saturated:
        said.append("the queue of a stage grew during the simulation: arrivals come in bursts beyond its capacity")
    last = best.design.route.stages[-1]
    refused = float(((best.design.routed.exits == last) & ~sample.taken_by(last)).mean())
    if refused > 0:
        said.append(
            f"{refused:.2%} of the requests will be refused and count as worth nothing: no later stage can take them, "
            f"and {spec.models[last].name} has {traffic.facts[last].context_window} tokens of context and can do "
            f"{', '.join(traffic.facts[last].capabilities) or 'text only'}"
        )
    if table.source == "Calibration":
        typical = float(np.median(table.output_tokens[:, traffic.demand.length_model]))
        planned = float(np.median(traffic.demand.output_tokens))
        if max(typical, planned) > 4 * min(typical, planned):
            said.append(
                f"extrapolated: the median answer has {planned:.0f} tokens, that of the calibration set {typical:.0f}"
            )
    if inputs.observed is not None and traffic.demand.row_weights is None:
        said.append(
            "too few scores were observed to tell how hard the requests are: the calibration set's mix is assumed"
        )
    if certificate.status != "Optimal":
        said.append(f"the MILP did not certify the allocation: {certificate.status} {certificate.detail}".rstrip())
    if timed_out:
        said.append("planning stopped at its deadline: this is the best plan found so far")
    return [sentence[:1024] for sentence in said[:16]]


def _cpu_seconds() -> float:
    """CPU time of this process and of the children that it waited for (the solver)."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
