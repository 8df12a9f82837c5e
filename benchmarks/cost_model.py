"""How far the cost model is off on measured engines of architectures that it was not fitted to.

    python benchmarks/cost_model.py [--csv FILE] [--quick] [--engine-unknown]
    python benchmarks/cost_model.py --published [--each]

Each architecture is left out once, all its checkpoints and all GPUs together; the factors are fitted
to the rest as `fit_cost_model` does, and its rows are predicted by `prediction.predict` at the
measured concurrency: the code behind ``cascadia predict``. Figures: for each GPU the mean over the
architectures of their median absolute errors, the median of these, and the 90th
percentiles over the architectures and over all rows. One JSON line a figure, then tables on stderr.

``--quick`` predicts by the closed form instead of by simulation. ``--engine-unknown`` predicts all rows
as SGLang's, as somebody would who does not know what an engine was.

``--published`` holds the factors as committed against `published_runs.csv` instead: measurements of others,
none of which is used for fitting; ``--each`` shows every one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from fit_cost_model import Fit, architectures, cell_medians, factors_at, left_out
from published_runs import PublishedRun, load_published, published_errors, published_table
from silicon_table import GPU_NAMES, Measurement, load, table_path

from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.closed_loop import closed_loop
from cascadia_solver.factors import DEFAULT_ENGINE, Factors
from cascadia_solver.prediction import predict
from cascadia_solver.roofline import Roofline, Shape, step_model
from cascadia_solver.steptime import StepModel

Floats = npt.NDArray[np.float64]
METRICS = ("end-to-end", "time-to-first-token", "time-per-output-token")
BARS = {
    ("H100-SXM-80GB", "end-to-end"): 10.0,
    ("H200-SXM-141GB", "end-to-end"): 20.0,
    ("B200-SXM-180GB", "end-to-end"): 20.0,
}
FIRST_TOKEN_BAR = 30.0
_SEED, _DRAWN = 7, 1000


@dataclass(frozen=True, slots=True)
class _AsMeasured(Roofline):
    """The roofline, with the cache's precision and the unlimited batch of the measured engine.

    Attributes:
        cache: Precision of the key-value cache.
        clients: Least batch limit.
    """

    cache: str = "bf16"
    clients: int = 1

    def step_model(
        self,
        model: ModelFacts,
        gpu: GpuFacts,
        shape: Shape,
        precision: str,
        *,
        gpus_per_node: int = 8,
        chunk_tokens: int | None = None,
    ) -> StepModel:
        made = step_model(
            model,
            gpu,
            shape,
            precision,
            kv_precision=self.cache,
            gpus_per_node=gpus_per_node,
            factors=self.factors,
            chunk_tokens=chunk_tokens,
        )
        return made._replace(max_running=max(made.max_running, float(self.clients)))


def simulated(row: Measurement, factors: Factors) -> tuple[float, float]:
    """End-to-end latency and time to first token of a row, s: medians of `predict`."""
    source = _AsMeasured(factors=factors, cache=row.cache, clients=row.clients)
    # Context windows of the catalogue are those of the configurations; some rows extend them.
    model = replace(row.model, context_window=max(row.model.context_window, row.inputs + row.outputs))
    made = predict(model, row.gpu, row.shape, row.precision, *_lengths(row), concurrency=row.clients, source=source)
    if made.e2e is None or made.ttft is None:
        raise ValueError(f"{row} does not fit")
    step = source.step_model(model, row.gpu, row.shape, row.precision)
    look = row.look_seconds(closed_loop(step, row.clients, row.mean_inputs, row.mean_outputs).decode_step)
    return made.e2e.p50_ms / 1e3 + look, made.ttft.p50_ms / 1e3 + look


def _lengths(row: Measurement) -> tuple[Floats, Floats]:
    """Prompts and answers to draw from, as the row's campaign drew them, [n] each."""
    if row.least_share == 1.0:
        return np.array([float(row.inputs)]), np.array([float(row.outputs)])
    shares = np.random.default_rng(_SEED).uniform(row.least_share, 1.0, (2, _DRAWN))
    return np.maximum(np.round(row.inputs * shares[0]), 1.0), np.maximum(np.round(row.outputs * shares[1]), 1.0)


def predictions(rows: Sequence[Measurement], *, quick: bool) -> Floats:
    """End-to-end latency and time to first token of every row, its architecture left out, s, [n, 2]."""
    labels = architectures(rows)
    made = np.empty((len(rows), 2))
    for label, steps in left_out(rows, labels).items():
        own = np.flatnonzero(labels == label).tolist()
        if quick:
            made[own] = np.exp(Fit([rows[index] for index in own]).predict(steps))
        else:
            for index in own:
                row = rows[index]
                made[index] = simulated(row, factors_at(steps, row.gpu.name, row.engine))
    return made


