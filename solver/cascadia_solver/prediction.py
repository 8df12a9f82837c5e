"""What one replica would do at a concurrency or at a rate, by the same code that plans.

The simulation says when each request's tokens come. Two things lie outside of it: the time that a
request spends outside the engine's steps, and, in a closed loop, the bunches in which clients ask.
Both were fitted with the factors (see `closed_loop`). Bunches move time from the tokens after the first
to the first and leave the end as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cascadia_api.errors import InputError, Problem
from cascadia_solver.catalogue.gpus import GpuFacts
from cascadia_solver.catalogue.models import ModelFacts
from cascadia_solver.closed_loop import closed_loop
from cascadia_solver.engine_settings import EngineSettings, with_settings
from cascadia_solver.roofline import CostSource, Roofline, Shape
from cascadia_solver.scheduling_kernel import Floats
from cascadia_solver.shapes import unsupported_precision
from cascadia_solver.simulation import StageReplicas, simulate_closed_loop, simulate_stage
from cascadia_solver.steptime import ANSWER_SHARE, StepModel

__all__ = ["Latency", "Prediction", "predict"]

_PERCENTILES = (50, 90, 95, 99)
_SEED = 20250604
_REQUESTS = 10_000
_ROUNDS = 20
"""A closed loop needs fewer requests: this many per client, within the limits below."""
_FEWEST = 200
_FITTED_SPREAD = 0.065
"""Answers of the measurements that bunches were fitted to vary by this standard deviation, in their mean, or less."""
_LEAST_DECODING = 0.1
"""Share of a request's decoding that bunches leave after its first token."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles of a latency, ms."""

    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float

    def by_percentile(self) -> list[tuple[int, float]]:
        """Percentiles and values."""
        return list(zip(_PERCENTILES, (self.p50_ms, self.p90_ms, self.p95_ms, self.p99_ms), strict=True))

    def to_json(self) -> dict[str, float]:
        """With the field names of ``predict -o json``."""
        return {f"p{percentile}Ms": value for percentile, value in self.by_percentile()}


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one replica would do.

    Attributes:
        fits: Whether the model fits into the GPUs' memory; nothing else is predicted if not.
        reason: The memory's numbers in a sentence.
        kv_capacity_tokens: Tokens that the key-value cache holds; 0 if the model does not fit.
        ttft: Time to first token.
        tpot: Time per output token after the first; None if no answer has a second token.
        e2e: End-to-end latency.
        output_tokens_per_second: Produced by the replica while it is loaded.
        saturated: Whether the queue grows without bound at this rate, so that the latencies only
            say how long it had been growing; or, in a closed loop, whether clients wait for a place
            in the batch.
        source: Where the step times come from.
        uncertainty_percent: Expected error of the latencies.
        extrapolates: In what the replica differs from all that the source was measured on.
    """

    fits: bool
    reason: str
    kv_capacity_tokens: int
    ttft: Latency | None
    tpot: Latency | None
    e2e: Latency | None
    output_tokens_per_second: float
    saturated: bool
    source: str
    uncertainty_percent: float
    extrapolates: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """The document that ``predict -o json`` prints."""
        return {
            "fits": self.fits,
            "reason": self.reason,
            "kvCapacityTokens": self.kv_capacity_tokens,
            "ttft": self.ttft.to_json() if self.ttft else None,
            "tpot": self.tpot.to_json() if self.tpot else None,
            "e2e": self.e2e.to_json() if self.e2e else None,
            "outputTokensPerSecond": self.output_tokens_per_second,
            "saturated": self.saturated,
            "source": self.source,
            "uncertaintyPercent": self.uncertainty_percent,
            "extrapolates": list(self.extrapolates),
        }


def predict(
    model: ModelFacts,
    gpu: GpuFacts,
    shape: Shape,
    precision: str,
    inputs: npt.ArrayLike,
    outputs: npt.ArrayLike,
    *,
    concurrency: int | None = None,
    rate: float | None = None,
    gpus_per_node: int = 8,
    source: CostSource | None = None,
    prefix_cache_hit: float = 0.0,
    chunk_tokens: int | None = None,
) -> Prediction:
    """Predict one replica by simulation; the same arguments give the same numbers.

    Args:
        model: The model.
        gpu: The GPU.
        shape: Degrees of parallelism.
        precision: Of the weights.
        inputs: Prompt lengths to draw from: one number, or [n].
        outputs: Answer lengths, drawn together with the prompts: one number, or [n].
        concurrency: Clients that ask again as soon as they are answered; or
        rate: Poisson arrivals/s. Exactly one of the two.
        gpus_per_node: GPUs of one server.
        source: Cost source; the roofline by default.
        prefix_cache_hit: Share of each prompt that the engine's prefix cache has, 0 to 100 %.
        chunk_tokens: Most prompt tokens in one step; SGLang's default for the GPU where None.

    Raises:
        InputError: If both or neither of concurrency and rate are given, a number is senseless, the
            tensor degree does not divide the heads, or a request is longer than the context window
            or the key-value cache.
    """
    prompts, answers = _drawn_lengths(model, inputs, outputs)
    _check_load(concurrency, rate)
    if shape.tensor_parallel < 1 or model.heads % shape.tensor_parallel:
        problem = f"{shape.tensor_parallel} does not divide the {model.heads} attention heads of {model.name}"
        raise InputError(Problem("tensorParallel", f"{problem}: use a power of two"))
    if (refused := unsupported_precision(model, gpu, precision)) is not None:
        raise InputError(Problem("precision", refused))
    if not 0.0 <= prefix_cache_hit <= 100.0:
        raise InputError(Problem("prefix-cache-hit", f"{prefix_cache_hit:g} is not between 0 and 100 %"))
    if chunk_tokens is not None and chunk_tokens < 1:
        raise InputError(Problem("chunked-prefill-size", f"must be at least 1 token, not {chunk_tokens}"))
    costs = with_settings(source if source is not None else Roofline(), EngineSettings(prefix_cache_hit, chunk_tokens))
    memory = costs.memory_use(model, gpu, shape, precision)
    uncertainty = round(costs.uncertainty_percent(model, gpu, shape), 1)
    extrapolates = costs.extrapolations(model, gpu, shape)
    if not memory.fits:
        return Prediction(
            fits=False,
            reason=memory.reason,
            kv_capacity_tokens=0,
            ttft=None,
            tpot=None,
            e2e=None,
            output_tokens_per_second=0.0,
            saturated=False,
            source=costs.name,
            uncertainty_percent=uncertainty,
            extrapolates=extrapolates,
        )
    step = costs.step_model(model, gpu, shape, precision, gpus_per_node=gpus_per_node)
    longest = float((prompts + answers).max())
    if longest > step.kv_capacity_tokens:
        raise InputError(
            f"a request of {longest:.0f} tokens exceeds the key-value cache of {step.kv_capacity_tokens:.0f} tokens; "
            f"use more or larger GPUs a replica"
        )
    random = np.random.default_rng(_SEED)
    if rate is not None:
        drawn = random.integers(len(prompts), size=_REQUESTS)
        prompts, answers = prompts[drawn], answers[drawn]
        arrivals = np.cumsum(random.exponential(1.0 / rate, _REQUESTS))
        times = simulate_stage(StageReplicas([step], [1.0]), arrivals, prompts, answers)
        first, finish, saturated = times.first_token, times.finish, times.saturated
        counted = np.arange(_REQUESTS // 20, _REQUESTS)  # the start finds an empty replica
        span = float(finish.max() - arrivals[0])
        throughput = float(answers.sum()) / span
    else:
        clients = concurrency or 1
        size = max(min(_ROUNDS * clients, _REQUESTS), _FEWEST, 4 * clients)
        drawn = random.integers(len(prompts), size=size)
        prompts, answers = prompts[drawn], answers[drawn]
        arrivals, _, finish = simulate_closed_loop(step, clients, prompts, answers)
        ramp = float((finish - arrivals).mean())
        arrivals, first, finish = simulate_closed_loop(step, clients, prompts, answers, ramp_seconds=ramp)
        # Neither while the clients start nor once the first of them has nobody to ask for.
        opened, closed = 2.0 * ramp, float(arrivals.max())
        counted = np.flatnonzero((arrivals >= min(opened, 0.5 * closed)) & (arrivals <= closed))
        throughput = _throughput(answers, first, finish, min(opened, 0.5 * closed), closed)
        room = step.kv_capacity_tokens / float((prompts + ANSWER_SHARE * answers).mean())
        saturated = clients > min(room, step.max_running)
        bunched = _bunching(step, clients, prompts, answers, first[counted] - arrivals[counted])
        first = np.minimum(first + bunched, np.maximum(finish - _LEAST_DECODING * (finish - first), first))
        first, finish = first + step.first_token_seconds, finish + step.first_token_seconds
        # Clients ask again so much later too (Little's law).
        cycle = float((finish - arrivals)[counted].mean())
        throughput *= (cycle - step.first_token_seconds) / cycle
    several = counted[answers[counted] > 1]
    token_times = (finish[several] - first[several]) / (answers[several] - 1.0)
    return Prediction(
        fits=True,
        reason=memory.reason,
        kv_capacity_tokens=memory.kv_capacity_tokens,
        ttft=_percentiles(first[counted] - arrivals[counted]),
        tpot=_percentiles(token_times) if len(several) else None,
        e2e=_percentiles(finish[counted] - arrivals[counted]),
        output_tokens_per_second=throughput,
        saturated=saturated,
        source=costs.name,
        uncertainty_percent=uncertainty,
        extrapolates=extrapolates,
    )


def _bunching(step: StepModel, clients: int, prompts: Floats, answers: Floats, simulated: Floats) -> float:
    """Seconds by which first tokens come later than simulated, since clients ask in bunches."""
    mean = float(answers.mean())
    spread = max(0.0, float(answers.std()) / mean - _FITTED_SPREAD)
    loop = closed_loop(step, clients, float(prompts.mean()), mean, spread)
    measured = loop.first_token - loop.waiting - step.first_token_seconds
    return max(0.0, measured - float(np.median(simulated)))


def _drawn_lengths(model: ModelFacts, inputs: npt.ArrayLike, outputs: npt.ArrayLike) -> tuple[Floats, Floats]:
    prompts = np.atleast_1d(np.asarray(inputs, dtype=np.float64))
    answers = np.atleast_1d(np.asarray(outputs, dtype=np.float64))
    for field, lengths in (("input", prompts), ("output", answers)):
        if len(lengths) == 0 or not np.all(np.isfinite(lengths)) or lengths.min() < 1.0:
            raise InputError(Problem(field, "lengths must be at least 1 token"))
    if len(prompts) != len(answers):
        if min(len(prompts), len(answers)) > 1:
            raise InputError(f"{len(prompts)} input lengths and {len(answers)} output lengths do not pair up")
        prompts, answers = (np.array(side) for side in np.broadcast_arrays(prompts, answers))
    longest = float((prompts + answers).max())
    if longest > model.context_window:
        raise InputError(
            f"{longest:.0f} tokens of prompt and answer exceed the context window of {model.name}, "
            f"{model.context_window} tokens; use shorter ones"
        )
    return prompts, answers


def _check_load(concurrency: int | None, rate: float | None) -> None:
    if (concurrency is None) == (rate is None):
        raise InputError("give either a concurrency or a rate")
    if concurrency is not None and not 1 <= concurrency <= 100_000:
        raise InputError(Problem("concurrency", f"must be from 1 to 100000, not {concurrency}"))
    if rate is not None and not 1e-9 <= rate < 1e6:  # times of slower ones have no milliseconds
        raise InputError(Problem("rate", f"must be positive, from 1e-09 to 1000000 requests/s, not {rate:g}"))


def _throughput(answers: Floats, first: Floats, finish: Floats, opened: float, closed: float) -> float:
    """Tokens/s between two instants, each answer's further tokens spread evenly over its decoding."""
    took = np.maximum(finish - first, 1e-9)
    within = np.clip((np.minimum(finish, closed) - np.maximum(first, opened)) / took, 0.0, 1.0)
    firsts = (first >= opened) & (first <= closed)
    return float((firsts + (answers - 1.0) * within).sum()) / (closed - opened)


def _percentiles(seconds: Floats) -> Latency:
    return Latency(*(float(value) * 1e3 for value in np.percentile(seconds, _PERCENTILES)))
