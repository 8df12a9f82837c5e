"""End-to-end latency of a replica under Poisson arrivals, in closed form.

A mean field: with n requests decoding on average, a decode step takes D(n) and each prompt adds
X(n) to the step (or steps) that it shares. Prompts arrive at rate r and occupy a share u = r·E[X]
of the time, so the mean time between a request's tokens is ``s = D / (1 - u)``, and by Little's law
``n = r·E[o - 1]·s``. Solved for the rate instead of for n this is explicit::

    r(n) = n / (E[o - 1]·D(n) + n·E[X(n)])

so rate and latency are tabulated over n once a call and interpolated for every rate. A request of class
k (prompt i, answer o) then takes on average

* the rest of the step that it meets: half of D, or of a step with prompts;
* its own prefill, in one step with the prompts that arrived while it waited;
* (o - 1)·s, and the wake of its prefill: prompts gather during a long step, and lengthen the next.

The variance is that of the prompts that happen to interrupt its decoding, of the step that it meets
and of its own prompt; each class counts as two points with that mean and variance, and percentiles
are read off all of them.

What it leaves out is queueing for batch slots and for the key-value cache, and how prompts bunch
beyond a second moment. Against simulation up to `trusted_rate`, on models, lengths and seeds by which
the limits below were not chosen, 20 of 23 cases were within 5 % from the median to the 95th
percentile; the worst, with a small cache, was 7 % low. The 99th percentile was up to 12 % off. Above
that rate it ranks, and the simulation decides. It is no estimate of time to first token at any load.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cascadia_solver.compiled import compiled
from cascadia_solver.scheduling_kernel import Floats, Ints
from cascadia_solver.steptime import ANSWER_SHARE, StepModel, step_seconds

__all__ = ["LengthProfile", "length_profile", "replica_latency", "trusted_latency", "trusted_rate"]

TRUSTED_OCCUPANCY = 0.57
"""Highest mean share of batch slots, or of the cache, at which the closed form stands in for simulation."""
TRUSTED_SHARE = 0.15
"""Highest share of the time that prompts may take."""
TRUSTED_PROMPT_SPREAD = 0.1
"""Highest deviation of a request's own prefill among requests of one class, relative to the mean latency."""
TRUSTED_DISPERSION = 0.1
"""Highest deviation of latency that other requests' prompts cause, relative to the mean latency."""

_step_seconds = compiled(step_seconds)

# Quantile edges of a profile's classes: finer towards the tail, where the percentiles are read.
_EDGES = np.concatenate(
    [np.linspace(0.0, 0.8, 16, endpoint=False), np.linspace(0.8, 0.9, 4, endpoint=False),
     np.linspace(0.9, 0.98, 8, endpoint=False), np.linspace(0.98, 1.0, 5)]
)  # fmt: skip

_STEPS_PER_PROMPT_TOKEN = 1.0 / 250.0
"""Latency of one prompt token in decode steps: (2 operations ÷ rate) ÷ (2 bytes ÷ bandwidth), about
the same for all models and recent GPUs. It only decides which requests share a class."""

_GRID = 40
"""Operating points that are tabulated, and the least mean number of decoding requests but 0."""
_LEAST_DECODING = 0.02

_UPPER_SHARE = 0.25
"""Share of a class's upper point; less than one half makes the class skew upwards, as queues do."""


class LengthProfile(NamedTuple):
    """Joint distribution of prompt and answer lengths, reduced to classes of similar latency.

    Attributes:
        inputs: Mean prompt length of each class, [k], tokens.
        input_squares: Mean squared prompt length of each class, [k].
        outputs: Mean answer length of each class, [k], tokens.
        shares: Share of the requests, [k]; sums to 1.
    """

    inputs: Floats
    input_squares: Floats
    outputs: Floats
    shares: Floats


