"""Does the quality that plans promise hold, and at what cost: generated draws and splits of public data."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.population import draw_calibration
from cascadia_solver.calibration import CalibrationSet, parse_calibration
from cascadia_solver.certification import estimate_quality
from cascadia_solver.importers import import_zeroeval
from cascadia_solver.replay import Replay, ThresholdGrid, exit_stages, threshold_grids

__all__ = ["generated_draws", "public_splits"]

Floats = NDArray[np.float64]
Report = Callable[..., bool]

CONFIDENCE = 0.95
NAMES = ("small", "medium", "large")
GPU_SECONDS = np.array([1.0, 6.0, 25.0])
"""GPU time of one request at each model, relative: 8B, 70B in bf16 and 405B in fp8, each at its best throughput."""
SETTINGS = [(3000, 0.82), (3000, 0.85), (1500, 0.82), (1500, 0.85), (500, 0.82)]
"""Requests in the calibration set and quality floor."""


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


def generated_draws(report: Report, draws: int) -> bool:
    """Coverage and cost over calibration sets drawn from a population of known quality."""
    population = draw_calibration(200_000, 1, [0.72, 0.86, 0.90], names=NAMES)
    everyone = np.arange(len(population))
    grids = _grids(population)
    quality = np.concatenate([Replay(g, population.scores).at_exit(population.quality) for g in grids])
    quality /= len(population)
    cost = np.concatenate([_costs(grid, population.scores) for grid in grids])

    def oracle(floor: float) -> float:
        return float(cost[quality >= floor].min())

    good = True
    for requests, floor in SETTINGS:
        kept, costs = 0, []
        for draw in range(draws):
            table = draw_calibration(requests, 10_000 + draw, [0.72, 0.86, 0.90], names=NAMES)
            found = _cheapest(table, floor, draw)
            if found is None:  # it is refused: no promise is broken
                kept += 1
                continue
            grid, thresholds = found
            answered = exit_stages(grid.stages, thresholds, population.scores)
            kept += bool(population.quality[everyone, answered].mean() >= floor)
            costs.append(sum(GPU_SECONDS[m] * float((answered >= m).mean()) for m in grid.stages))
        bar = CONFIDENCE - 2 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / draws)
        of = f"{requests} requests, floor {floor:g}, {draws} draws"
        good &= report(f"quality holds: {of}", kept / draws, "share of draws", round(bar, 4), least=True)
        ratio = float(np.mean(costs)) / oracle(floor)
        good &= report(f"cost: {of}", ratio, "x oracle", 1.3)
        # A yardstick: the cheapest vector whose true quality is one plain test above the floor, the truth known.
        alone = NormalDist().inv_cdf(CONFIDENCE) * math.sqrt(floor * (1 - floor) / requests)
        report(f"cost of a single test, truth known: {of}", oracle(floor + alone) / oracle(floor), "x oracle")
    for floor in sorted({floor for _, floor in SETTINGS}):
        report(f"cost of the largest model alone, floor {floor:g}", float(GPU_SECONDS[-1]) / oracle(floor), "x oracle")
    return good


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
