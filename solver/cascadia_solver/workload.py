"""The traffic that is planned for, request by request.

A trace, the manifest's figures or what routers observed give rates and lengths; a calibration set
gives scores, worth and how answers differ between models. `match` joins them: each request of the
demand gets the calibration row of the same rank in answer length, so that long answers stay the hard
ones where the calibration set says so, while lengths themselves are those of the demand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cascadia_api.cascade import TokenLengths, Workload
from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.ordering import ascending
from cascadia_solver.trace import Trace

__all__ = [
    "SAMPLE_REQUESTS",
    "Demand",
    "RequestSample",
    "demand_of_manifest",
    "demand_of_trace",
    "first_requests",
    "log_normal_lengths",
    "match",
    "poisson_arrivals",
]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Masks = NDArray[np.uint8]

SAMPLE_REQUESTS = 10_000
"""At this many requests a simulated p95 has a relative standard deviation of 1.3 %."""
_TRACE_REQUESTS = 20_000
"""Most requests of a trace that are replayed."""
_RATIO_LIMIT = 8.0
"""Most that one model's answer may be longer or shorter than another's: guards against outlier rows."""
_Z95 = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True, eq=False)
class Demand:
    """What comes in, before it is known how hard it is.

    Attributes:
        requests_per_second: Mean arrival rate, 1/s.
        source: Where it is from.
        arrivals: Seconds from 0, ascending [n].
        input_tokens: [n].
        output_tokens: Answer lengths of the model `length_model` [n].
        length_model: Index of the model whose answers `output_tokens` describes.
        row_weights: Weights of the calibration rows, mean 1; None where all count alike.
        needs: What each request needs beyond text, as `ability.needs_mask` says [n]; None: what its
            calibration row needs.
    """

    requests_per_second: float
    source: Literal["Manifest", "Trace", "Observed"]
    arrivals: Floats
    input_tokens: Floats
    output_tokens: Floats
    length_model: int
    row_weights: Floats | None = None
    needs: Masks | None = None


@dataclass(frozen=True, eq=False)
class RequestSample:
    """Requests with all that any cascade of the models would make of them; n requests, C models.

    Attributes:
        requests_per_second: Mean arrival rate, 1/s.
        arrivals: Seconds from 0, ascending [n].
        input_tokens: [n].
        output_tokens: [n, C].
        scores: Raw scores [n, C].
        quality: Judged worth [n, C].
        row: Calibration row that each request was matched with [n].
        needs: What each request needs beyond text [n]; None: nothing.
        able: Which models can take each request [n, C]; None: all of them.
        gate_tokens: Tokens after which a rejected answer stops (`streaming.mode: Gate`); None: at its end.
        scorer_seconds: Time that scoring adds to an answer that may be rejected, s.
    """

    requests_per_second: float
    arrivals: Floats
    input_tokens: Floats
    output_tokens: Floats
    scores: Floats
    quality: Floats
    row: Integers
    needs: Masks | None = None
    able: NDArray[np.bool_] | None = None
    gate_tokens: int | None = None
    scorer_seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.arrivals)

    def taken_by(self, model: int) -> NDArray[np.bool_]:
        """Whether a model can take each request [n]."""
        return np.ones(len(self), dtype=np.bool_) if self.able is None else self.able[:, model]

    @cached_property
    def by_length(self) -> list[Integers]:
        """Requests of each model in ascending order of answer length, then of prompt length [C][n].

        Length profiles sort their requests: taken in this order they hardly have to.
        """
        keys = self.output_tokens + self.input_tokens[:, None] / 250
        return list(np.argsort(keys, axis=0, kind="stable").T)


def first_requests(sample: RequestSample, count: int) -> RequestSample:
    """The first requests of a sample, in as much time as so many take on average."""
    rows = slice(0, count)
    arrivals = sample.arrivals[rows]
    n = len(arrivals)
    span = float(arrivals[-1] - arrivals[0])
    period = (n - 1) / sample.requests_per_second
    return replace(
        sample,
        arrivals=(arrivals - arrivals[0]) * (period / span if span > 0 else 1.0),
        input_tokens=sample.input_tokens[rows],
        output_tokens=sample.output_tokens[rows],
        scores=sample.scores[rows],
        quality=sample.quality[rows],
        row=sample.row[rows],
        needs=None if sample.needs is None else sample.needs[rows],
        able=None if sample.able is None else sample.able[rows],
    )


def demand_of_manifest(workload: Workload, models: int, *, requests: int = SAMPLE_REQUESTS, seed: int = 0) -> Demand:
    """Demand as the manifest states it: Poisson arrivals, independent log-normal lengths."""
    rate = float(workload.requests_per_second)
    random = np.random.default_rng((seed, 1))
    return Demand(
        requests_per_second=rate,
        source="Manifest",
        arrivals=poisson_arrivals(rate, requests, random),
        input_tokens=random.permutation(log_normal_lengths(workload.input_tokens, requests)),
        output_tokens=random.permutation(log_normal_lengths(workload.output_tokens, requests)),
        length_model=models - 1,
    )


def demand_of_trace(
    trace: Trace, models: int, *, requests: int = SAMPLE_REQUESTS, requests_per_second: float | None = None
) -> Demand:
    """Demand of a trace, with its own arrival times.

    A trace of fewer than `requests` requests is repeated; of a long one, the requests in its middle
    are taken.

    Args:
        trace: The trace.
        models: Number of models; the trace's answers are taken to be the last one's.
        requests: Least number of requests.
        requests_per_second: Rate to scale the arrival times to; the trace's own where None.
    """
    count = len(trace)
    first = max(0, (count - _TRACE_REQUESTS) // 2)
    window = slice(first, first + _TRACE_REQUESTS)
    arrivals = trace.arrivals[window] - trace.arrivals[first]
    copies = math.ceil(requests / len(arrivals))
    period = arrivals[-1] * (1 + 1 / max(1, len(arrivals) - 1))
    repeated = (arrivals[None, :] + period * np.arange(copies)[:, None]).ravel()
    own_rate = (len(repeated) - 1) / float(repeated[-1])
    rate = requests_per_second or own_rate
    return Demand(
        requests_per_second=rate,
        source="Trace",
        arrivals=repeated * (own_rate / rate),
        input_tokens=np.tile(trace.input_tokens[window], copies),
        output_tokens=np.tile(trace.output_tokens[window], copies),
        needs=None if trace.needs is None else np.tile(trace.needs[window], copies),
        length_model=models - 1,
    )


def poisson_arrivals(rate: float, count: int, random: np.random.Generator) -> Floats:
    """Arrival times of a Poisson process, s, stretched so that the realised rate is exactly `rate`."""
    times = np.cumsum(random.exponential(size=count))
    return np.asarray((times - times[0]) * ((count - 1) / rate / (times[-1] - times[0])))


def log_normal_lengths(lengths: TokenLengths, count: int) -> Floats:
    """Evenly spaced quantiles of the log-normal distribution through the mean and the 95th percentile.

    With mean = exp(mu + s²/2) and p95 = exp(mu + 1.645 s): s is the lesser root of
    s²/2 - 1.645 s + ln(p95 / mean) = 0.

    Returns:
        Ascending lengths, whole tokens of at least 1 [count].
    """
    spread = _Z95 - math.sqrt(max(0.0, _Z95**2 - 2 * math.log(lengths.p95 / lengths.mean)))
    middle = math.log(lengths.mean) - spread**2 / 2
    tokens: Floats = np.maximum(1.0, np.rint(np.exp(middle + spread * _normal_quantiles(count))))
    return tokens


@lru_cache(maxsize=4)
def _normal_quantiles(count: int) -> Floats:
    quantile = NormalDist().inv_cdf
    upper = np.array([quantile((k + 0.5) / count) for k in range(count // 2, count)])
    return np.concatenate([-upper[::-1][: count // 2], upper])


def match(demand: Demand, table: CalibrationSet, *, seed: int = 0) -> RequestSample:
    """Give each request of the demand a calibration row of the same rank in answer length.

    The rows are resampled to as many as there are requests (each as often as its weight says, give or
    take one), both sides are sorted by the answer length of the demand's model, ties at random, and
    paired. Answer lengths of the other models keep their ratio to that model's in the row.

    Args:
        demand: n requests.
        table: Calibration set with C models.
        seed: Seed of the resampling and of ties.
    """
    random = np.random.default_rng((seed, 2))
    count = len(demand.arrivals)
    drawn = _resample(len(table), demand.row_weights, count, random)
    lengths = table.output_tokens[:, demand.length_model].take(drawn)
    row = np.empty(count, dtype=np.int64)
    ranked = ascending(lengths, ties=random.random(count))
    row[ascending(demand.output_tokens, ties=random.random(count))] = drawn[ranked]
    ratio = table.output_tokens / table.output_tokens[:, [demand.length_model]]
    outputs = demand.output_tokens[:, None] * np.clip(ratio, 1 / _RATIO_LIMIT, _RATIO_LIMIT).take(row, axis=0)
    return RequestSample(
        requests_per_second=demand.requests_per_second,
        arrivals=demand.arrivals,
        input_tokens=demand.input_tokens,
        output_tokens=np.maximum(1.0, np.rint(outputs)),
        scores=table.scores.take(row, axis=0),
        quality=table.quality.take(row, axis=0),
        row=row,
        needs=demand.needs if demand.needs is not None or table.needs is None else table.needs[row],
    )


def _resample(rows: int, weights: Floats | None, count: int, random: np.random.Generator) -> Integers:
    """Systematic resampling: row r comes floor or ceil of count * weight share times, in random order."""
    shares = np.full(rows, 1 / rows) if weights is None else weights / weights.sum()
    order = random.permutation(rows)
    steps = (np.arange(count) + random.random()) / count
    ends = np.searchsorted(steps, np.cumsum(shares[order]))
    ends[-1] = count
    return random.permutation(np.repeat(order, np.diff(ends, prepend=0)))
