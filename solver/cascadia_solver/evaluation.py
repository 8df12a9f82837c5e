"""Simulation of finalists: what a design would do, request by request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cascadia_api.cascade import LatencyTarget
from cascadia_solver.design import Design
from cascadia_solver.parallelism import ReplicaSet
from cascadia_solver.simulation import CascadeTimes, StageReplicas, StageTimes
from cascadia_solver.steady_state import at_work
from cascadia_solver.workload import RequestSample

__all__ = ["Evaluation", "PathTimes", "evaluate", "path_times", "replicas_of_set", "stage_replicas", "stage_times"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bools = NDArray[np.bool_]

_BATCHES = 10
_LEAST_BATCH = 100


@dataclass(frozen=True, eq=False)
class PathTimes:
    """What is seen of simulated requests, by clients or of one stage.

    Attributes:
        end_to_end: Seconds of each request, infinite if it is lost [n].
        first_token: Seconds to the first byte that a client sees [n].
        per_token: Seconds per answer token after that [n].
        saturated: Whether some queue grew with the number of requests.
    """

    end_to_end: Floats
    first_token: Floats
    per_token: Floats
    saturated: bool

    def percentile(self, percentile: float, metric: str = "EndToEnd") -> float:
        """A percentile of one of the metrics that targets may name, s; not a number where there is no request."""
        values = self._ascending[metric]
        if not len(values):
            return math.nan
        return float(values[math.ceil(percentile / 100 * (len(values) - 1))])

    @cached_property
    def _ascending(self) -> dict[str, Floats]:
        return {
            "EndToEnd": np.sort(self.end_to_end),
            "TimeToFirstToken": np.sort(self.first_token),
            "TimePerOutputToken": np.sort(self.per_token),
        }

    def excess(self, targets: Sequence[LatencyTarget], *, deviations: float = 0.0) -> float:
        """How far targets are missed at worst, as a share of the target; 0 if all are met.

        Args:
            targets: The targets.
            deviations: Standard errors of the simulation by which they have to be met.
        """
        worst = 0.0
        for t in targets:
            reached = self.percentile(t.percentile, t.metric)
            if deviations:  # an infinite error times nothing would be no number, and pass for a target that is met
                reached += deviations * self.standard_error(t.percentile, t.metric)
            worst = max(worst, reached * 1e3 / t.milliseconds - 1)
        return worst

    def standard_error(self, percentile: float, metric: str = "EndToEnd") -> float:
        """How far a percentile may be above what it is because so many requests were simulated and no more, s.

        From the share of requests above it in batches in the order of arrival, since requests that queue together are
        slow together: by its standard error the percentile is moved up. Where values jump (time per token is none for
        answers that were held back), the percentiles of batches would be here and there, whichever it is.
        """
        values = {
            "EndToEnd": self.end_to_end,
            "TimeToFirstToken": self.first_token,
            "TimePerOutputToken": self.per_token,
        }[metric]
        size = len(values) // _BATCHES
        if size < _LEAST_BATCH:
            return math.inf
        here = self.percentile(percentile, metric)
        if not math.isfinite(here):
            return math.inf
        above = (values[: size * _BATCHES].reshape(_BATCHES, size) > here).mean(axis=1)
        error = 100.0 * float(above.std(ddof=1)) / math.sqrt(_BATCHES)
        return self.percentile(min(100.0, percentile + error), metric) - here


@dataclass(frozen=True, eq=False)
class Evaluation(PathTimes):
    """A simulated design.

    Attributes:
        design: The design.
        stages: What each stage does, its own time alone.
        deviations: Standard errors of the simulation by which targets have to be met.
    """

    design: Design
    stages: tuple[PathTimes, ...]
    deviations: float = 0.0


def evaluate(
    design: Design,
    sample: RequestSample,
    models: int,
    *,
    settle_seconds: float,
    known: dict[bytes, StageTimes] | None = None,
    until: int | None = None,
) -> Evaluation:
    """Simulate a design on the whole sample.

    Args:
        design: The design.
        sample: The traffic: the same one for every finalist, so that they share their luck.
        models: Number of models of the cascade.
        settle_seconds: As for `steady_state.at_work`.
        known: As for `simulation.simulate_cascade`.
        until: As for `simulation.simulate_cascade`.
    """
    stages = [StageReplicas([], []) for _ in range(models)]
    for model, replicas in zip(design.route.stages, stage_replicas(design), strict=True):
        stages[model] = replicas
    exits = design.routed.exits
    times = at_work(stages, sample, exits, settle_seconds=settle_seconds, known=known, until=until)
    each = stage_times(times)
    seen = path_times(times, sample, exits)
    return Evaluation(
        seen.end_to_end,
        seen.first_token,
        seen.per_token,
        seen.saturated,
        design=design,
        stages=tuple(each[model] for model in design.route.stages),
    )


def stage_times(times: CascadeTimes) -> list[PathTimes]:
    """What each stage of a simulated cascade does, its own time alone."""
    figures = zip(times.stage_service, times.stage_first, times.stage_per_token, times.saturated, strict=True)
    return [PathTimes(*of) for of in figures]


def path_times(times: CascadeTimes, sample: RequestSample, exits: Integers) -> PathTimes:
    """What clients see of a simulated cascade, without the requests that it refuses at once.

    Args:
        times: Of the n requests of the sample.
        sample: The traffic.
        exits: Model that answers each request [n].
    """
    answer = sample.output_tokens.take(np.arange(len(sample)) * sample.output_tokens.shape[1] + exits)
    with np.errstate(invalid="ignore"):  # what never ends is never seen either
        per_token = (times.end_to_end - times.time_to_first_token) / np.maximum(answer - 1, 1)
    per_token[np.isinf(times.end_to_end)] = np.inf
    served: slice | Bools = slice(None)
    if sample.able is not None and (taken := sample.able[np.arange(len(sample)), exits]).any():
        served = taken
    return PathTimes(
        times.end_to_end[served], times.time_to_first_token[served], per_token[served], any(times.saturated)
    )


def stage_replicas(design: Design) -> list[StageReplicas]:
    """The replicas of each live stage as the simulation wants them."""
    return [replicas_of_set(replicas) for replicas in design.replicas]


def replicas_of_set(replicas: ReplicaSet) -> StageReplicas:
    """A stage's replicas as the simulation wants them."""
    steps = [o.step for o, count in zip(replicas.options, replicas.counts, strict=True) for _ in range(count)]
    rates = [rate for rate, count in zip(replicas.rates, replicas.counts, strict=True) for _ in range(count)]
    return StageReplicas(steps, rates if min(rates) > 0 else [1.0] * len(steps))
