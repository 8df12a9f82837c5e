"""The planner's bars: CPU time, memory, growth, and quality that holds.

    python benchmarks/planner.py [--quick] [--out FOLDER]

Prints one JSON line a figure. CPU time is that of this process and of its children (the MILP solver), on one
core, after one plan has loaded the compiled code; the cold command is timed apart, with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cascadia_api.cascade import CascadeDeployment
    from cascadia_solver.planner import PlanningInputs

ROOT = Path(__file__).resolve().parents[1]
FAMILY = [
    ("small", "meta-llama/Llama-3.1-8B-Instruct", "bf16"),
    ("medium", "meta-llama/Llama-3.1-70B-Instruct", "bf16"),
    ("large", "meta-llama/Llama-3.1-405B-Instruct", "fp8"),
]
# For growth with the number of models, smallest first.
MANY = [
    ("m0", "Qwen/Qwen2.5-3B-Instruct", "bf16"),
    ("m1", "Qwen/Qwen2.5-7B-Instruct", "bf16"),
    ("m2", "Qwen/Qwen2.5-14B-Instruct", "bf16"),
    ("m3", "Qwen/Qwen2.5-32B-Instruct", "bf16"),
    ("m4", "Qwen/Qwen2.5-72B-Instruct", "bf16"),
]
ACCURACIES = {2: [0.72, 0.90], 3: [0.72, 0.86, 0.90], 4: [0.70, 0.80, 0.86, 0.90], 5: [0.66, 0.72, 0.80, 0.86, 0.90]}


def report(name: str, value: float, unit: str, bar: float | None = None, *, least: bool = False) -> bool:
    """Print one figure; the bar is the most that it may be, or the least."""
    holds = bar is None or bool(value >= bar if least else value <= bar)
    line = {"name": name, "value": round(float(value), 4), "unit": unit, "bar": bar, "holds": holds}
    print(json.dumps(line), flush=True)
    return holds


def cpu_seconds() -> float:
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def inputs(
    rate: float, pools: Sequence[tuple[str, str, int, str]], *, models: int = 3, minimize: str = "Latency"
) -> PlanningInputs:
    from benchmarks.population import draw_calibration
    from cascadia_api.cascade import CascadeDeployment
    from cascadia_solver.planner import PlanningInputs

    family = FAMILY if models == 3 else MANY[5 - models :]
    manifest = {
        "apiVersion": "cascadia.dev/v1alpha1",
        "kind": "CascadeDeployment",
        "metadata": {"name": "bench"},
        "spec": {
            "models": [
                {"name": name, "source": {"huggingFace": {"repo": repo}}, "precision": precision}
                for name, repo, precision in family
            ],
            "gpus": {
                "pools": [
                    {"name": name, "gpu": gpu, "maxGpus": count, "pricePerGpuHour": price}
                    for name, gpu, count, price in pools
                ]
            },
            "objective": {"minQuality": "0.85", "minimize": minimize},
            "workload": {
                "requestsPerSecond": f"{rate:.4f}",
                "inputTokens": {"mean": 1155, "p95": 3100},
                "outputTokens": {"mean": 211, "p95": 500},
            },
        },
    }
    table = draw_calibration(1500, 7, ACCURACIES[models], names=[name for name, _, _ in family])
    return PlanningInputs(CascadeDeployment.model_validate(manifest), table)


def h100(count: int) -> list[tuple[str, str, int, str]]:
    return [("h100", "H100-SXM-80GB", count, "2.49")]


def two_pools(count: int) -> list[tuple[str, str, int, str]]:
    """Pools in the proportion in which the three models can fill both: a stage has to fit into one of them."""
    fast = count * 3 // 8
    return [("h100", "H100-SXM-80GB", fast, "2.49"), ("a100", "A100-SXM-80GB", count - fast, "1.60")]


def needing_most(gpus: int, pools: list[tuple[str, str, int, str]], models: int = 3) -> float:
    """A rate that the cheapest plan needs at least 80 % of the GPUs for, and the fastest plan carries too."""
    from cascadia_api.errors import InfeasibleError
    from cascadia_solver.planner import plan_cascade

    low, high = 0.0, gpus * 8.0
    for _ in range(12):
        middle = (low + high) / 2
        try:
            used = plan_cascade(inputs(middle, pools, models=models, minimize="Cost")).gpus
            plan_cascade(inputs(middle, pools, models=models))
        except InfeasibleError:
            high = middle
            continue
        if used >= 0.8 * gpus:
            return middle
        low = middle
    return low


def cpu_of(plan: Callable[[], object], repeats: int) -> float:
    """Least CPU time of some runs: what is above it is the machine's."""
    plan()
    spent = []
    for _ in range(repeats):
        started = cpu_seconds()
        for _ in range(3):  # those of children come in ticks of 10 ms
            plan()
        spent.append((cpu_seconds() - started) / 3)
    return min(spent)