def length_profile(inputs: npt.ArrayLike, outputs: npt.ArrayLike) -> LengthProfile:
    """Reduce lengths to at most 32 classes, keeping their means.

    Args:
        inputs: Prompt lengths, [n], n ≥ 1.
        outputs: Answer lengths, [n].

    Raises:
        ValueError: If there are no lengths, or not equally many.
    """
    prompts = np.maximum(np.asarray(inputs, dtype=np.float64), 1.0)
    answers = np.maximum(np.asarray(outputs, dtype=np.float64), 1.0)
    if len(prompts) == 0 or prompts.shape != answers.shape:
        raise ValueError(f"need equally many prompt and answer lengths, not {prompts.shape} and {answers.shape}")
    order = np.argsort(answers + _STEPS_PER_PROMPT_TOKEN * prompts, kind="stable")
    edges = np.unique(np.rint(_EDGES * len(order)).astype(np.int64))
    starts, sizes = edges[:-1], np.diff(edges).astype(np.float64)
    return LengthProfile(
        np.add.reduceat(prompts[order], starts) / sizes,
        np.add.reduceat(prompts[order] ** 2, starts) / sizes,
        np.add.reduceat(answers[order], starts) / sizes,
        sizes / len(order),
    )


def replica_latency(step: StepModel, rates: npt.ArrayLike, profile: LengthProfile, percentile: float = 95.0) -> Floats:
    """A percentile of the end-to-end latency at each of several rates.

    Args:
        step: The replica's step model.
        rates: Mean arrival rates, [m], requests/s, ≥ 0.
        profile: Of the lengths that arrive there.
        percentile: From 50 to below 100.

    Returns:
        Seconds, [m]; infinite where the replica is saturated. A lower bound, roughly, above
        `trusted_rate`.
    """
    wanted = np.ascontiguousarray(rates, dtype=np.float64)
    return _latencies(step, wanted, profile, percentile / 100.0)


def trusted_rate(step: StepModel, profile: LengthProfile) -> float:
    """The highest rate, requests/s, up to which `replica_latency` may stand in for simulation.

    0 where it was seen to miss by 7 % and more: pipelines and mixtures of experts, whose
    step times bend with the batch, and prompts so long and so varied that prefill rules the latency.
    """
    return float(_trusted_rate(step, profile))


def trusted_latency(step: StepModel, rate: float, profile: LengthProfile, percentile: float = 95.0) -> float | None:
    """`replica_latency` at one rate, or None where a simulation is needed."""
    if not rate <= trusted_rate(step, profile):
        return None
    return float(replica_latency(step, [rate], profile, percentile)[0])


@compiled
def _prefill_seconds(step: StepModel, prompt: float, batch: float, context: float) -> tuple[float, float]:
    """Time and number of the steps that process one prompt beside a decoding batch."""
    seconds = 0.0
    steps = 0.0
    done = 0.0
    while done < prompt:
        chunk = min(step.chunk_tokens, prompt - done)
        seconds += _step_seconds(step, chunk, chunk * done + 0.5 * chunk * (chunk + 1.0), batch, context)
        steps += 1.0
        done += chunk
    return seconds, steps


@compiled
def _most_decoding(step: StepModel, profile: LengthProfile) -> float:
    """Mean number of decoding requests at which slots or cache run out."""
    held = 0.0
    decode_steps = 0.0
    for k in range(len(profile.shares)):
        weight = profile.shares[k] * max(profile.outputs[k] - 1.0, 1.0)
        decode_steps += weight
        held += weight * (profile.inputs[k] + ANSWER_SHARE * profile.outputs[k])
    return float(min(step.max_running, step.kv_capacity_tokens * decode_steps / held))


@compiled
def _decode_tokens(profile: LengthProfile) -> tuple[float, float]:
    """Mean number of decode steps of a request, and mean context of a decoding one."""
    steps = 0.0
    context = 0.0
    for k in range(len(profile.shares)):
        weight = profile.shares[k] * (profile.outputs[k] - 1.0)
        steps += weight
        context += weight * (profile.inputs[k] + 0.5 * profile.outputs[k])
    # Answers of one token never decode; a trace of decoding keeps the formulas defined.
    return max(steps, 1e-3), context / steps if steps > 0.0 else 0.0


class _Point(NamedTuple):
    """A replica at a mean number of decoding requests.

    Attributes:
        rate: Arrivals/s that lead to it.
        decoding: Mean number of decoding requests.
        decode: D, s.
        extra: E[X], s.
        square: E[X²], s².
    """

    rate: float
    decoding: float
    decode: float
    extra: float
    square: float


