"""What a router tells: the windowed workload report at `/cascade/report`.

Reports of a cascade's routers are merged by adding: every distribution is a histogram over fixed
edges, never a quantile. Times are service seconds (see `clock`).
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
from msgspec import Struct

__all__ = [
    "LATENCY_EDGES_MS",
    "SCORE_EDGES",
    "TOKEN_EDGES",
    "CalibrationSample",
    "Edges",
    "Histogram",
    "NextAnswer",
    "StageReport",
    "WorkloadReport",
    "merge_histograms",
]

TOKEN_EDGES: tuple[float, ...] = tuple(round(2 ** (k / 2), 1) for k in range(37))
"""Upper edges of token-count buckets: 1, 1.4, 2 … 262,144; a last bucket is open."""
LATENCY_EDGES_MS: tuple[float, ...] = tuple(round(10 * 2 ** (k / 4), 1) for k in range(61))
"""Upper edges of latency buckets, ms: 10, 11.9, 14.1 … 327,680; a last bucket is open."""
SCORE_EDGES: tuple[float, ...] = tuple(round(k / 50, 2) for k in range(1, 51))
"""Upper edges of score buckets for scores in [0, 1]: 0.02, 0.04 … 1; a last bucket is open."""
Edges: TypeAlias = Literal["tokens", "latencyMs", "score"]


class Histogram(Struct, rename="camel"):
    """Counts between edges.

    Attributes:
        counts: One count per edge plus one for what lies above the last edge.
        sum: Sum of the values observed.
        edges: Which of this module's edges: ``tokens``, ``latencyMs`` or ``score``.
    """

    edges: Edges
    counts: list[int]
    sum: float = 0.0

    def count(self) -> int:
        """Number of values observed."""
        return sum(self.counts)

    def quantile(self, q: float) -> float | None:
        """Value below which a share `q` lies, interpolated in its bucket; None without values."""
        total = self.count()
        if not total:
            return None
        edges = EDGES[self.edges]
        rank, seen = q * total, 0
        for index, count in enumerate(self.counts):
            if count and seen + count >= rank:
                low = edges[index - 1] if index else 0.0
                high = edges[index] if index < len(edges) else edges[-1]
                return low + (high - low) * (rank - seen) / count
            seen += count
        return edges[-1]


EDGES: dict[str, tuple[float, ...]] = {"tokens": TOKEN_EDGES, "latencyMs": LATENCY_EDGES_MS, "score": SCORE_EDGES}


def merge_histograms(histograms: list[Histogram]) -> Histogram:
    """Add histograms that have the same edges; at least one."""
    return Histogram(
        edges=histograms[0].edges,
        counts=[sum(column) for column in zip(*(h.counts for h in histograms), strict=True)],
        sum=sum(h.sum for h in histograms),
    )


class StageReport(Struct, rename="camel", kw_only=True):
    """What one router saw at its own stage in the window.

    Attributes:
        stage: Stage name.
        requests: Requests that its engine was asked.
        accepted: Answers that met the threshold (or had none to meet).
        escalated: Requests passed on to a later stage.
        scorer_errors: Answers that could not be scored.
        engine_errors: Requests that the engine failed (5xx, connection lost, time-out).
        input_tokens: Prompt tokens, from the engine's usage.
        output_tokens: Answer tokens, from the engine's usage.
        service_ms: Time from asking the engine to its last byte.
        scores: Raw scores.
    """

    stage: str
    requests: int = 0
    accepted: int = 0
    escalated: int = 0
    scorer_errors: int = 0
    engine_errors: int = 0
    input_tokens: Histogram
    output_tokens: Histogram
    service_ms: Histogram
    scores: Histogram


class NextAnswer(Struct, rename="camel", kw_only=True):
    """What the next stage said to an accepted request, asked off the client's path (shadow sampling).

    Attributes:
        stage: The next stage.
        score: Raw score of its answer; None if it could not be told at once.
        output_tokens: Length of its answer.
        agreement: Token F1 of both answers' texts, 0 to 1; None if one of them has no words.
    """

    stage: str
    score: float | None = None
    output_tokens: int = 0
    agreement: float | None = None


class CalibrationSample(Struct, rename="camel", kw_only=True):
    """One request's score, kept with the probability with which it was chosen.

    Attributes:
        request_id: The request's id.
        stage: Whose answer was scored.
        score: Raw score.
        output_tokens: Length of the answer; 0 if unknown.
        input_tokens: Length of the prompt; 0 if unknown.
        inclusion_probability: Weigh by its inverse. Samples without `next` were drawn from all scored answers
            of the stage; those with it from the accepted ones.
        next: What the next stage said; None where it was not asked for comparison.
    """

    request_id: str
    stage: str
    score: float
    output_tokens: int
    input_tokens: int
    inclusion_probability: float
    next: NextAnswer | None = None


class WorkloadReport(Struct, rename="camel", kw_only=True):
    """One router's window.

    Attributes:
        replica: The reporting router's replica; empty for an entry router.
        plan_id: Plan of the policy in force.
        policy_revision: Revision of the policy in force.
        window_seconds: Length of the window, service seconds; less than asked just after a start.
        window_end: Scaled Unix time of the window's end, s.
        arrivals: Client requests that entered the cascade at this router; those pinned to a stage are not counted.
        failures: Of these, answered with a 5xx or not at all.
        interrupted: Of these, ended by an error event after the first byte.
        refused: Of these, refused with a 4xx by the router.
        answered_by: Answers per stage that gave them, at the entry.
        end_to_end_ms: Time from the first byte of the request to the last of the answer, at the entry.
        time_to_first_token_ms: Time to the first byte of the answer, at the entry.
        in_flight: Requests held now.
        ladder_steps: Steps below the plan's own thresholds by which requests go that enter at this router now.
        stage: What it saw at its own stage; None for an entry router.
        samples: At most 256 samples.
    """

    schema_version: int = 1
    replica: str = ""
    plan_id: str
    policy_revision: int
    window_seconds: float
    window_end: float
    arrivals: int = 0
    failures: int = 0
    interrupted: int = 0
    refused: int = 0
    answered_by: dict[str, int] = msgspec.field(default_factory=dict)
    end_to_end_ms: Histogram
    time_to_first_token_ms: Histogram
    in_flight: int = 0
    ladder_steps: int = 0
    stage: StageReport | None = None
    samples: list[CalibrationSample] = msgspec.field(default_factory=list)
