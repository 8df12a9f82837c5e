"""The engine's counters and their Prometheus text, under SGLang's names.

Own counters instead of a client library: a few integers a request, and a process that stays small.
"""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["EngineMetrics", "Histogram"]

LATENCY_EDGES = (0.1, 0.2, 0.4, 0.6, 0.8, 1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 200, 400, 600, 1200, 1800, 2400)
"""SGLang's buckets of end-to-end and first-token times, s."""
TOKEN_TIME_EDGES = (
    *(0.002, 0.004, 0.006, 0.008, 0.010, 0.015, 0.020, 0.025, 0.030, 0.035, 0.040, 0.060, 0.080),
    *(0.100, 0.200, 0.400, 0.600, 0.800, 1.0, 2.0, 4.0, 6.0, 8.0),
)
"""SGLang's buckets of the time between tokens, s."""
LATENESS_EDGES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Histogram:
    """Counts of observations in buckets ≤ each edge, and their sum and maximum."""

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0
        self.max = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, `times` times."""
        self.counts[bisect_left(self.edges, value)] += times
        self.sum += value * times
        if value > self.max:
            self.max = value

    @property
    def count(self) -> int:
        """Number of observations."""
        return sum(self.counts)

    def lines(self, name: str, labels: str) -> list[str]:
        """Prometheus text of this histogram."""
        lines, total = [f"# TYPE {name} histogram"], 0
        for edge, count in zip((*self.edges, float("inf")), self.counts, strict=True):
            total += count
            bound = "+Inf" if edge == float("inf") else repr(float(edge))
            lines.append(f'{name}_bucket{{{labels},le="{bound}"}} {total}')
        lines += [f"{name}_sum{{{labels}}} {self.sum}", f"{name}_count{{{labels}}} {total}"]
        return lines


class EngineMetrics:
    """What the engine counts.

    Attributes:
        first_token: Arrival to first token, virtual s.
        end_to_end: Arrival to last token, virtual s.
        between_tokens: Mean time between an answer's tokens, counted once a token, virtual s.
        lateness: How much later than its virtual finish an answer was sent, virtual s: this
            machine's own overhead, times the clock's scale.
        requests, prompt_tokens, generation_tokens: Answered requests and their tokens.
        cancelled: Requests whose client went away.
    """

    def __init__(self) -> None:
        self.first_token = Histogram(LATENCY_EDGES)
        self.end_to_end = Histogram(LATENCY_EDGES)
        self.between_tokens = Histogram(TOKEN_TIME_EDGES)
        self.lateness = Histogram(LATENESS_EDGES)
        self.requests = self.prompt_tokens = self.generation_tokens = self.cancelled = 0

    def answered(
        self, arrived: float, first_token: float, finished: float, late: float, input_tokens: int, output_tokens: int
    ) -> None:
        """Count an answer; times in virtual seconds."""
        self.requests += 1
        self.prompt_tokens += input_tokens
        self.generation_tokens += output_tokens
        self.first_token.observe(first_token - arrived)
        self.end_to_end.observe(finished - arrived)
        if output_tokens > 1:
            self.between_tokens.observe((finished - first_token) / (output_tokens - 1), output_tokens - 1)
        self.lateness.observe(late)

    def text(self, model: str, gauges: dict[str, float]) -> bytes:
        """Prometheus text: the counters here, and gauges as given (names without ``sglang:``)."""
        label = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        labels = f'model_name="{label}",engine_type="unified",tp_rank="0",pp_rank="0",moe_ep_rank="0"'
        lines = []
        for name, value in gauges.items():
            lines += [f"# TYPE sglang:{name} gauge", f"sglang:{name}{{{labels}}} {value}"]
        for name, count in (
            ("sglang:num_requests", self.requests),
            ("sglang:prompt_tokens", self.prompt_tokens),
            ("sglang:generation_tokens", self.generation_tokens),
            ("cascadia_sim_cancelled_requests", self.cancelled),
        ):
            lines += [f"# TYPE {name}_total counter", f"{name}_total{{{labels}}} {count}"]
        lines += self.first_token.lines("sglang:time_to_first_token_seconds", labels)
        lines += self.end_to_end.lines("sglang:e2e_request_latency_seconds", labels)
        lines += self.between_tokens.lines("sglang:inter_token_latency_seconds", labels)
        lines += self.lateness.lines("cascadia_sim_lateness_seconds", labels)
        lines += ["# TYPE cascadia_sim_lateness_max_seconds gauge"]
        lines += [f"cascadia_sim_lateness_max_seconds{{{labels}}} {self.lateness.max}"]
        return ("\n".join(lines) + "\n").encode()