class _Load(NamedTuple):
    """What a request meets at an operating point.

    Attributes:
        share: Share of the time that prompts take, u.
        token: Mean time between tokens, s.
        met: Mean rest of the step under way at arrival, s.
        others: Mean prefill of others in the same step, s.
        queue: Deviation of the time before the first token, s.
        burst: Mean prompt work of a step with prompts as an arrival sees it, s.
    """

    share: float
    token: float
    met: float
    others: float
    queue: float
    burst: float


@compiled
def _operating_point(step: StepModel, profile: LengthProfile, decoding: float) -> _Point:
    """The point at which so many requests decode on average.

    A decoding request finds the others beside itself, so the batch that counts is one larger.
    """
    decode_steps, context = _decode_tokens(profile)
    batch = decoding + 1.0
    decode = _step_seconds(step, 0.0, 0.0, batch, batch * context)
    plain = _step_seconds(step, 0.0, 0.0, decoding, decoding * context) if decoding > 0.0 else 0.0
    alone = 0.0
    square = 0.0
    mean = 0.0
    for k in range(len(profile.shares)):
        prompt = profile.inputs[k]
        seconds, steps = _prefill_seconds(step, prompt, decoding, decoding * context)
        added = seconds - steps * plain
        mean += profile.shares[k] * prompt
        alone += profile.shares[k] * added
        square += profile.shares[k] * added * added * profile.input_squares[k] / (prompt * prompt)
    # The weights are read once a step: what the first prompt hides behind that, the second cannot.
    first, _ = _prefill_seconds(step, mean, decoding, decoding * context)
    pairs = 0.5 * mean * (mean + 1.0)
    if mean <= step.chunk_tokens:
        both = _step_seconds(step, 2.0 * mean, 2.0 * pairs, decoding, decoding * context)
        hidden = max(both - 2.0 * first + plain, 0.0)
    else:
        hidden = 0.0
    extra = alone
    rate = 0.0
    for _ in range(4):
        rate = decoding / (decode_steps * decode + decoding * extra)
        prompts = rate * decode / max(1.0 - rate * extra, 1e-3)  # in one step, on average
        firsts = (1.0 - np.exp(-prompts)) / prompts if prompts > 0.0 else 1.0
        extra = alone + hidden * (1.0 - firsts)
    return _Point(rate, decoding, decode, extra, square + extra * extra - alone * alone)


@compiled
def _load(point: _Point) -> _Load:
    share = min(point.rate * point.extra, 0.999)
    prompting = min(share + point.rate * point.decode, 1.0)  # a step with prompts is under way
    burst = point.square / point.extra / (1.0 - share)
    met = 0.5 * (point.decode * (1.0 - np.exp(-point.decoding)) + prompting * burst)
    queue = prompting * burst * (0.5 + share) / (1.0 - share)
    return _Load(share, point.decode / (1.0 - share), met, 2.0 * share * met, queue, burst)


@compiled
def _interruption_variance(load: _Load, decode_steps: float) -> float:
    """Variance of a decode of so many steps that other requests' prompts cause, s²."""
    return load.share * load.burst * decode_steps * load.token / (1.0 - load.share) + load.queue * load.queue


@compiled
def _trusted_rate(step: StepModel, profile: LengthProfile) -> float:
    """Bisect the mean number of decoding requests, in which all criteria are monotone."""
    if step.decode_share < 1.0 or step.expert_seconds > 0.0:
        return 0.0
    idle = _operating_point(step, profile, 0.0)
    own_variance = 0.0
    for k in range(len(profile.shares)):
        prompt = profile.inputs[k]
        own, _ = _prefill_seconds(step, prompt, 0.0, 0.0)
        own_variance += profile.shares[k] * own * own * max(profile.input_squares[k] / (prompt * prompt) - 1.0, 0.0)
    decode_steps, _ = _decode_tokens(profile)
    if own_variance > (TRUSTED_PROMPT_SPREAD * (idle.extra + decode_steps * idle.decode)) ** 2:
        return 0.0
    low = 0.0
    high = TRUSTED_OCCUPANCY * _most_decoding(step, profile)
    middle = high
    for _ in range(24):
        point = _operating_point(step, profile, middle)
        load = _load(point)
        latency = load.met + load.others + point.extra + decode_steps * load.token
        variance = _interruption_variance(load, decode_steps)
        if load.share <= TRUSTED_SHARE and variance <= (TRUSTED_DISPERSION * latency) ** 2:
            low = middle
        else:
            high = middle
        if low == high:
            break
        middle = 0.5 * (low + high)
    return _operating_point(step, profile, low).rate


