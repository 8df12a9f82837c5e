"""Does the quality that plans promise hold, and at what cost: generated draws and splits of public data."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.population import draw_calibration
from cascadia_api.cascade import CascadeDeployment
from cascadia_api.errors import InfeasibleError
from cascadia_solver.calibration import CalibrationSet, parse_calibration
from cascadia_solver.certification import estimate_quality
from cascadia_solver.importers import import_zeroeval
from cascadia_solver.planner import PlanningInputs, plan_cascade
from cascadia_solver.replay import Replay, ThresholdGrid, exit_stages, threshold_grids

__all__ = ["generated_draws", "public_splits", "whole_plans"]

Floats = NDArray[np.float64]
Report = Callable[..., bool]

CONFIDENCE = 0.95
NAMES = ("small", "medium", "large")
GPU_SECONDS = np.array([1.0, 6.0, 25.0])
"""GPU time of one request at each model, relative: 8B, 70B in bf16 and 405B in fp8, each at its best throughput."""
ACCURACIES = [0.72, 0.86, 0.90]
SETTINGS = [
    (3000, 0.82, 0.0),
    (3000, 0.85, 0.0),
    (1500, 0.82, 0.0),
    (1500, 0.85, 0.0),
    (500, 0.82, 0.0),
    (3000, 0.80, 0.05),
]
"""Requests in the calibration set, quality floor, share of the answers that the judge gets wrong."""
MOST = 1.3
"""Bar of the mean cost, times the oracle's."""
_NOISE = 200
"""Quantiles of a normal error that are averaged over."""


def _costs(grid: ThresholdGrid, scores: Floats) -> Floats:
    reach = Replay(grid, scores).reach(np.ones(len(scores)))
    return np.asarray(reach @ GPU_SECONDS[list(grid.stages)])


def _grids(table: CalibrationSet) -> list[ThresholdGrid]:
    return threshold_grids(table, candidates=range(3), forced=(), max_escalations=None)


def _cheapest(table: CalibrationSet, floor: float, seed: int) -> tuple[ThresholdGrid, tuple[float, ...]] | None:
    """The cheapest certified vector, as the planner would take it."""
    grids = _grids(table)
    costs = [_costs(grid, table.scores) for grid in grids]
    none = [np.empty(0, dtype=np.int64) for _ in grids]
    found = estimate_quality(table, grids, seed=seed).certified(
        costs, none, floor=floor, confidence=CONFIDENCE, seed=seed
    )
    best: tuple[float, int, int] | None = None
    for g, (quality, cost) in enumerate(zip(found, costs, strict=True)):
        good = np.flatnonzero(quality.assured >= floor)
        if len(good):
            k = int(good[cost[good].argmin()])
            best = min(best or (math.inf, 0, 0), (float(cost[k]), g, k))
    return None if best is None else (grids[best[1]], grids[best[1]].vector(best[2]))


class _Population:
    """What is true: a hundred times more requests than any set has.

    Args:
        judge_noise: See `draw_calibration`; quality is what this judge says on average.
    """

    def __init__(self, judge_noise: float) -> None:
        self.table = draw_calibration(200_000, 1, ACCURACIES, names=NAMES, judge_noise=judge_noise)
        grids = _grids(self.table)
        self._quality = np.concatenate([Replay(g, self.table.scores).at_exit(self.table.quality) for g in grids])
        self._quality /= len(self.table)
        self._cost = np.concatenate([_costs(grid, self.table.scores) for grid in grids])

    def oracle(self, floor: float) -> float:
        """Cost of the cheapest vector that keeps a floor."""
        return float(self._cost[self._quality >= floor].min())

    def least_cost(self, floor: float, requests: int) -> float:
        """About the least mean cost of any procedure of the stated confidence, whatever it knows beside one number.

        Suppose that everything is known but how far all qualities lie from what is expected, and that a
        calibration set's mean tells that with the error that it has at the floor. Of all lower bounds of the
        confidence on such a shift, the plain one (mean less z standard errors) is the largest, uniformly
        (Neyman and Pearson), so that the cheapest vector by it costs least, on average over the error. Real
        procedures know less.
        """
        normal, error = NormalDist(), math.sqrt(floor * (1 - floor) / requests)
        critical = normal.inv_cdf(CONFIDENCE)
        noise = [normal.inv_cdf((k + 0.5) / _NOISE) for k in range(_NOISE)]
        best = float(self._quality.max())
        return float(np.mean([self.oracle(min(floor + (critical - each) * error, best)) for each in noise]))

    def of(self, stages: Sequence[int], thresholds: Sequence[float]) -> tuple[float, float]:
        """Quality and cost of one vector."""
        answered = exit_stages(stages, thresholds, self.table.scores)
        quality = float(self.table.quality[np.arange(len(self.table)), answered].mean())
        return quality, sum(GPU_SECONDS[m] * float((answered >= m).mean()) for m in stages)


