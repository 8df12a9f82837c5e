"""How far the cost model is off on published measurements that it was never fitted to.

`published_runs.csv` holds them, each with its source: serving benchmarks of SGLang, vLLM and NVIDIA's
NIM at a concurrency or a rate, and a few batches that were timed without a server. Every run is
predicted by `prediction.predict`, the code behind ``cascadia predict``, with the factors as committed.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cascadia_solver.catalogue.gpus import GpuFacts, gpu_facts
from cascadia_solver.catalogue.models import ModelFacts, model_facts
from cascadia_solver.factors import Factors, factors_for
from cascadia_solver.prediction import predict
from cascadia_solver.roofline import CostSource, Shape

__all__ = ["PublishedRun", "load_published", "published_errors", "published_table"]

Floats = npt.NDArray[np.float64]
_FILE = Path(__file__).with_name("published_runs.csv")
_SEED, _DRAWN = 11, 1000


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """One measurement.

    Attributes:
        source: Who published it; the file's comments say where.
        engine: sglang, vllm or trtllm.
        model: The catalogue's facts.
        gpu: The GPU.
        shape: Degrees of parallelism.
        precision: Of the weights.
        clients: Requests in flight, or None at a rate.
        rate: Arrivals/s, or None with clients.
        inputs: Mean prompt, tokens.
        outputs: Mean answer, tokens.
        uniform: Whether lengths are drawn evenly from 0 to twice their means; else they do not vary.
        prefix_hit: Share of prompts found in the prefix cache, percent.
        first_token: Time to first token, s; None where it was not published.
        end_to_end: s.
    """

    source: str
    engine: str
    model: ModelFacts
    gpu: GpuFacts
    shape: Shape
    precision: str
    clients: int | None
    rate: float | None
    inputs: float
    outputs: float
    uniform: bool
    prefix_hit: float
    first_token: float | None
    end_to_end: float


def load_published(path: Path = _FILE) -> list[PublishedRun]:
    """Read the file.

    Args:
        path: By default the one beside this module.
    """
    with path.open(newline="") as lines:
        return [_run(row) for row in csv.DictReader(line for line in lines if not line.startswith("#"))]


def _run(row: Mapping[str, str]) -> PublishedRun:
    first = float(row["first_token_ms"]) / 1e3 if row["first_token_ms"] else None
    if row["end_to_end_ms"]:
        end_to_end = float(row["end_to_end_ms"]) / 1e3
    elif first is None:
        raise ValueError(f"neither end_to_end_ms nor first_token_ms in {dict(row)}")
    else:
        end_to_end = first + (float(row["output"]) - 1.0) * float(row["per_token_ms"]) / 1e3
    return PublishedRun(
        source=row["source"],
        engine=row["engine"],
        model=model_facts(row["model"]),
        gpu=gpu_facts(row["gpu"]),
        shape=Shape(int(row["tensor_parallel"]), 1),
        precision=row["precision"],
        clients=int(row["clients"]) if row["clients"] else None,
        rate=float(row["rate"]) if row["rate"] else None,
        inputs=float(row["input"]),
        outputs=float(row["output"]),
        uniform=row["lengths"] == "uniform",
        prefix_hit=float(row["prefix_hit"]),
        first_token=first,
        end_to_end=end_to_end,
    )


def published_errors(runs: Sequence[PublishedRun], source: Callable[[PublishedRun, Factors], CostSource]) -> Floats:
    """Relative errors of end-to-end latency and time to first token, [n, 2]; NaN where not published.

    Args:
        runs: Measurements.
        source: The cost source of a run, given its GPU's factors under its engine.
    """
    errors = np.full((len(runs), 2), np.nan)
    for index, run in enumerate(runs):
        prompts, answers = _lengths(run)
        longest = int((prompts + answers).max())
        made = predict(
            replace(run.model, context_window=max(run.model.context_window, longest)),
            run.gpu,
            run.shape,
            run.precision,
            prompts,
            answers,
            concurrency=run.clients,
            rate=run.rate,
            source=source(run, factors_for(run.gpu, run.engine)),
            prefix_cache_hit=run.prefix_hit,
        )
        if made.e2e is None or made.ttft is None:
            raise ValueError(f"{run.model.name} on {run.shape} of {run.gpu.name} {made.reason}")
        errors[index, 0] = made.e2e.p50_ms / 1e3 / run.end_to_end - 1.0
        if run.first_token is not None:
            errors[index, 1] = made.ttft.p50_ms / 1e3 / run.first_token - 1.0
    return errors


def _lengths(run: PublishedRun) -> tuple[Floats, Floats]:
    if not run.uniform:
        return np.array([run.inputs]), np.array([run.outputs])
    shares = np.random.default_rng(_SEED).uniform(0.0, 2.0, (2, _DRAWN))
    return np.maximum(np.round(run.inputs * shares[0]), 1.0), np.maximum(np.round(run.outputs * shares[1]), 1.0)


def published_table(runs: Sequence[PublishedRun], errors: Floats, *, each: bool = False) -> str:
    """Median absolute errors, and medians with their signs, by GPU and by source; every run if asked."""
    lines: list[str] = []
    if each:
        for run, (end, first) in zip(runs, errors, strict=True):
            load = f"{run.clients} clients" if run.clients is not None else f"{run.rate:g}/s"
            what = f"{run.model.name.split('/')[-1][:24]} {run.precision} {run.shape} {run.gpu.name.split('-')[0]}"
            lines.append(
                f"{run.source[:20]:<20} {run.engine:<7} {what:<46} {run.inputs:>5.0f}/{run.outputs:<5.0f} {load:>12} "
                f"{100.0 * end:>+7.0f} {100.0 * first:>+7.0f}"
            )
    lines.append(f"{'':<40} {'runs':>5} {'E2E %':>7} {'signed':>7} {'TTFT %':>7} {'signed':>7}")
    for heading, key in (("", _gpu), ("  ", _source)):
        for name in sorted({key(run) for run in runs}):
            own = errors[[key(run) == name for run in runs]]
            lines.append(f"{heading + name:<40} {len(own):>5} {_medians(own[:, 0])} {_medians(own[:, 1])}")
    lines.append(f"{'all':<40} {len(runs):>5} {_medians(errors[:, 0])} {_medians(errors[:, 1])}")
    return "\n".join(lines)


def _gpu(run: PublishedRun) -> str:
    return run.gpu.name


def _source(run: PublishedRun) -> str:
    return f"{run.source} {run.gpu.name.split('-')[0]} {run.engine}"


def _medians(errors: Floats) -> str:
    known = 100.0 * errors[~np.isnan(errors)]
    if not len(known):
        return f"{'-':>7} {'-':>7}"
    return f"{float(np.median(np.abs(known))):>7.1f} {float(np.median(known)):>+7.1f}"