@compiled
def _latencies(step: StepModel, rates: Floats, profile: LengthProfile, level: float) -> Floats:
    classes = len(profile.shares)
    most = _most_decoding(step, profile)
    _, context = _decode_tokens(profile)
    # A prompt's own time grows about linearly with the batch beside it.
    alone = np.empty(classes)
    beside = np.empty(classes)
    for k in range(classes):
        alone[k] = _prefill_seconds(step, profile.inputs[k], 0.0, 0.0)[0]
        beside[k] = (_prefill_seconds(step, profile.inputs[k], most, most * context)[0] - alone[k]) / most

    # Mean numbers of decoding requests: none, then a geometric grid up to the limit.
    growth = (most / _LEAST_DECODING) ** (1.0 / (_GRID - 2))
    curve_rates = np.empty(_GRID)
    curve = np.empty(_GRID)
    points = np.empty(2 * classes)
    order = np.arange(2 * classes)
    down = np.sqrt(_UPPER_SHARE / (1.0 - _UPPER_SHARE))
    empty = 0.0
    for g in range(_GRID):
        point = _operating_point(step, profile, _LEAST_DECODING * growth ** (g - 1) if g else 0.0)
        load = _load(point)
        if g == 0:
            empty = load.token
        for k in range(classes):
            own = alone[k] + point.decoding * beside[k]
            steps = profile.outputs[k] - 1.0
            wake = load.share * max(own + load.others - load.token, 0.0) * (1.0 - load.share**steps)
            mean = load.met + own + load.others + steps * load.token + wake / (1.0 - load.share)
            spread = max(profile.input_squares[k] / (profile.inputs[k] * profile.inputs[k]) - 1.0, 0.0)
            own_deviation = own / (1.0 - load.share)
            deviation = np.sqrt(_interruption_variance(load, steps) + own_deviation * own_deviation * spread)
            points[2 * k] = max(mean - deviation * down, profile.outputs[k] * empty)
            points[2 * k + 1] = mean + deviation / down
        latency = _quantile(points, order, profile.shares, level)
        # More load is never faster; the two-point classes alone would waver by some percent.
        curve_rates[g] = max(point.rate, curve_rates[g - 1]) if g else 0.0
        curve[g] = max(latency, curve[g - 1]) if g else latency

    result = step.first_token_seconds + np.interp(rates, curve_rates, curve)
    for m in range(len(rates)):
        if not rates[m] <= curve_rates[_GRID - 1]:
            result[m] = np.inf
    return result


@compiled
def _quantile(points: Floats, order: Ints, shares: Floats, level: float) -> float:
    """Quantile of the classes' points, each standing for the middle of its share.

    Args:
        points: Lower and upper point of each class, [2 k].
        order: A permutation that nearly sorts them, from the last call; left sorted.
        shares: Of the classes, [k].
        level: In (0, 1).
    """
    for start in range(1, len(order)):
        entry = order[start]
        at = start
        while at > 0 and points[order[at - 1]] > points[entry]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = entry
    below = 0.0
    position = 0.0
    value = points[order[0]]
    for entry in order:
        share = shares[entry >> 1] * (_UPPER_SHARE if entry & 1 else 1.0 - _UPPER_SHARE)
        middle = below + 0.5 * share
        if middle >= level:
            if below == 0.0:
                return float(value)
            return float(value + (points[entry] - value) * (level - position) / (middle - position))
        position = middle
        value = points[entry]
        below += share
    return float(value)
