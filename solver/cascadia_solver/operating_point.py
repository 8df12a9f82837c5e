"""How fast a replica is at each load, per request: what path latencies are summed from.

A mean field in closed form, tabulated by load, with the parts of a request's latency kept apart::

    latency(in, out) = wait + in * prefill + out * decode

so that the latency of a path is a sum over its stages for each request of a joint sample. With n
requests decoding, a step takes D(n) and a prompt adds X(n), so that (Little)::

    rate(n) = n / (E[out - 1] D(n) + n X(n)),   decode = D / (1 - rate X)

Nothing beyond `LOAD_LIMIT` of a replica's slots, key-value cache or time is planned for. At high loads
the figures are optimistic (queueing for slots is left out); the simulation of finalists settles that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numba.np.unsafe.ndarray import to_fixed_tuple
from numpy.typing import NDArray

from cascadia_solver.compiled import compiled
from cascadia_solver.lengths import LengthProfile
from cascadia_solver.steptime import ANSWER_SHARE, StepModel, cached_tokens, step_seconds

__all__ = ["LOADS", "LOAD_LIMIT", "LoadCurves", "load_curves"]

Floats = NDArray[np.float64]

LOADS = 40
"""Points of a curve."""
LOAD_LIMIT = 0.85

_step_seconds = compiled(step_seconds)
_cached_tokens = compiled(cached_tokens)
_FIELDS = len(StepModel._fields)


@dataclass(frozen=True, eq=False)
class LoadCurves:
    """Operating points of R replicas under P length profiles, from idle to the load limit.

    Attributes:
        rate: Arrival rate, 1/s, ascending along the last axis [P, R, LOADS].
        latency: Percentile of end-to-end latency, s, non-decreasing [P, R, LOADS].
        parts: Wait s, prefill s/token and decode s/token of a request [P, R, LOADS, 3].
    """

    rate: Floats
    latency: Floats
    parts: Floats


def load_curves(steps: Sequence[StepModel], profiles: Sequence[LengthProfile], percentile: float) -> LoadCurves:
    """Tabulate every replica under every profile.

    Args:
        steps: Replicas.
        profiles: Of the lengths that arrive.
        percentile: Of the latency, in (0, 100).
    """
    classes = max(len(profile.shares) for profile in profiles)
    padded = np.zeros((3, len(profiles), classes))
    for row, profile in enumerate(profiles):
        padded[:, row, : len(profile.shares)] = profile.inputs, profile.outputs, profile.shares
    inputs, outputs, shares = padded
    points = _points(np.array(steps, dtype=np.float64), inputs, outputs, shares)
    latency = _latencies(points, inputs, outputs, shares, percentile / 100)
    return LoadCurves(
        rate=np.maximum.accumulate(points[..., 0], axis=-1),
        latency=np.maximum.accumulate(latency, axis=-1),
        parts=points[..., 1:],
    )


@compiled
def _latencies(points: Floats, inputs: Floats, outputs: Floats, shares: Floats, share: float) -> Floats:
    """Latency that this share of the requests does not exceed, of every profile, replica and load [P, R, LOADS]."""
    profiles, replicas, loads, _ = points.shape
    found = np.empty((profiles, replicas, loads))
    classes = shares.shape[1]
    seconds, of = np.empty(classes), np.empty(classes)
    for p in range(profiles):
        for r in range(replicas):
            for g in range(loads):
                wait, prefill, decode = points[p, r, g, 1], points[p, r, g, 2], points[p, r, g, 3]
                for k in range(classes):
                    # Classes come in about the order of their latency: insertion is the quickest sort.
                    own = wait + inputs[p, k] * prefill + outputs[p, k] * decode
                    at = k
                    while at > 0 and seconds[at - 1] > own:
                        seconds[at], of[at] = seconds[at - 1], of[at - 1]
                        at -= 1
                    seconds[at], of[at] = own, shares[p, k]
                seen, at = of[0], 0
                while at < classes - 1 and seen < share:
                    at += 1
                    seen += of[at]
                found[p, r, g] = seconds[at]
    return found


@compiled
def _prompt_seconds(step: StepModel, prompt: float, batch: float, context: float, plain: float) -> float:
    """What one prompt adds to the steps of a decoding batch, each of which takes so long without it."""
    seconds = 0.0
    done = float(_cached_tokens(step, prompt))
    while done < prompt:
        chunk = min(step.chunk_tokens, prompt - done)
        pairs = chunk * done + 0.5 * chunk * (chunk + 1.0)
        seconds += _step_seconds(step, chunk, pairs, batch, batch * context) - plain
        done += chunk
    return seconds


@compiled
def _points(steps: Floats, inputs: Floats, outputs: Floats, shares: Floats) -> Floats:
    """(rate, wait, prefill, decode) of every profile, replica and load [P, R, LOADS, 4]."""
    points = np.empty((len(inputs), len(steps), LOADS, 4))
    classes = inputs.shape[1]
    prompts, added = np.empty(classes + 2), np.empty(classes + 2)  # of each class, then a mean one and twice that
    for p in range(len(inputs)):
        mean_in = 0.0
        decode_steps = 0.0
        context = 0.0
        held = 0.0
        for k in range(classes):
            prompts[k] = inputs[p, k]
            mean_in += shares[p, k] * inputs[p, k]
            weight = shares[p, k] * max(outputs[p, k] - 1.0, 1e-3)
            decode_steps += weight
            context += weight * (inputs[p, k] + 0.5 * outputs[p, k])
            held += weight * (inputs[p, k] + ANSWER_SHARE * outputs[p, k])
        prompts[classes], prompts[classes + 1] = mean_in, 2.0 * mean_in
        context /= decode_steps
        held /= decode_steps
        for r in range(len(steps)):
            step = StepModel(*to_fixed_tuple(steps[r], _FIELDS))  # type: ignore[call-arg]  # as in scheduling_kernel
            most = LOAD_LIMIT * min(step.max_running, step.kv_capacity_tokens / held)
            least, growth, decoding = 0.0, 1.0, 0.0
            for g in range(LOADS):
                plain = _step_seconds(step, 0.0, 0.0, decoding, decoding * context) if decoding > 0.0 else 0.0
                for k in range(len(prompts)):
                    added[k] = _prompt_seconds(step, prompts[k], decoding, context, plain)
                once, twice = added[classes], added[classes + 1]
                extra = 0.0
                square = 0.0
                for k in range(classes):
                    extra += shares[p, k] * added[k]
                    square += shares[p, k] * added[k] * added[k]
                batch = decoding + 1.0
                decode = _step_seconds(step, 0.0, 0.0, batch, batch * context)
                if g == 0:
                    # Answers of a token or two hardly decode: prompts fill a replica before 0.05 requests do.
                    least = min(0.05, 0.5 * most, 0.05 * decode_steps * decode / max(extra, 1e-12))
                    growth = (most / least) ** (1.0 / (LOADS - 2))
                rate = decoding / (decode_steps * decode + decoding * extra)
                if g > 0 and rate * extra > LOAD_LIMIT:
                    for figure in range(4):
                        points[p, r, g, figure] = points[p, r, g - 1, figure]
                    continue
                token = decode / (1.0 - rate * extra)
                prefill = (twice - once) / mean_in
                # Half a step when busy, and the prompts ahead (Pollaczek and Khinchine).
                queue = 0.5 * rate * square / (1.0 - rate * extra)
                wait = 0.5 * decode * (1.0 - np.exp(-decoding)) + queue + once - mean_in * prefill
                points[p, r, g, 0] = rate
                points[p, r, g, 1] = step.first_token_seconds + wait - token
                points[p, r, g, 2] = prefill
                points[p, r, g, 3] = token
                decoding = least if g == 0 else decoding * growth
    return points
