"""What an engine's own counters say of a window of time, and by how much it was slower than predicted.

SGLang exports histograms of the time to first token and between tokens. Their sums give exact means (a
median would be interpolated in buckets as wide as 0.1 s), and the seconds spent between tokens, over the
window's, are the mean number n of requests that decode (Little). At that load and that rate r the mean field of
`operating_point` says, with D a decode step and X what a prompt adds to the step that it shares, ::

    between tokens = D / (1 - r X)
    first token    = t0 + X + D + (1 - exp(-n)) D / 2 + r E[X^2] / 2 / (1 - r X)

The two factors, of prompts and of decoding, with which the corrected step model gives the two means observed
are what an engine is slower by. What makes queues longer, a higher load, so does not pass for a slower engine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from cascadia_solver.live_correction import CorrectionKey, LiveCorrections, scaled
from cascadia_solver.steptime import StepModel, cached_tokens, step_seconds

__all__ = ["EngineCounters", "EngineWindow", "Slowdown", "learn", "read_counters", "slowdown", "window_between"]

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)")
_TOTALS = {
    "sglang:prompt_tokens_total": "prompt_tokens",
    "sglang:generation_tokens_total": "generation_tokens",
    "sglang:time_to_first_token_seconds_sum": "first_token_seconds",
    "sglang:time_to_first_token_seconds_count": "first_tokens",
    "sglang:inter_token_latency_seconds_sum": "between_seconds",
    "sglang:inter_token_latency_seconds_count": "between",
}
_NAMES = tuple(_TOTALS)
_LEAST_REQUESTS = 20
"""Windows with fewer say nothing."""
_FURTHEST = 8.0
_BUSIEST = 0.5
"""Share of the time that prompts may take: beyond it first tokens come when the queue lets them."""
_SQUARES = 1.5
"""Mean square of the time that prompts take, over its squared mean: their lengths vary as those of chats."""
_ROUNDS = 40
_CLOSE = 0.02
"""How near the observed time to first token has to be met."""


class EngineCounters(NamedTuple):
    """Totals since the engine's start.

    Attributes:
        at: When they were read, s of the engine's own time.
        prompt_tokens: Of answered requests.
        generation_tokens: The same.
        first_token_seconds: Sum of the times to first token.
        first_tokens: How many there are.
        between_seconds: Sum of the times between tokens.
        between: How many there are.
    """

    at: float
    prompt_tokens: float
    generation_tokens: float
    first_token_seconds: float
    first_tokens: float
    between_seconds: float
    between: float


def read_counters(text: str, at: float) -> EngineCounters | None:
    """Read an engine's ``/metrics``, summed over its ranks' label sets.

    Args:
        text: Prometheus text.
        at: Time of reading, s.

    Returns:
        The counters; None if one of them is missing: no SGLang, or one without ``--enable-metrics``.
    """
    totals: dict[str, float] = {}
    for line in text.splitlines():
        # Thousands of lines are of other metrics.
        sample = _SAMPLE.match(line) if line.startswith(_NAMES) else None
        field = _TOTALS.get(sample["name"]) if sample is not None else None
        if sample is None or field is None:
            continue
        try:
            totals[field] = totals.get(field, 0.0) + float(sample["value"])
        except ValueError:
            return None
    if len(totals) < len(_TOTALS) or not all(math.isfinite(total) for total in totals.values()):
        return None
    return EngineCounters(at=at, **totals)


class EngineWindow(NamedTuple):
    """What an engine did between two readings.

    Attributes:
        requests_per_second: First tokens by time.
        input_tokens: Mean prompt.
        output_tokens: Mean answer.
        decoding: Mean number of requests that decode.
        first_token_seconds: Mean time to first token.
        between_seconds: Mean time between tokens.
    """

    requests_per_second: float
    input_tokens: float
    output_tokens: float
    decoding: float
    first_token_seconds: float
    between_seconds: float


def window_between(before: EngineCounters, after: EngineCounters) -> EngineWindow | None:
    """The window between two readings; None if the engine restarted in it or answered fewer than 20 requests."""
    seconds = after.at - before.at
    change = EngineCounters(*(late - early for early, late in zip(before, after, strict=True)))
    if seconds <= 0.0 or min(change) < 0.0 or change.first_tokens < _LEAST_REQUESTS or change.between < 1.0:
        return None
    if change.prompt_tokens <= 0.0 or change.generation_tokens <= 0.0 or change.between_seconds <= 0.0:
        return None
    return EngineWindow(
        requests_per_second=change.first_tokens / seconds,
        input_tokens=change.prompt_tokens / change.first_tokens,
        output_tokens=change.generation_tokens / change.first_tokens,
        decoding=change.between_seconds / seconds,
        first_token_seconds=change.first_token_seconds / change.first_tokens,
        between_seconds=change.between_seconds / change.between,
    )


class Slowdown(NamedTuple):
    """How many times longer than predicted an engine took.

    Attributes:
        prefill: Prompts.
        decode: Decoding.
    """

    prefill: float
    decode: float


def slowdown(step: StepModel, window: EngineWindow) -> Slowdown | None:
    """Compare a window with the uncorrected prediction at its load.

    Args:
        step: The prediction.
        window: What was observed.

    Returns:
        The factors; None where queues hide them: prompts took more than half of the time, or first tokens waited
        for a place in the batch.
    """
    prefill = decode = 1.0
    for _ in range(_ROUNDS):
        first_token, between, busy = _predicted(scaled(step, prefill, decode), window)
        if busy > _BUSIEST:
            prefill /= 2.0**0.25
            continue
        prefill *= (window.first_token_seconds / first_token) ** 0.7
        decode *= (window.between_seconds / between) ** 0.7
        prefill, decode = (min(max(factor, 1.0 / _FURTHEST), _FURTHEST) for factor in (prefill, decode))
    first_token, between, busy = _predicted(scaled(step, prefill, decode), window)
    if abs(first_token / window.first_token_seconds - 1.0) < _CLOSE and busy < _BUSIEST:
        return Slowdown(prefill, decode)
    return None


def _predicted(step: StepModel, window: EngineWindow) -> tuple[float, float, float]:
    """Mean time to first token and between tokens at a window's load, s, and the share of time that prompts take."""
    rate, n = window.requests_per_second, window.decoding
    context = window.input_tokens + 0.5 * window.output_tokens
    decode = step_seconds(step, 0.0, 0.0, n + 1.0, (n + 1.0) * context)
    plain = step_seconds(step, 0.0, 0.0, n, n * context)
    prompt = _prompt_seconds(step, window.input_tokens, n, context)
    busy = rate * prompt
    left = max(1.0 - busy, 0.05)
    queue = 0.5 * rate * _SQUARES * prompt**2 / left
    first_token = step.first_token_seconds + prompt + plain + 0.5 * (1.0 - math.exp(-n)) * decode + queue
    return first_token, decode / left, busy


def _prompt_seconds(step: StepModel, prompt: float, decoding: float, context: float) -> float:
    """What one prompt adds to the steps of a decoding batch."""
    plain = step_seconds(step, 0.0, 0.0, decoding, decoding * context) if decoding > 0.0 else 0.0
    seconds, done = 0.0, float(cached_tokens(step, prompt))
    while done < prompt:
        chunk = min(step.chunk_tokens, prompt - done)
        pairs = chunk * done + 0.5 * chunk * (chunk + 1.0)
        seconds += step_seconds(step, chunk, pairs, decoding, decoding * context) - plain
        done += chunk
    return seconds


def learn(
    corrections: LiveCorrections, key: CorrectionKey, step: StepModel, windows: Mapping[str, EngineWindow]
) -> LiveCorrections:
    """The corrections after another look at the engines of one key.

    Args:
        corrections: Those learnt so far.
        key: Model, GPU, shape and engine version of the engines.
        step: What the uncorrected source says of them.
        windows: What each of them did, by name.
    """
    for _, window in sorted(windows.items()):
        found = slowdown(step, window)
        if found is not None:
            corrections = corrections.observed(key, "prefill", found.prefill, 1.0)
            corrections = corrections.observed(key, "decode", found.decode, 1.0)
    return corrections
