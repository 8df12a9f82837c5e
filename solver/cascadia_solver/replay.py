"""Replay of every threshold vector on recorded answers.

For a cascade of some of the models and a grid of thresholds per stage, all vectors of the grid are
replayed at once: requests are sorted into cells by the bin of each stage's score, and cumulative sums
over the cells answer "the sum of v over the requests that get to stage j" for every vector. That costs
one pass over the requests and one over the grid, whatever the number of vectors. Requests that a stage
cannot take (see `ability`) pass it by: they are passed on at every threshold, and count nothing there.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from cascadia_api.errors import InputError, Problem
from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.compiled import compiled
from cascadia_solver.workload import RequestSample

__all__ = ["Replay", "StageLoads", "ThresholdGrid", "exit_stages", "stage_loads", "threshold_grids"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]

_VECTORS = 1089
"""Threshold vectors of one choice of stages: 33 quantiles for each of two thresholds."""
_ALL_VECTORS = 16_384
"""About the most for all choices of stages together (many models)."""
_MOST_LEVELS = 65


@dataclass(frozen=True, eq=False)
class ThresholdGrid:
    """The threshold vectors of one choice of stages.

    Attributes:
        stages: Indices of the models that have a stage, ascending.
        levels: Ascending thresholds of each stage but the last, which accepts every answer. -inf is
            "accept all", a value above all scores is "always escalate".
    """

    stages: tuple[int, ...]
    levels: tuple[Floats, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of thresholds per stage but the last."""
        return tuple(len(levels) for levels in self.levels)

    def __len__(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def vector(self, index: int) -> tuple[float, ...]:
        """Thresholds of the vector with this flat index, one a stage but the last."""
        position = np.unravel_index(index, self.shape) if self.shape else ()
        return tuple(float(levels[k]) for levels, k in zip(self.levels, position, strict=True))

    def nearest(self, thresholds: Sequence[float]) -> int:
        """Flat index of the vector with these thresholds (each the next level at or above)."""
        position = [min(int(np.searchsorted(g, t)), len(g) - 1) for g, t in zip(self.levels, thresholds, strict=True)]
        return int(np.ravel_multi_index(position, self.shape)) if position else 0


def threshold_grids(
    table: CalibrationSet, *, candidates: Collection[int], forced: Collection[int], max_escalations: int | None
) -> list[ThresholdGrid]:
    """The grids of every choice of stages that may be planned.

    Thresholds are quantiles of the raw scores, rounded to the six digits that plans keep.

    Args:
        table: Calibration set.
        candidates: Models that may have a stage (those that fit somewhere).
        forced: Models that must have one (`minReplicas` above 0).
        max_escalations: Most times that one request is passed on; None for any.

    Raises:
        InputError: More models are forced than escalations can reach.
    """
    most = len(candidates) if max_escalations is None else min(len(candidates), max_escalations + 1)
    if len(forced) > most:
        raise InputError(
            Problem(
                "spec.routing.maxEscalations",
                f"is {max_escalations}, which lets a request visit {most} stages, but {len(forced)} models have "
                "minReplicas above 0: raise it, or lower minReplicas",
            )
        )
    choices = [
        choice
        for size in range(max(1, len(forced)), most + 1)
        for choice in combinations(sorted(candidates), size)
        if set(forced) <= set(choice)
    ]
    budget = min(_VECTORS, max(64, _ALL_VECTORS // max(1, len(choices))))
    ascending = np.sort(table.scores, axis=0)
    return [_grid(ascending, choice, set(forced), budget) for choice in choices]


def _grid(scores: Floats, stages: tuple[int, ...], forced: set[int], budget: int) -> ThresholdGrid:
    """The grid of one choice of stages, from each model's scores in ascending order [n, C]."""
    thresholds = len(stages) - 1
    count = min(_MOST_LEVELS, max(2, round(budget ** (1 / thresholds)))) if thresholds else 0
    levels = []
    for place, model in enumerate(stages[:-1]):
        own = scores[:, model]
        quantiles = np.interp((np.arange(count) + 0.5) / count * (len(own) - 1), np.arange(len(own)), own)
        grid = np.array([float(f"{value:.6g}") for value in quantiles.tolist()])
        # Dropping a stage is another choice of stages, so these two matter for forced stages only.
        if forced & set(stages[place + 1 :]):
            grid = np.append(grid, -np.inf)
        if model in forced:
            grid = np.append(grid, float(f"{own[-1] + max(1e-3, 1e-3 * abs(own[-1])):.6g}"))
        levels.append(np.unique(grid))
    return ThresholdGrid(stages, tuple(levels))


@compiled
def _sums_by_cell(cell: Integers, rows: Floats, cells: int) -> Floats:
    """Sum of each row's values over the requests of each cell [rows, cells]."""
    sums = np.zeros((len(rows), cells))
    for row in range(len(rows)):
        for r in range(len(cell)):
            sums[row, cell[r]] += rows[row, r]
    return sums


@compiled
def _cumulate(sums: Floats) -> None:
    """Add along the middle axis, in place."""
    for i in range(len(sums)):
        for k in range(1, sums.shape[1]):
            for j in range(sums.shape[2]):
                sums[i, k, j] += sums[i, k - 1, j]


class Replay:
    """All vectors of a grid, replayed on n requests.

    Args:
        grid: V threshold vectors over the grid's stages.
        scores: Raw scores of all models [n, C].
        able: Which models can take each request [n, C]; None: all of them. Others are passed by.
    """

    def __init__(self, grid: ThresholdGrid, scores: Floats, able: Bools | None = None) -> None:
        self.grid = grid
        self._requests = len(scores)
        self._able = able
        cell = np.zeros(self._requests, dtype=np.int64)
        self._cells = [cell]
        for model, levels in zip(grid.stages, grid.levels, strict=False):
            # A request in bin b escalates at the k-th threshold exactly if b <= k: s < level[k].
            bins = np.searchsorted(levels, scores[:, model], side="right")
            if able is not None:
                bins[~able[:, model]] = 0  # passes by, even where every answer is accepted
            cell = cell * (len(levels) + 1) + bins
            self._cells.append(cell)

    def reaching(self, stage: int, values: Floats) -> Floats:
        """Sum of `values` over the requests that get to a stage, those that pass it by included.

        Args:
            stage: Place in `grid.stages`.
            values: [..., n].

        Returns:
            For each choice of the thresholds before that stage, [..., K_0, …, K_(stage-1)].
        """
        shape = self.grid.shape[:stage]
        cells = int(np.prod([k + 1 for k in shape], dtype=np.int64))
        rows = values.reshape(-1, self._requests)
        sums = _sums_by_cell(self._cells[stage], rows, cells).reshape((len(rows), *(k + 1 for k in shape)))
        for axis in range(1, stage + 1):
            _cumulate(sums.reshape(-1, sums.shape[axis], int(np.prod(sums.shape[axis + 1 :], dtype=np.int64))))
        kept = sums[(slice(None), *(slice(k) for k in shape))]
        return kept.reshape((*values.shape[:-1], *shape))

    def reach(self, weights: Floats) -> Floats:
        """Share of the weight of all requests that each stage serves, [V, stages]."""
        total = weights.sum()
        return np.stack([self.at_stage(j, weights) / total for j in range(len(self.grid.stages))], axis=1)

    def passed_by(self) -> Floats:
        """Share of all requests that gets to each stage and cannot be taken there, [V, stages]."""
        if self._able is None:
            return np.zeros((len(self.grid), len(self.grid.stages)))
        barred = ~self._able
        shares = [
            self._spread(self.reaching(j, barred[:, model].astype(np.float64)), j).ravel() / self._requests
            for j, model in enumerate(self.grid.stages)
        ]
        return np.stack(shares, axis=1)

    def at_stage(self, stage: int, values: Floats) -> Floats:
        """Sum of `values` [..., n] over the requests that a stage serves, for every vector [..., V]."""
        sums = self._spread(self.reaching(stage, self._served(stage, values)), stage)
        return sums.reshape((*values.shape[:-1], len(self.grid)))

    def generated(self, stage: int, answers: Floats, gate_tokens: int | None) -> Floats:
        """Answer tokens that a stage generates, for every vector [V].

        Args:
            stage: Place in `grid.stages`.
            answers: Whole lengths of its answers [n].
            gate_tokens: Where rejected answers stop; None: at their end.
        """
        beyond = None if gate_tokens is None else np.maximum(answers - gate_tokens, 0.0)
        return self.at_stage(stage, answers) - self.spared(stage, beyond)

    def spared(self, stage: int, beyond: Floats | None) -> Floats | float:
        """Tokens that a stage is spared, for every vector [V].

        Args:
            stage: Place in `grid.stages`.
            beyond: Tokens of its answers that are not generated where it rejects them [n]; None for none.
        """
        if beyond is None or stage + 1 == len(self.grid.stages):
            return 0.0
        return self._spread(self.reaching(stage + 1, self._served(stage, beyond)), stage + 1).ravel()

    def at_exit(self, values: Floats) -> Floats:
        """Sum over all requests of the value of the model that answers them; 0 for one that the last refuses.

        Args:
            values: [..., n, C].

        Returns:
            For every vector [..., V].
        """
        lead = values.shape[:-2]
        total = np.zeros((*lead, *self.grid.shape))
        before: Floats | float = 0.0
        for j, model in enumerate(self.grid.stages):
            # What a stage answers is what gets there less what goes on, where the next stage's worth counts instead.
            worth = self._served(j, np.ascontiguousarray(values[..., model]))
            total += self._spread(self.reaching(j, worth - before), j)
            before = worth
        return total.reshape((*lead, len(self.grid)))

    def _served(self, stage: int, values: Floats) -> Floats:
        """Values [..., n], 0 for the requests that a stage cannot take."""
        return values if self._able is None else values * self._able[:, self.grid.stages[stage]]

    def _spread(self, sums: Floats, stage: int) -> Floats:
        """Broadcast sums over the thresholds before a stage to all vectors."""
        full = self.grid.shape
        lead = sums.shape[: sums.ndim - stage]
        return np.broadcast_to(sums.reshape((*sums.shape, *(1,) * (len(full) - stage))), (*lead, *full))


@dataclass(frozen=True, eq=False)
class StageLoads:
    """What every threshold vector of a grid sends to each stage, of one sample of the traffic.

    Attributes:
        reach: Share of all requests that it serves [V, stages].
        tokens: Answer tokens that it generates, by the number of all requests [V, stages].
        passed_by: Share of all requests that gets there and cannot be taken [V, stages].
    """

    reach: Floats
    tokens: Floats
    passed_by: Floats


def stage_loads(grid: ThresholdGrid, sample: RequestSample) -> StageLoads:
    """Replay a sample on every vector of a grid.

    Requests of one calibration row have its scores, so where all models can take all requests they go one way:
    then rows are replayed, each with the sums over its requests, which are many times fewer.
    """
    row, scores = sample.row, sample.scores
    if sample.able is None:
        one_of = np.zeros(int(row.max()) + 1, dtype=np.int64)
        one_of[row] = np.arange(len(row))
        scores = scores.take(one_of, axis=0)
    else:
        row = np.arange(len(row))
    gate = np.inf if sample.gate_tokens is None else float(sample.gate_tokens)
    sums = _sums_by_row(row, sample.output_tokens, np.array(grid.stages), gate, len(scores))
    replay = Replay(grid, scores, sample.able)
    stages = range(len(grid.stages))
    served = [replay.at_stage(stage, sums[[0, 1 + stage]]) for stage in stages]
    spared = [replay.spared(stage, None if gate == np.inf else sums[1 + len(stages) + stage]) for stage in stages]
    return StageLoads(
        reach=np.stack([of[0] for of in served], axis=1) / len(row),
        tokens=np.stack([of[1] - less for of, less in zip(served, spared, strict=True)], axis=1) / len(row),
        passed_by=replay.passed_by(),
    )


@compiled
def _sums_by_row(row: Integers, answers: Floats, stages: Integers, gate_tokens: float, rows: int) -> Floats:
    """Over the requests of each row: their number, and of each stage the answer tokens and those beyond the gate.

    Args:
        row: Of each request [n].
        answers: [n, C].
        stages: Models.
        gate_tokens: Where rejected answers stop.
        rows: Number of rows.

    Returns:
        [1 + 2 stages, rows]
    """
    sums = np.zeros((1 + 2 * len(stages), rows))
    for r in range(len(row)):
        sums[0, row[r]] += 1.0
        for j in range(len(stages)):
            tokens = answers[r, stages[j]]
            sums[1 + j, row[r]] += tokens
            sums[1 + len(stages) + j, row[r]] += max(tokens - gate_tokens, 0.0)
    return sums


def exit_stages(
    stages: Sequence[int], thresholds: Sequence[float], scores: Floats, able: Bools | None = None
) -> Integers:
    """Model that answers each request under one threshold vector, or refuses it, if the last cannot take it.

    Args:
        stages: Indices of the models that have a stage.
        thresholds: One a stage but the last.
        scores: Raw scores [n, C].
        able: Which models can take each request [n, C]; None: all of them.

    Returns:
        Model indices [n].
    """
    answered_by = np.full(len(scores), stages[-1], dtype=np.int64)
    open_ = np.ones(len(scores), dtype=bool)
    for model, threshold in zip(stages, thresholds, strict=False):
        accepted = open_ & (scores[:, model] >= threshold)
        if able is not None:
            accepted &= able[:, model]
        answered_by[accepted] = model
        open_ &= ~accepted
    return answered_by