def speed(repeats: int) -> bool:
    from cascadia_solver.planner import plan_cascade
    from cascadia_solver.replanning import thresholds_alone
    from cascadia_solver.rethreshold import replan_thresholds

    good = True
    cases = [
        ("32 H100", 32, h100(32), 0.2),
        ("1024 H100", 1024, h100(1024), 1.0),
        ("512 GPUs in two pools", 512, two_pools(512), 2.0),
    ]
    for name, gpus, pools, bar in cases:
        rate = needing_most(gpus, pools)
        for minimize in ("Latency", "Cost"):
            given = inputs(rate, pools, minimize=minimize)
            plan = plan_cascade(given)
            spent = cpu_of(partial(plan_cascade, given), repeats)
            good &= report(f"plan {name}, {minimize}, {rate:.0f} requests/s: CPU", spent, "s", bar)
            good &= report(f"plan {name}, {minimize}: GPUs in use", plan.gpus / gpus, "share", 0.8, least=True)
            vectors = plan.solver.threshold_vectors
            good &= report(f"plan {name}, {minimize}: threshold vectors", vectors, "", 1000, least=True)
            report(f"plan {name}, {minimize}: gap to the lower bound", plan.solver.gap, "share")
    rate = needing_most(32, h100(32))
    plan = plan_cascade(inputs(rate, h100(32)))
    changed = cycle([inputs(share * rate, h100(32)) for share in (1.0, 0.98, 1.01, 0.95, 0.9)])
    report("thresholds alone at another rate on a fixed placement, chosen: CPU",
           cpu_of(lambda: replan_thresholds(next(changed), plan), 3 * repeats), "s")  # fmt: skip
    spent = cpu_of(lambda: thresholds_alone(next(changed), plan), 3 * repeats)
    good &= report("thresholds alone at another rate, chosen and 10,000 requests simulated: CPU", spent, "s", 0.02)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return good & report("peak memory", peak, "MiB", 500)


def plan_aims(draws: int) -> list[tuple[int, CascadeDeployment]]:
    """What whole plans are drawn for, and how often: what is minimised decides which thresholds are certified."""
    from cascadia_api.cascade import LatencyTarget

    cost, latency = (inputs(4.0, h100(16), minimize=minimize).cascade for minimize in ("Cost", "Latency"))
    aim = cost.spec.objective.model_copy(
        update={"targets": [LatencyTarget(metric="EndToEnd", percentile=95, milliseconds=20_000)]}
    )
    within = cost.model_copy(update={"spec": cost.spec.model_copy(update={"objective": aim})})
    return [(draws, cost), (draws // 4, within), (draws // 4, latency)]


def cold_command() -> None:
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first command, compilation included", "second command"):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(
                [sys.executable, "-m", "cascadia_cli.main", "plan", str(ROOT / "examples" / "chat.yaml"),
                 "--calibration", str(ROOT / "examples" / "chat-calibration.jsonl"), "-o", "json"],
                check=True, stdout=subprocess.DEVNULL, env={**os.environ, "NUMBA_CACHE_DIR": cache},
            )  # fmt: skip
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            report(f"cascadia plan, {name}: CPU", spent, "s")


def growth(out: Path, repeats: int, *, quick: bool) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from cascadia_solver.planner import plan_cascade

    sizes = [32, 128, 512] if quick else [16, 32, 64, 128, 256, 512, 1024]
    counts = [2, 3, 4] if quick else [2, 3, 4, 5]

    def spent(gpus: int, models: int) -> float:
        given = inputs(needing_most(gpus, h100(gpus), models), h100(gpus), models=models)
        value = cpu_of(lambda: plan_cascade(given), repeats)
        report(f"growth: {gpus} GPUs, {models} models: CPU", value, "s")
        return value

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    left.plot(sizes, [spent(gpus, 3) for gpus in sizes], marker="o")
    left.set(xscale="log", xlabel="GPUs (3 models)", ylabel="CPU of a full plan, s")
    left.set_xticks(sizes, [str(size) for size in sizes])
    left.minorticks_off()
    right.plot(counts, [spent(128, models) for models in counts], marker="o", color="tab:orange")
    right.set(xlabel="models (128 GPUs)", xticks=counts)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_ylim(0, None)
    figure.tight_layout()
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / "planner-growth.png", dpi=130)
    plt.close(figure)
    print(f"wrote {out / 'planner-growth.png'}", file=sys.stderr)


def main(arguments: Any = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats and draws")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="where the plot goes")
    parser.add_argument("--only", choices=["speed", "quality", "plans", "growth", "cold"], help="one part")
    options = parser.parse_args(arguments)
    # One core, before numpy is loaded.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    sys.path.insert(0, str(ROOT))
    from benchmarks.planner_quality import generated_draws, public_splits, whole_plans

    parts: dict[str, Callable[[], bool | None]] = {
        "speed": lambda: speed(2 if options.quick else 5),
        "quality": lambda: generated_draws(report, 100 if options.quick else 1000) & public_splits(report),
        "plans": lambda: whole_plans(report, plan_aims(40 if options.quick else 1000)),
        "growth": lambda: growth(options.out, 1 if options.quick else 3, quick=options.quick),
        "cold": cold_command,
    }
    results = [part() for name, part in parts.items() if options.only in (None, name)]
    return 0 if all(result is not False for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
