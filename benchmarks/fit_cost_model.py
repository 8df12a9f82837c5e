"""Fit the cost model's factors to measured engines, and write them into the solver.

    python benchmarks/fit_cost_model.py [--csv FILE] [--check]

A factor of a GPU under an engine is what all share plus a step for the GPU (efficiencies and
constants) plus a step for the engine (constants only), on a logistic scale between the factor's
bounds. The fit minimises the absolute log error of end-to-end latency and, with a fifth of the
weight, of time to first token; every architecture on every GPU weighs the same; squared steps are
penalised, so that a factor moves away from what all share only where measurements ask for it. Damped
Gauss-Newton on reweighted squares: deterministic, seconds on one core.

What was chosen beside the fit, looking at the errors of architectures left out: the counts of kernels
in `roofline`, the share of an answer that is reserved in `closed_loop`, and the penalties below.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from silicon_table import GPU_NAMES, Measurement, load, table_path

from cascadia_solver.closed_loop import ClosedLoop, closed_loops
from cascadia_solver.factors import ANY_GPU, ENGINES, Factors
from cascadia_solver.roofline import step_model

Floats = npt.NDArray[np.float64]
TARGET = Path(__file__).parent.parent / "solver" / "cascadia_solver" / "fitted_factors.py"


class Bound(NamedTuple):
    """Least, most and initial value of a factor, and whether engines differ in it."""

    least: float
    most: float
    start: float
    by_engine: bool = False


BOUNDS = {
    "flops": Bound(0.4, 0.8, 0.6),
    "narrow_flops": Bound(0.25, 0.8, 0.5),
    "expert_flops": Bound(0.08, 0.8, 0.35),
    "attention_flops": Bound(0.2, 0.8, 0.5),
    "bandwidth": Bound(0.6, 0.95, 0.8),
    "expert_bandwidth": Bound(0.3, 0.95, 0.7),
    "kv_bandwidth": Bound(0.3, 0.95, 0.7),
    "overlap_loss": Bound(0.0, 1.0, 0.3),
    "link": Bound(0.1, 0.9, 0.5),
    "dense_layer_seconds": Bound(4e-6, 40e-6, 10e-6, by_engine=True),
    "moe_layer_seconds": Bound(10e-6, 120e-6, 50e-6, by_engine=True),
    "fp8_moe_layer_seconds": Bound(1e-6, 60e-6, 10e-6),
    "fp4_layer_seconds": Bound(1e-6, 60e-6, 10e-6),
    "all_reduce_seconds": Bound(1e-6, 15e-6, 4e-6, by_engine=True),
    "step_seconds": Bound(0.1e-3, 3e-3, 0.5e-3, by_engine=True),
    "request_seconds": Bound(1e-6, 60e-6, 10e-6, by_engine=True),
    "prompt_layer_seconds": Bound(1e-6, 400e-6, 40e-6, by_engine=True),
    "prompt_moe_layer_seconds": Bound(1e-6, 1e-3, 0.1e-3, by_engine=True),
    "first_token_seconds": Bound(2e-3, 0.4, 15e-3, by_engine=True),
    "first_token_moe_layer_seconds": Bound(1e-6, 5e-3, 0.3e-3, by_engine=True),
    "first_token_latent_layer_seconds": Bound(1e-6, 5e-3, 0.5e-3, by_engine=True),
    "bunching": Bound(0.01, 3.0, 0.2, by_engine=True),
}
NAMES = list(BOUNDS)
GPUS = tuple(GPU_NAMES.values())
_ENGINE_NAMES = [name for name in NAMES if BOUNDS[name].by_engine]
_LEAST, _MOST, _START = (np.array([bound[column] for bound in BOUNDS.values()]) for column in range(3))

_SHARED_PENALTY, _GPU_PENALTY, _ENGINE_PENALTY = 0.01, 0.03, 0.08
_WAITS = {name for name in NAMES if name.startswith("first_token")} | {"bunching"}
"""How long a client waits is the engine's doing, not the GPU's: their penalties are other."""
_WAIT_GPU_PENALTY, _WAIT_ENGINE_PENALTY = 0.1, 0.015
_FIRST_TOKEN_WEIGHT = 0.2
_FLOOR = np.array([0.03, 0.08])
"""Log errors below which the measure is quadratic."""
_FEW = 10
"""An architecture with fewer rows on a GPU weighs less."""
_ROUNDS = 25


def architectures(rows: Sequence[Measurement]) -> npt.NDArray[np.str_]:
    """The architecture of each row, [n]."""
    return np.array([row.model.name for row in rows])


@dataclass
class Fit:
    """The rows, grouped by what their step model depends on.

    Attributes:
        rows: Measurements.
    """

    rows: Sequence[Measurement]
    configurations: list[Measurement] = field(default_factory=list)
    which: npt.NDArray[np.int64] = field(init=False)
    settings: Floats = field(init=False)
    look_steps: Floats = field(init=False)
    measured: Floats = field(init=False)

    def __post_init__(self) -> None:
        seen: dict[tuple[object, ...], int] = {}
        which = []
        for row in self.rows:
            key = (row.model.name, row.gpu.name, row.shape, row.precision, row.engine, row.cache)
            if key not in seen:
                seen[key] = len(self.configurations)
                self.configurations.append(row)
            which.append(seen[key])
        self.which = np.array(which)
        self.settings = np.array(
            [(row.clients, row.mean_inputs, row.mean_outputs) for row in self.rows], dtype=np.float64
        )
        self.look_steps = np.array([row.look_seconds(1.0) for row in self.rows])
        self.measured = np.log([(row.end_to_end, row.first_token) for row in self.rows])

    def predict(self, steps: Floats, rows: npt.NDArray[np.int64] | None = None) -> Floats:
        """Log of end-to-end latency and of time to first token, [n, 2]."""
        chosen = np.arange(len(self.rows)) if rows is None else rows
        needed, local = np.unique(self.which[chosen], return_inverse=True)
        models = []
        for index in needed:
            row = self.configurations[index]
            factors = factors_at(steps, row.gpu.name, row.engine)
            model = step_model(row.model, row.gpu, row.shape, row.precision, kv_precision=row.cache, factors=factors)
            models.append(model._replace(max_running=1e9))  # measured engines had no limit below the clients
        loops = closed_loops(models, local, *self.settings[chosen].T)
        looks = self.look_steps[chosen] * loops[:, ClosedLoop._fields.index("decode_step")]
        return np.log(loops[:, :2] + looks[:, None])


def _block(gpu: str | None = None, engine: str | None = None) -> slice:
    """Where the steps of a GPU or an engine lie."""
    wide, narrow = len(NAMES), len(_ENGINE_NAMES)
    if gpu is not None:
        start = wide * (1 + GPUS.index(gpu))
        return slice(start, start + wide)
    start = wide * (1 + len(GPUS)) + narrow * ENGINES.index(engine or ENGINES[0])
    return slice(start, start + narrow)


_SIZE = _block(engine=ENGINES[-1]).stop
_INITIAL = np.zeros(_SIZE)
_INITIAL[: len(NAMES)] = np.log((_START - _LEAST) / (_MOST - _START))


def factors_at(steps: Floats, gpu: str, engine: str) -> Factors:
    """The factors of a GPU (or of all, `ANY_GPU`) under an engine."""
    scale = steps[: len(NAMES)].copy()
    if gpu in GPUS:
        scale += steps[_block(gpu=gpu)]
    scale[[NAMES.index(name) for name in _ENGINE_NAMES]] += steps[_block(engine=engine)]
    values = _LEAST + (_MOST - _LEAST) / (1.0 + np.exp(-scale))
    return Factors(**dict(zip(NAMES, (float(value) for value in values), strict=True)))


def _penalties() -> Floats:
    penalties = np.full(_SIZE, _SHARED_PENALTY)
    for gpu in GPUS:
        penalties[_block(gpu=gpu)] = [_WAIT_GPU_PENALTY if name in _WAITS else _GPU_PENALTY for name in NAMES]
    for engine in ENGINES:
        penalties[_block(engine=engine)] = [
            _WAIT_ENGINE_PENALTY if name in _WAITS else _ENGINE_PENALTY for name in _ENGINE_NAMES
        ]
    return penalties


def _affected(fit: Fit, parameter: int) -> npt.NDArray[np.int64]:
    """Rows whose prediction depends on a parameter."""
    for gpu in GPUS:
        if _block(gpu=gpu).start <= parameter < _block(gpu=gpu).stop:
            return np.array([i for i, row in enumerate(fit.rows) if row.gpu.name == gpu], dtype=np.int64)
    for engine in ENGINES:
        if _block(engine=engine).start <= parameter < _block(engine=engine).stop:
            return np.array([i for i, row in enumerate(fit.rows) if row.engine == engine], dtype=np.int64)
    return np.arange(len(fit.rows))


def solve(rows: Sequence[Measurement]) -> Floats:
    """The steps that fit the rows best."""
    fit, penalties = Fit(rows), _penalties()
    cells = [(row.gpu.name, row.model.name) for row in rows]
    sizes = {cell: cells.count(cell) for cell in set(cells)}
    weights = np.array([1.0 / max(_FEW, sizes[cell]) for cell in cells])[:, None] * [1.0, _FIRST_TOKEN_WEIGHT]
    affected = {parameter: _affected(fit, parameter) for parameter in range(_SIZE)}

    def loss(steps: Floats, errors: Floats) -> float:
        misfit = float((weights * np.sqrt(errors**2 + _FLOOR**2)).sum())
        return misfit + float((penalties * (steps - _INITIAL) ** 2).sum())

    steps = _INITIAL.copy()
    errors = fit.predict(steps) - fit.measured
    now, damping, width = loss(steps, errors), 1e-2, 1e-3
    for _ in range(_ROUNDS):
        slopes = np.zeros((len(rows), 2, _SIZE))
        for parameter, touched in affected.items():
            if len(touched):
                moved = steps.copy()
                moved[parameter] += width
                changed = fit.predict(moved, touched) - fit.measured[touched]
                slopes[touched, :, parameter] = (changed - errors[touched]) / width
        scaled = (weights / np.sqrt(errors**2 + _FLOOR**2)).ravel()
        flat = slopes.reshape(-1, _SIZE)
        normal = flat.T @ (scaled[:, None] * flat) + 2.0 * np.diag(penalties)
        downhill = flat.T @ (scaled * errors.ravel()) + 2.0 * penalties * (steps - _INITIAL)
        before = now
        for _ in range(6):
            trial = steps - np.clip(np.linalg.solve(normal + damping * np.eye(_SIZE), downhill), -1.0, 1.0)
            trial_errors = fit.predict(trial) - fit.measured
            if loss(trial, trial_errors) < now:
                steps, errors, now = trial, trial_errors, loss(trial, trial_errors)
                damping = max(damping / 5.0, 1e-4)
                break
            damping *= 5.0
        if before - now < 1e-3:
            break
    return steps


def left_out(rows: Sequence[Measurement], labels: npt.NDArray[np.str_]) -> dict[str, Floats]:
    """For each label the steps fitted without the rows that bear it."""
    return {
        str(label): solve([row for row, own in zip(rows, labels, strict=True) if own != label])
        for label in np.unique(labels)
    }


def cell_medians(rows: Sequence[Measurement], errors: Floats) -> dict[tuple[str, str], float]:
    """Median absolute error, percent, of each (GPU, architecture)."""
    cells: dict[tuple[str, str], list[float]] = {}
    for row, error in zip(rows, errors, strict=True):
        cells.setdefault((row.gpu.name, row.model.name), []).append(abs(float(error)))
    return {cell: 100.0 * float(np.median(found)) for cell, found in cells.items()}


def _uncertainties(rows: Sequence[Measurement]) -> dict[str, dict[str, float]]:
    """Mean of the architectures' median end-to-end errors when left out, for dense and mixtures apart.

    For GPUs without measurements: when a GPU is left out, mean over the GPUs.
    """
    mixtures = {row.model.name: row.model.moe_layers > 0 for row in rows}
    shares: dict[str, dict[str, float]] = {}
    by_architecture = _errors_when_left_out(rows, architectures(rows), elsewhere=False)
    by_gpu = _errors_when_left_out(rows, np.array([row.gpu.name for row in rows]), elsewhere=True)
    for gpu in (*GPUS, ANY_GPU):
        medians = cell_medians(rows, by_gpu if gpu == ANY_GPU else by_architecture)
        for name, mixture in (("uncertainty_percent", False), ("moe_uncertainty_percent", True)):
            found = [
                median for cell, median in medians.items()
                if mixtures[cell[1]] == mixture and gpu in {ANY_GPU, cell[0]}
            ]  # fmt: skip
            shares.setdefault(gpu, {})[name] = round(float(np.mean(found)), 1)
    return shares


def _errors_when_left_out(rows: Sequence[Measurement], labels: npt.NDArray[np.str_], *, elsewhere: bool) -> Floats:
    errors = np.zeros(len(rows))
    for label, steps in left_out(rows, labels).items():
        own = np.flatnonzero(labels == label).tolist()
        fit = Fit([rows[index] for index in own])
        if elsewhere:
            steps[_block(gpu=label)] = 0.0
        errors[own] = np.expm1((fit.predict(steps) - fit.measured)[:, 0])
    return errors


def document(rows: Sequence[Measurement], steps: Floats) -> str:
    """The module that the solver loads."""
    sure = _uncertainties(rows)
    lines = [
        '"""Factors of the cost model, written by ``benchmarks/fit_cost_model.py``; do not edit.',
        "",
        "Source: silicon_sample.csv of aiconfigurator-core 0.12.0 (Apache-2.0), published measurements of October",
        f"2025 to April 2026; {len(rows)} aggregated rows. Percentages: error of end-to-end latency on architectures",
        "(for other GPUs: on GPUs) that were left out of the fit, mean of their medians.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
        '__all__ = ["FITTED"]',
        "",
        "FITTED: dict[str, dict[str, dict[str, float]]] = {",
    ]
    for gpu in (*GPUS, ANY_GPU):
        used = sum(gpu in {row.gpu.name, ANY_GPU} for row in rows)
        lines.append(f"    # {used} rows")
        lines.append(f'    "{gpu}": {{')
        for engine in ENGINES:
            factors = factors_at(steps, gpu, engine)
            lines.append(f'        "{engine}": {{')
            lines += [f'            "{name}": {_figure(getattr(factors, name))},' for name in NAMES]
            lines += [f'            "{name}": {value},' for name, value in sure[gpu].items()]
            lines.append("        },")
        lines.append("    },")
    return "\n".join([*lines, "}", ""])


def _figure(value: float) -> str:
    return repr(float(f"{value:.4g}"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="silicon_sample.csv; by default that of the installed aiconfigurator-core")
    parser.add_argument(
        "--check", action="store_true", help="only say whether the committed factors are the fitted ones"
    )
    options: Any = parser.parse_args(arguments)
    rows, excluded = load(table_path(options.csv))
    for reason, count in sorted(excluded.items()):
        print(f"{count} rows left out: {reason}")
    text = document(rows, solve(rows))
    if options.check:
        same = TARGET.read_text() == text
        print("the committed factors are the fitted ones" if same else f"{TARGET.name} is out of date")
        return 0 if same else 1
    TARGET.write_text(text)
    print(f"{len(rows)} rows fitted; wrote {TARGET}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
