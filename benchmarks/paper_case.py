"""The paper's case study, on our cost model: DeepSeek 7B, 70B and 671B (int4) on 32 H100.

Trace 1 at a quality of 90 sends 100 %, 94 % and 50 % of the requests to the three models and gives them
4, 8 and 20 GPUs, the middle one as (DP 2, TP 4); (DP 4, TP 2) in its place costs 33.7 % (arXiv 2506.04203).
Neither rates nor the 70B's precision are published. For both precisions this finds the rate at which the
paper's objective (the slowest stage's p95) gives about that allocation, and says there

* what each uniform (DP, TP) on the middle model's GPUs costs against the replicas that were chosen;
* what each costs against the best of them on the paper's own 8 GPUs.

    python benchmarks/paper_case.py

In bf16 the 70B leaves a TP2 replica of 2 x 80 GB a cache of 4,500 tokens, less than the longest requests: the
paper's wrong shape cannot serve them, and the wrong one that can, TP8, costs 15 to 60 %. In fp8 TP2 can, and costs
that.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cascadia_api.cascade import TokenLengths
from cascadia_solver.allocation import max_stage_allocation
from cascadia_solver.catalogue.gpus import gpu_facts
from cascadia_solver.catalogue.models import model_facts
from cascadia_solver.lengths import length_profile
from cascadia_solver.operating_point import load_curves
from cascadia_solver.parallelism import ReplicaSet, StageTable, latency_levels, useful_options
from cascadia_solver.shapes import ReplicaOption, replica_options
from cascadia_solver.simulation import StageReplicas, simulate_stage
from cascadia_solver.workload import log_normal_lengths, poisson_arrivals

Floats = NDArray[np.float64]

MODELS = (
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "bf16"),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", None),
    ("deepseek-ai/DeepSeek-R1", "int4"),
)
PRECISIONS = ("bf16", "fp8")
"""Of the 70B."""
REACH = (1.0, 0.94, 0.5)
GPUS = 32
PAPER = (4, 8, 20)
PENALTIES = (0.15, 0.60)
"""What a wrong shape of the middle model should cost."""
INPUTS, OUTPUTS = TokenLengths(mean=1155, p95=3100), TokenLengths(mean=211, p95=500)
"""The Azure conversation trace of 2023."""
REQUESTS = 10_000


@dataclass(frozen=True, slots=True)
class Case:
    """One rate.

    Attributes:
        precision: Of the middle model.
        rate: Requests per second.
        gpus: Of each model.
        shapes: Replicas of each model, as "2 x TP4xPP1".
        forced: How much slower the middle model is with each uniform (DP, TP) on all its GPUs than with the
            replicas chosen, as a share; infinite where that cannot keep up or cannot hold the longest requests.
        on_papers_gpus: How much slower each uniform (DP, TP) on the paper's 8 GPUs is than the best of them.
    """

    precision: str
    rate: float
    gpus: tuple[int, ...]
    shapes: tuple[str, ...]
    forced: dict[str, float]
    on_papers_gpus: dict[str, float]

    @property
    def distance(self) -> int:
        """Most GPUs by which one model's share is off the paper's."""
        return max(abs(have - paper) for have, paper in zip(self.gpus, PAPER, strict=True))

    @property
    def wrong_shape_costs(self) -> bool:
        """Whether some wrong shape costs what it should, and on the paper's GPUs its own shape is the best."""
        least, most = PENALTIES
        wrong = [*self.forced.values(), *self.on_papers_gpus.values()]
        return self.on_papers_gpus["DP2 TP4"] == 0.0 and any(least <= penalty <= most for penalty in wrong)


@cache
def _lengths() -> tuple[Floats, Floats]:
    random = np.random.default_rng(1)
    return (
        random.permutation(log_normal_lengths(INPUTS, REQUESTS)),
        random.permutation(log_normal_lengths(OUTPUTS, REQUESTS)),
    )


@cache
def _options(model: int, precision: str) -> tuple[ReplicaOption, ...]:
    name, its_own = MODELS[model]
    gpu = gpu_facts("H100-SXM-80GB")
    return tuple(replica_options(model_facts(name), gpu, its_own or precision, max_gpus=GPUS))


@cache
def _table(model: int, precision: str) -> StageTable:
    profile = length_profile(*_lengths())
    options = useful_options(_options(model, precision), profile, 95)
    curves = load_curves([option.step for option in options], [profile], 95)
    return StageTable(options, curves, latency_levels([curves]), GPUS, 1)