def errors(rows: Sequence[Measurement], made: Floats) -> dict[str, Floats]:
    """Relative errors by metric, [n] each."""
    measured = np.array([(row.end_to_end, row.first_token, row.per_token) for row in rows])
    further = np.array([row.mean_outputs - 1.0 for row in rows])
    predicted = np.column_stack([made, (made[:, 0] - made[:, 1]) / further])
    return {metric: predicted[:, column] / measured[:, column] - 1.0 for column, metric in enumerate(METRICS)}


def figures(rows: Sequence[Measurement], relative: dict[str, Floats]) -> list[dict[str, object]]:
    """The benchmark's JSON lines."""
    gpus = np.array([row.gpu.name for row in rows])
    lines: list[dict[str, object]] = []
    for metric, found in relative.items():
        medians = cell_medians(rows, found)
        for gpu in GPU_NAMES.values():
            own = [median for (name, _), median in medians.items() if name == gpu]
            bar = BARS.get((gpu, metric), FIRST_TOKEN_BAR if metric == "time-to-first-token" else None)
            lines.append(_figure(f"{metric}-error-{gpu}", float(np.mean(own)), BARS.get((gpu, metric))))
            lines.append(_figure(f"{metric}-error-median-{gpu}", float(np.median(own)), bar))
            lines.append(_figure(f"{metric}-error-worst-tenth-{gpu}", float(np.percentile(own, 90.0)), None))
            spread = float(np.percentile(np.abs(found[gpus == gpu]), 90.0)) * 100.0
            lines.append(_figure(f"{metric}-error-p90-{gpu}", spread, None))
        bar = FIRST_TOKEN_BAR if metric == "time-to-first-token" else None
        lines.append(_figure(f"{metric}-error-all", float(np.mean(list(medians.values()))), bar))
        lines.append(_figure(f"{metric}-error-median-all", float(np.median(list(medians.values()))), bar))
    return lines


def _figure(name: str, value: float, bar: float | None) -> dict[str, object]:
    holds = None if bar is None else bool(value <= bar)
    return {"name": f"cost-model-{name}", "value": round(value, 1), "unit": "%", "bar": bar, "holds": holds}


def table(rows: Sequence[Measurement], relative: dict[str, Floats]) -> str:
    """Median absolute errors of every architecture on every GPU."""
    medians = {metric: cell_medians(rows, found) for metric, found in relative.items()}
    counts = dict.fromkeys(medians[METRICS[0]], 0)
    for row in rows:
        counts[row.gpu.name, row.model.name] += 1
    lines = [f"{'left out':<36} {'GPU':<16} {'rows':>5} {'E2E %':>7} {'TTFT %':>7} {'TPOT %':>7}"]
    for gpu, model in sorted(counts):
        shown = " ".join(f"{medians[metric][gpu, model]:>7.1f}" for metric in METRICS)
        lines.append(f"{model:<36} {gpu:<16} {counts[gpu, model]:>5} {shown}")
    for gpu in GPU_NAMES.values():
        for word, summary in (("mean", np.mean), ("median", np.median)):
            own = [[m for (name, _), m in medians[metric].items() if name == gpu] for metric in METRICS]
            shown = " ".join(f"{summary(values):>7.1f}" for values in own)
            lines.append(f"{word + ' over architectures':<36} {gpu:<16} {'':>5} {shown}")
    return "\n".join(lines)


def published(*, each: bool) -> None:
    """Print the errors on published measurements: JSON lines by GPU, tables on stderr."""
    runs = load_published()
    found = published_errors(runs, _as_published)
    for gpu in dict.fromkeys(run.gpu.name for run in runs):
        own = found[[run.gpu.name == gpu for run in runs]]
        for column, metric in enumerate(METRICS[:2]):
            known = np.abs(own[~np.isnan(own[:, column]), column])
            if len(known):
                print(
                    json.dumps(_figure(f"published-{metric}-error-median-{gpu}", 100.0 * float(np.median(known)), None))
                )
    print(published_table(runs, found, each=each), file=sys.stderr)


def _as_published(run: PublishedRun, factors: Factors) -> _AsMeasured:
    modelopt = run.engine == "trtllm" and run.precision != "bf16"
    return _AsMeasured(factors=factors, cache="fp8" if modelopt else "bf16", clients=run.clients or 1)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="silicon_sample.csv; by default that of the installed aiconfigurator-core")
    parser.add_argument("--quick", action="store_true", help="closed form instead of simulation")
    parser.add_argument("--engine-unknown", action="store_true", help="predict every row as SGLang's")
    parser.add_argument("--published", action="store_true", help="measurements of others, by the factors as committed")
    parser.add_argument("--each", action="store_true", help="with --published: every run")
    options: Any = parser.parse_args(arguments)
    if options.published:
        published(each=options.each)
        return 0
    rows, excluded = load(table_path(options.csv))
    for reason, count in sorted(excluded.items()):
        print(f"{count} rows left out: {reason}", file=sys.stderr)
    if options.engine_unknown:
        rows = [replace(row, engine=DEFAULT_ENGINE) for row in rows]
    relative = errors(rows, predictions(rows, quick=options.quick))
    for line in figures(rows, relative):
        print(json.dumps(line))
    print(table(rows, relative), file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
