"""Which models can run on which pools, and what they carry there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_api.cascade import CascadeDeploymentSpec, Model
from cascadia_api.errors import InfeasibleError, InputError, Problem, Shortfall
from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.manifest import gpu_of, model_of, precision_of
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.lengths import LengthProfile, length_profile
from cascadia_solver.operating_point import load_curves
from cascadia_solver.packing import POD_SIZES, pod_gpus, room_on
from cascadia_solver.parallelism import StageTable, latency_levels, useful_options
from cascadia_solver.roofline import CostSource
from cascadia_solver.shapes import ReplicaOption, replica_options
from cascadia_solver.workload import RequestSample

__all__ = ["PROFILE_REACHES", "PoolBudget", "Site", "Sites", "catalogue_facts", "find_sites", "pool_budgets"]

Floats = NDArray[np.float64]

PROFILE_REACHES = np.array([1.0, 0.7, 0.5, 0.35, 0.25, 0.17, 0.1, 0.05])
"""Reaches at which a later stage's table is made: the hardest so many of the requests get there."""
_PROFILED = 2500
"""About so many requests make the profiles; designs are then tabulated for all of their requests."""
_REPLICA_GPUS = 64
"""Largest replica considered, GPUs."""
_HELD = 0.999
"""Share of the requests that every replica must be able to hold."""
_PIPELINE = 8
"""Most pipeline stages where the manifest sets no limit."""