def case_at(rate: float, precision: str) -> Case | None:
    """The paper's inner level at one rate; None if 32 GPUs do not carry it."""
    rates = [rate * share for share in REACH]
    staged = [_table(model, precision) for model in range(len(MODELS))]
    tables = [table.latency_by_gpus(0, share) for table, share in zip(staged, rates, strict=True)]
    found = max_stage_allocation(tables, [GPUS])
    if found is None:
        return None
    gpus = _all_used(found.gpus, tables)
    sets = [table.replicas(0, share, count) for table, share, count in zip(staged, rates, gpus, strict=True)]
    shapes = tuple(" + ".join(f"{n} x {o.shape}" for o, n in zip(s.options, s.counts, strict=True)) for s in sets)
    uniform = _uniform(precision, PAPER[1], rates[1])
    best = min(uniform.values())
    return Case(
        precision=precision,
        rate=rate,
        gpus=tuple(gpus),
        shapes=shapes,
        forced=_slower(_uniform(precision, gpus[1], rates[1]), _chosen_p95(sets[1], rates[1])),
        on_papers_gpus=_slower(uniform, best),
    )


def _all_used(gpus: Sequence[int], tables: Sequence[Floats]) -> list[int]:
    """The paper uses every GPU: what the slowest stage cannot use goes to the others, one step at a time."""
    result = list(gpus)
    while True:
        left = GPUS - sum(result)
        steps = [
            (float(table[count]), stage, more)
            for stage, (table, count) in enumerate(zip(tables, result, strict=True))
            for more in range(1, left + 1)
            if table[count + more] < table[count]
        ]
        if not steps:
            return result
        slowest = max(latency for latency, _, _ in steps)
        _, stage, more = min(step for step in steps if step[0] == slowest)
        result[stage] += more


def _chosen_p95(chosen: ReplicaSet, rate: float) -> float:
    own = [option.step for option, count in zip(chosen.options, chosen.counts, strict=True) for _ in range(count)]
    weights = [share for share, count in zip(chosen.rates, chosen.counts, strict=True) for _ in range(count)]
    return _p95(StageReplicas(own, weights), rate)


def _uniform(precision: str, gpus: int, rate: float) -> dict[str, float]:
    """Simulated p95 of the middle model on all of so many GPUs, by uniform (DP, TP), s."""
    found = {}
    for option in _options(1, precision):
        count = gpus // option.gpus
        if option.shape.pipeline_parallel == 1 and count * option.gpus == gpus:
            replicas = StageReplicas([option.step] * count, [1.0] * count)
            found[f"DP{count} TP{option.shape.tensor_parallel}"] = _p95(replicas, rate)
    return found


def _slower(seconds: dict[str, float], base: float) -> dict[str, float]:
    return {shape: p95 / base - 1.0 for shape, p95 in seconds.items()}


def _p95(replicas: StageReplicas, rate: float) -> float:
    inputs, outputs = _lengths()
    arrivals = poisson_arrivals(rate, REQUESTS, np.random.default_rng(2))
    times = simulate_stage(replicas, arrivals, inputs, outputs)
    return np.inf if times.saturated else float(np.quantile(times.finish - arrivals, 0.95))


def closest(rates: Sequence[float], precision: str) -> Case:
    """The rate whose allocation is about the paper's, where a wrong shape costs what it should if anywhere."""
    cases = [case for case in (case_at(rate, precision) for rate in rates) if case is not None]
    return min(cases, key=lambda case: (max(0, case.distance - 4), not case.wrong_shape_costs, case.distance))


def main() -> int:
    """Print the case as JSON lines."""
    lines = []
    for precision in PRECISIONS:
        case = closest(np.geomspace(6, 14, 40).tolist(), precision)
        print(f"70B in {precision}, {case.rate:.2f} requests/s: {case.gpus} GPUs as {case.shapes}", file=sys.stderr)
        named = f"paper's case, 70B in {precision}"
        lines.append((f"{named}: GPUs off (4, 8, 20)", float(case.distance), "GPUs", 4.0, case.distance <= 4))
        for where, base, penalties in (
            (f"its {case.gpus[1]} GPUs", case.shapes[1], case.forced),
            (f"the paper's {PAPER[1]} GPUs", "the best", case.on_papers_gpus),
        ):
            lines += [
                (f"{named}: {shape} on {where} against {base}", penalty, "share slower", None, None)
                for shape, penalty in penalties.items()
            ]
        holds = case.wrong_shape_costs
        lines.append((f"{named}: DP2 TP4 is best on 8 GPUs, a wrong shape costs 15 to 60 %", holds, "", 1.0, holds))
    for name, value, unit, bar, holds in lines:
        figure = round(float(value), 4) if np.isfinite(value) else "cannot serve"
        print(json.dumps({"name": name, "value": figure, "unit": unit, "bar": bar, "holds": holds}))
    return 0 if all(holds is not False for *_, holds in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
