"""Latency along the path in closed form: what points of the screening are ranked by.

Every stage adds its typical wait, and its prefill and decode by the request's own lengths, for the requests that get
there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cascadia_api.cascade import LatencyTarget
from cascadia_solver.compiled import compiled
from cascadia_solver.replay import ThresholdGrid
from cascadia_solver.workload import RequestSample

__all__ = ["estimated", "path_latency", "rows_to_estimate_on"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_LEAST_ROWS = 512
_ROWS, _ROWS_FOR_TARGETS = (1024, 1 << 19), (4096, 1 << 21)
"""Requests that a point is estimated on, and all points together, at most."""


def path_latency(
    stages: Sequence[int],
    thresholds: Sequence[Floats],
    parts: Sequence[Floats],
    inputs: Floats,
    outputs: Floats,
    scores: Floats,
    able: NDArray[np.bool_] | None = None,
    gate_tokens: int | None = None,
    scorer_seconds: float = 0.0,
) -> Floats:
    """Latency of each request along its path, in closed form.

    Args: see `_paths`.

    Returns:
        Seconds [K, n].
    """
    return _paths(stages, thresholds, parts, inputs, outputs, scores, able, gate_tokens, scorer_seconds)[0]


def _paths(
    stages: Sequence[int],
    thresholds: Sequence[Floats],
    parts: Sequence[Floats],
    inputs: Floats,
    outputs: Floats,
    scores: Floats,
    able: NDArray[np.bool_] | None,
    gate_tokens: int | None,
    scorer_seconds: float,
) -> tuple[Floats, NDArray[np.bool_]]:
    """Latency of each request along its path, and whether it gets to the last stage.

    Args:
        stages: Model index of each stage.
        thresholds: Of each stage but the last [K].
        parts: Wait, prefill and decode of each stage [K, 3].
        inputs: Prompt lengths [n].
        outputs: Answer lengths [n, C].
        scores: Raw scores [n, C].
        able: Which models can take each request [n, C]; None: all of them.
        gate_tokens: Where rejected answers stop; None: at their end.
        scorer_seconds: Added by each stage but the last.

    Returns:
        Seconds [K, n], and the requests that the last stage answers [K, n].
    """
    last = np.full(len(parts[0]), np.nan)
    taken = np.ones(outputs.shape, dtype=np.bool_) if able is None else able
    return _along_paths(
        np.array(stages, dtype=np.int64),
        np.stack([*thresholds, last], axis=1),
        np.stack(parts, axis=1),
        inputs,
        outputs,
        scores,
        taken,
        np.inf if gate_tokens is None else float(gate_tokens),
        scorer_seconds,
    )


@compiled
def _along_paths(
    stages: Integers,
    thresholds: Floats,
    parts: Floats,
    inputs: Floats,
    outputs: Floats,
    scores: Floats,
    able: NDArray[np.bool_],
    gate_tokens: float,
    scorer_seconds: float,
) -> tuple[Floats, NDArray[np.bool_]]:
    """`_paths`, with thresholds and parts of all stages [K, stages] and [K, stages, 3]."""
    final = len(stages) - 1
    seconds = np.zeros((len(parts), len(inputs)))
    last = np.zeros(seconds.shape, dtype=np.bool_)
    for v in range(len(parts)):
        for r in range(len(inputs)):
            for j in range(final + 1):
                model = stages[j]
                if not able[r, model]:
                    continue
                own = parts[v, j, 0] + parts[v, j, 1] * inputs[r] + parts[v, j, 2] * outputs[r, model]
                if j == final:
                    seconds[v, r] += own
                    last[v, r] = True
                    break
                own += scorer_seconds
                rejected = scores[r, model] < thresholds[v, j]
                if rejected and outputs[r, model] > gate_tokens:
                    own -= parts[v, j, 2] * (outputs[r, model] - gate_tokens)
                seconds[v, r] += own
                if not rejected:
                    break
    return seconds, last


def _targeted(
    targets: Sequence[LatencyTarget], times: Floats, last: NDArray[np.bool_], part: Floats, answers: Floats
) -> Floats:
    """What each target is on by the closed form, over the target [K, targets].

    Answers that may be rejected are held back until they are complete; those of the last stage stream. The closed
    form is far too fast at first tokens, so this is for ranking: what is kept is for the simulation to say.

    Args:
        targets: Latency targets.
        times: End-to-end seconds [K, n].
        last: Requests that the last stage answers [K, n].
        part: Wait, prefill and decode of the last stage [K, 3].
        answers: Answer lengths of the last stage [n].
    """
    result = np.empty((len(times), len(targets)))
    for place, target in enumerate(targets):
        decode = part[:, 2, None] * last
        if target.metric == "TimePerOutputToken":
            values = decode
        else:
            values = times if target.metric == "EndToEnd" else times - decode * np.maximum(answers - 1, 0)
        kth = min(values.shape[1] - 1, int(target.percentile / 100 * values.shape[1]))
        seconds = np.partition(values, kth, axis=1)[:, kth]
        result[:, place] = seconds * 1e3 / target.milliseconds
    return result


def rows_to_estimate_on(sample: RequestSample, model: int, points: int, *, closely: bool) -> Integers:
    """Requests that so many points are estimated on, fewer the more points.

    Evenly spread over the lengths of the last stage's answers, which most of a high percentile is due to.

    Args:
        sample: The traffic.
        model: That of the last stage.
        points: Number of points.
        closely: Whether latency targets are to be kept, which takes more of them.
    """
    most, in_all = _ROWS_FOR_TARGETS if closely else _ROWS
    count = min(len(sample), int(np.clip(in_all // max(1, points), _LEAST_ROWS, most)))
    places = ((np.arange(count) + 0.5) / count * len(sample)).astype(np.int64)
    return sample.by_length[model][places]


def estimated(
    grid: ThresholdGrid,
    vector: Integers,
    parts: Floats,
    sample: RequestSample,
    rows: Integers,
    percentile: float,
    targets: Sequence[LatencyTarget],
) -> tuple[Floats, Floats]:
    """Closed-form latency of points.

    Args:
        grid: The vectors.
        vector: Flat index of the threshold vector [K].
        parts: Wait s, prefill s/token, decode s/token of each stage [K, stages, 3].
        sample: The traffic.
        rows: The requests of it that it is estimated on.
        percentile: Of end-to-end latency.
        targets: Latency targets.

    Returns:
        The percentile of end-to-end latency, s [K], and what targets are on, over the targets [K, targets].
    """
    position = np.unravel_index(vector, grid.shape) if grid.shape else ()
    thresholds = [levels[k] for levels, k in zip(grid.levels, position, strict=True)]
    inputs, outputs, scores = sample.input_tokens[rows], sample.output_tokens[rows], sample.scores[rows]
    able = None if sample.able is None else sample.able[rows]
    latency, targeted = np.empty(len(vector)), np.empty((len(vector), len(targets)))
    for start in range(0, len(vector), 512):
        block = slice(start, start + 512)
        times, last = _paths(
            grid.stages,
            [t[block] for t in thresholds],
            [parts[block, j] for j in range(len(grid.stages))],
            inputs,
            outputs,
            scores,
            able,
            sample.gate_tokens,
            sample.scorer_seconds,
        )
        kth = min(len(rows) - 1, int(percentile / 100 * len(rows)))
        latency[block] = np.partition(times, kth, axis=1)[:, kth]
        targeted[block] = _targeted(targets, times, last, parts[block, -1], outputs[:, grid.stages[-1]])
    return latency, targeted