def generated_draws(report: Report, draws: int) -> bool:
    """Coverage and cost over calibration sets drawn from a population of known quality."""
    populations = {noise: _Population(noise) for noise in {noise for *_, noise in SETTINGS}}
    good = True
    for requests, floor, noise in SETTINGS:
        population = populations[noise]
        kept, refused, costs = 0, 0, []
        for draw in range(draws):
            table = draw_calibration(requests, 10_000 + draw, ACCURACIES, names=NAMES, judge_noise=noise)
            found = _cheapest(table, floor, draw)
            if found is None:  # no promise is broken
                refused += 1
                continue
            quality, cost = population.of(found[0].stages, found[1])
            kept += quality >= floor
            costs.append(cost)
        judge = f", judge wrong on {noise:.0%}" if noise else ""
        of = f"{requests} requests, floor {floor:g}{judge}, {draws} draws"
        good &= report(f"quality holds: {of}", (kept + refused) / draws, "share of draws", _least(draws), least=True)
        report(f"refused: {of}", refused / draws, "share of draws")
        least = population.least_cost(floor, requests) / population.oracle(floor)
        report(f"least cost of any procedure: {of}", least, "x oracle")
        # Where even that is above the bar, the set is too small for it: said, and not counted.
        holds = report(f"cost: {of}", float(np.mean(costs)) / population.oracle(floor), "x oracle", MOST)
        good &= holds or least > MOST
    for floor in (0.82, 0.85):
        largest = float(GPU_SECONDS[-1]) / populations[0.0].oracle(floor)
        report(f"cost of the largest model alone, floor {floor:g}", largest, "x oracle")
    return good


def _least(draws: int) -> float:
    """Share of draws that must keep the floor: the confidence less two standard errors."""
    return round(CONFIDENCE - 2 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / draws), 4)


def whole_plans(report: Report, aims: Sequence[tuple[int, CascadeDeployment]]) -> bool:
    """Coverage of whole plans: search, certification, simulation and all.

    Args:
        report: Told each figure.
        aims: Calibration sets drawn, and the manifest of three models that is planned for each.
    """
    good = True
    for draws, manifest in aims:
        good &= _whole_plans(report, draws, manifest)
    return good


def _whole_plans(report: Report, draws: int, manifest: CascadeDeployment) -> bool:
    aim = manifest.spec.objective
    population = _Population(0.0)
    floor = float(aim.min_quality)
    kept, refused = 0, 0
    for draw in range(draws):
        table = draw_calibration(1500, 50_000 + draw, ACCURACIES, names=NAMES)
        try:
            plan = plan_cascade(PlanningInputs(manifest, table, seed=draw))
        except InfeasibleError:
            refused += 1
            continue
        stages = [k for k, stage in enumerate(plan.stages) if stage.gpus]
        thresholds = [-math.inf if (h := plan.thresholds[k]) is None else h for k in stages[:-1]]
        kept += population.of(stages, thresholds)[0] >= floor
    within = "".join(f", {t.metric} p{t.percentile} {t.milliseconds} ms" for t in aim.targets or ())
    of = f"whole plans, least {aim.minimize}{within}, 1500 requests, floor {floor:g}, {draws} draws"
    report(f"refused: {of}", refused / draws, "share of draws")
    return report(f"quality holds: {of}", (kept + refused) / draws, "share of draws", _least(draws), least=True)


def public_splits(report: Report, splits: int = 40) -> bool:
    """Thresholds from one half of public results, tested on the other half."""
    folder = Path(os.environ.get("CASCADIA_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "quality"
    largest = {"zeroeval_gsm8k.csv": "Llama-3.1-405B-Instruct-Turbo", "zeroeval_crux.csv": "Llama-3.1-405B-Inst-fp8"}
    for name, large in largest.items():
        models = {"small": "Meta-Llama-3.1-8B-Instruct", "medium": "Meta-Llama-3.1-70B-Instruct", "large": large}
        if not (folder / name).exists():
            print(f"skipped {name}: set CASCADIA_DATA to the folder of public data", file=sys.stderr)
            continue
        with (folder / name).open() as file:
            table, _ = parse_calibration(import_zeroeval(file, models, auroc=0.8), models=NAMES, scorer="logprob-mean")
        floor = round(0.95 * float(table.quality[:, -1].mean()), 3)
        margins, errors, costs = [], [], []
        for split in range(splits):
            order = np.random.default_rng(split).permutation(len(table))
            half, rest = order[: len(order) // 2], order[len(order) // 2 :]
            found = _cheapest(_rows(table, half), floor, split)
            if found is None:
                continue
            answered = exit_stages(found[0].stages, found[1], table.scores[rest])
            worth = table.quality[rest, answered]
            margins.append(float(worth.mean()) - floor)
            errors.append(float(worth.std()) / math.sqrt(len(rest)))
            costs.append(sum(GPU_SECONDS[m] * float((answered >= m).mean()) for m in found[0].stages))
        of = f"{name}, {len(table) // 2} requests, floor {floor:g}"
        report(f"splits planned: {of}", len(margins) / splits, "share of splits")
        if margins:
            clear = np.mean(np.array(margins) < -2 * np.array(errors))
            report(f"splits clearly below the floor: {of}", float(clear), "share of splits", 0.05)
            report(f"mean margin over the floor: {of}", float(np.mean(margins)), "quality")
            report(f"error of one split's test: {of}", float(np.mean(errors)), "quality")
            report(f"cost: {of}", float(np.mean(costs)) / GPU_SECONDS[-1], "x largest alone")
    return True


def _rows(table: CalibrationSet, rows: NDArray[np.int64]) -> CalibrationSet:
    return CalibrationSet(
        ids=[table.ids[row] for row in rows],
        models=table.models,
        scorer=table.scorer,
        input_tokens=table.input_tokens[rows],
        output_tokens=table.output_tokens[rows],
        scores=table.scores[rows],
        quality=table.quality[rows],
    )