@dataclass(frozen=True, slots=True)
class PoolBudget:
    """GPUs that a plan may take from one pool.

    Attributes:
        name: Pool name.
        gpu: Its kind of GPU.
        gpus: The least of the manifest's ceiling and what is available.
        gpus_per_node: GPUs of one node.
        price: Of one GPU for one hour; None where the manifest has none.
        room: GPUs that pods of at least each of `packing.POD_SIZES` can hold; None: nodes are free as they are needed.
    """

    name: str
    gpu: GpuFacts
    gpus: int
    gpus_per_node: int
    price: float | None
    room: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Site:
    """One model on one pool.

    Attributes:
        model: Index of the model.
        pool: Index of the pool.
        options: Shapes that a replica may have.
        least_replicas: Fewest replicas if the stage is live.
        reaches: Reach of each profile of `table` [P].
        answer_tokens: Mean answer length of each profile [P].
        table: Rates carried under each profile.
        gpus_per_node: GPUs of one node.
        room: Most GPUs that replicas of at least so many GPUs can hold, by that number; None for any.
    """

    model: int
    pool: int
    options: tuple[ReplicaOption, ...]
    least_replicas: int
    reaches: Floats
    answer_tokens: Floats
    table: StageTable
    gpus_per_node: int = 8
    room: Mapping[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Sites:
    """All sites, and why models have none.

    Attributes:
        at: By (model index, pool index).
        unfit: Why a model without any site has none, by model index.
        levels: Ladder of latencies that all tables share, s.
    """

    at: Mapping[tuple[int, int], Site]
    unfit: Mapping[int, InfeasibleError]
    levels: Floats

    def pools_of(self, model: int) -> list[int]:
        """Pools on which a model can run."""
        return [pool for m, pool in self.at if m == model]


def pool_budgets(
    spec: CascadeDeploymentSpec,
    available: Mapping[str, int] | None,
    free_by_node: Mapping[str, Sequence[int]] | None = None,
) -> list[PoolBudget]:
    """The pools of a manifest with the GPUs that planning may use.

    Args:
        spec: The manifest's spec.
        available: Free GPUs by pool name; a pool that is not named has its `maxGpus`.
        free_by_node: Free GPUs of each node by pool name, where known.

    Raises:
        InputError: An unknown GPU or pool, or a negative number.
    """
    pools = spec.gpus.pools
    if unknown := sorted({*(available or ()), *(free_by_node or ())} - {pool.name for pool in pools}):
        names = ", ".join(pool.name for pool in pools)
        raise InputError(f"available GPUs name the pool {', '.join(unknown)}; the manifest has {names}")
    budgets = []
    for index, pool in enumerate(pools):
        try:
            facts = gpu_of(pool)
        except InputError as error:
            raise error.below(f"spec.gpus.pools[{index}]") from None
        free = (available or {}).get(pool.name, pool.max_gpus)
        nodes = (free_by_node or {}).get(pool.name)
        if free < 0 or min(nodes or (0,)) < 0:
            raise InputError(f"available GPUs of pool {pool.name!r} are {nodes or free}; they cannot be negative")
        per_node = pool.gpus_per_node or 8
        gpus = min([pool.max_gpus, free] + ([] if nodes is None else [sum(nodes)]))
        if nodes is None:
            nodes = [per_node] * (gpus // per_node) + [gpus % per_node]
            packed = per_node & (per_node - 1) == 0
        else:
            packed = all(node % per_node == 0 for node in nodes) and per_node & (per_node - 1) == 0
        # Whole nodes of a power of two hold all that fits by number.
        room = None if packed else room_on(nodes)
        price = None if pool.price_per_gpu_hour is None else float(pool.price_per_gpu_hour)
        budgets.append(
            PoolBudget(
                pool.name, facts, gpus, per_node, price, None if room is None else tuple(int(most) for most in room)
            )
        )
    return budgets


def catalogue_facts(spec: CascadeDeploymentSpec) -> list[ModelFacts]:
    """Facts of each model of a manifest.

    Raises:
        InputError: A model that the catalogue does not know, or whose configuration is wrong.
    """
    problems: list[Problem] = []
    facts: list[ModelFacts] = []
    for index, model in enumerate(spec.models):
        try:
            facts.append(model_of(model))
        except InputError as error:
            problems += error.below(f"spec.models[{index}]").problems
    if problems:
        raise InputError(problems)
    return facts


def find_sites(
    spec: CascadeDeploymentSpec,
    facts: Sequence[ModelFacts],
    budgets: Sequence[PoolBudget],
    sample: RequestSample,
    *,
    percentile: float,
    sources: Sequence[CostSource],
) -> Sites:
    """Tabulate every model on every pool that it may use.

    Args:
        spec: The manifest's spec.
        facts: Of its models.
        budgets: Of its pools.
        sample: The traffic.
        percentile: Of latency.
        sources: Where the step times of each model come from.
    """
    limits = [budget.gpus for budget in budgets]
    found: dict[tuple[int, int], tuple[list[ReplicaOption], list[LengthProfile]]] = {}
    answer_tokens: list[Floats] = []
    reaches: list[Floats] = []
    unfit: dict[int, InfeasibleError] = {}
    for m, model in enumerate(spec.models):
        taken = sample.taken_by(m)
        if not taken.any():
            answer_tokens.append(np.empty(0))
            reaches.append(np.empty(0))
            unfit[m] = _of_no_use(facts[m])
            continue
        longest = float(np.quantile((sample.input_tokens + sample.output_tokens[:, m])[taken], _HELD))
        profiles, tokens, served = _profiles(sample, m)
        reaches.append(served)
        answer_tokens.append(tokens)
        reasons: list[InfeasibleError] = []
        for p, budget in enumerate(budgets):
            if model.pools is not None and budget.name not in model.pools:
                continue
            try:
                options = _options(model, facts[m], budget, limits[p], longest, sources[m])
            except InfeasibleError as error:
                reasons.append(error)
                continue
            options = useful_options(options, profiles[0], percentile)
            found[m, p] = options, profiles
        if not any(key[0] == m for key in found):
            unfit[m] = reasons[0]
    curves = {
        key: load_curves([option.step for option in options], profiles, percentile)
        for key, (options, profiles) in found.items()
    }
    levels = latency_levels(list(curves.values())) if curves else np.empty(0)
    at = {}
    for key, (options, _) in found.items():
        m, p = key
        tokens = answer_tokens[m]
        least = max(1, spec.models[m].min_replicas or 0)
        at[key] = Site(
            model=m,
            pool=p,
            options=tuple(options),
            least_replicas=least,
            reaches=reaches[m],
            answer_tokens=tokens,
            table=StageTable(options, curves[key], levels, limits[p], least, room_by_replica(budgets[p], options)),
            gpus_per_node=budgets[p].gpus_per_node,
            room=room_by_replica(budgets[p], options),
        )
    return Sites(at, unfit, levels)


def _options(
    model: Model, facts: ModelFacts, budget: PoolBudget, gpus: int, longest: float, source: CostSource
) -> list[ReplicaOption]:
    """Shapes whose key-value cache holds the longest requests: routers do not look at lengths."""
    limits = model.parallelism
    pipeline = (limits.max_pipeline_parallel if limits is not None else None) or _PIPELINE
    options = replica_options(
        facts,
        budget.gpu,
        precision_of(model, facts),
        max_tensor_parallel=limits.max_tensor_parallel if limits is not None else None,
        max_pipeline_parallel=pipeline,
        gpus_per_node=budget.gpus_per_node,
        max_gpus=min(gpus, _REPLICA_GPUS),
        source=source,
    )
    room = room_by_replica(budget, options)
    if room is not None:
        least = min(options, key=lambda option: option.gpus)
        options = [option for option in options if option.gpus <= room[option.gpus]]
        if not options:
            pod, there = pod_gpus(least.gpus, budget.gpus_per_node), room[least.gpus]
            raise InfeasibleError(
                "ModelFitsNowhere",
                f"{facts.name}: its smallest replica takes {least.gpus} GPUs of pool {budget.name}, {pod} on each of "
                f"{least.gpus // pod} nodes; {budget.gpus} are free, but nodes with {pod} free ones together have "
                f"{there}: free whole nodes, or use a lower precision",
                shortfalls=[Shortfall(f"GPUs of pool {budget.name} on nodes with {pod} free", least.gpus, there)],
            )
    roomiest = max(option.step.kv_capacity_tokens for option in options)
    if roomiest < longest:
        raise InfeasibleError(
            "ModelFitsNowhere",
            f"{facts.name}: the key-value cache of no replica of at most {min(gpus, _REPLICA_GPUS)} x "
            f"{budget.gpu.name} holds the longest requests: {longest:.0f} tokens are needed, {roomiest:.0f} are "
            "there; use more or larger GPUs a replica, or a lower precision",
            shortfalls=[Shortfall("tokens in the key-value cache", longest, roomiest)],
        )
    return [option for option in options if option.step.kv_capacity_tokens >= longest]


def room_by_replica(budget: PoolBudget, options: Sequence[ReplicaOption]) -> dict[int, int] | None:
    """Most GPUs that replicas of at least so many GPUs can hold on a pool's nodes; None for any."""
    if budget.room is None:
        return None
    return {
        option.gpus: budget.room[POD_SIZES.index(pod_gpus(option.gpus, budget.gpus_per_node))] for option in options
    }


def _of_no_use(facts: ModelFacts) -> InfeasibleError:
    able = f"{facts.context_window} tokens of context, {', '.join(facts.capabilities) or 'text only'}"
    return InfeasibleError("ModelFitsNowhere", f"{facts.name}: it can take none of the requests ({able})")


def _profiles(sample: RequestSample, model: int) -> tuple[list[LengthProfile], Floats, Floats]:
    """Length profiles of the hardest requests that a model can take, by the scores of smaller models.

    Those that a smaller model cannot take count as the hardest for it.

    Returns:
        The profiles, their mean answers, and the share of all requests that each is of.
    """
    taken = sample.taken_by(model)
    ordered = sample.by_length[model]
    ordered = ordered[taken[ordered]]
    ordered = ordered[:: max(1, len(ordered) // _PROFILED)]
    inputs, outputs = sample.input_tokens[ordered], sample.output_tokens[ordered, model]
    if model == 0:
        return [length_profile(inputs, outputs)], np.array([outputs.mean()]), np.array([taken.mean()])
    count = len(sample)
    hardness = np.zeros(count)
    for smaller, scores in enumerate(sample.scores[:, :model].T):
        order = np.argsort(scores)
        hardness[order] += np.arange(count) * sample.taken_by(smaller)[order]
    ranks = np.empty(count, dtype=np.int64)
    ranks[np.argsort(hardness, kind="stable")] = np.arange(count)
    hardest = ranks[ordered]
    chosen = [hardest < max(np.min(hardest) + 1, round(reach * count)) for reach in PROFILE_REACHES]
    return (
        [length_profile(inputs[rows], outputs[rows]) for rows in chosen],
        np.array([outputs[rows].mean() for rows in chosen]),
        np.array([rows.mean() for rows in chosen]) * taken.mean(),
    )
