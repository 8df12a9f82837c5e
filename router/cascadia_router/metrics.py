"""The router's counters: plain attributes on the hot path, Prometheus' text format when scraped.

Incrementing a dict entry costs a fifteenth of a labelled prometheus_client child, and text for a few
hundred series is written in well under a millisecond. The catalogue is docs/metrics.md.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

__all__ = ["LATENCY_BUCKETS", "SCORE_BUCKETS", "BucketCounts", "Metrics", "client_exposition", "exposition"]

LATENCY_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
)  # fmt: skip
"""Service seconds: from a refused request's milliseconds to a long answer's minutes."""
SCORE_BUCKETS = tuple(round(k / 20, 2) for k in range(1, 21))


class BucketCounts:
    """A histogram: counts between edges and the sum."""

    __slots__ = ("counts", "edges", "sum")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value; edges are inclusive above."""
        self.counts[bisect_left(self.edges, value)] += 1
        self.sum += value

    def observe_all(self, values: Sequence[float]) -> Counter[int]:
        """Count many values; return how many of them are in each bucket."""
        buckets = Counter(map(bisect_left, repeat(self.edges), values))
        self.add(buckets, sum(values))
        return buckets

    def add(self, buckets: Counter[int], total: float) -> None:
        """Count values of which is known how many are in each bucket, and their sum."""
        counts = self.counts
        for bucket, count in buckets.items():
            counts[bucket] += count
        self.sum += total

    def merge(self, other: BucketCounts) -> None:
        """Add the counts of another with the same edges."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum


class Metrics:
    """What one router counts.

    Attributes:
        requests: By (port, stage that answered, outcome).
        escalations: By (from, to, reason).
        retries: By stage.
        retries_refused: By stage: the retry budget was spent.
        fallbacks: Answers under their threshold that were served, by (stage, reason).
        scorer_errors: By (stage, scorer, reason).
        unscored: Answers that could not be scored, by (stage, what became of them).
        scorer_seconds: By scorer, of those that ask somebody.
        faults: Failed calls by (stage, fault).
        queued: Requests that had to wait for room.
        shadows: Shadow requests, by (stage whose answer was accepted, what became of it).
        ladder_steps: Along the ladder, by direction.
        spans: By what became of them.
        latched: Requests that went straight to the stage that their conversation stays with, by stage.
        refused: Requests that were never begun, by reason.
        scores: Scores at the own stage.
        request_seconds: By port: first byte of a request to the last of its answer.
        first_byte_seconds: By port: first byte of a request to the first of its answer.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, str]] = Counter()
        self.escalations: Counter[tuple[str, str, str]] = Counter()
        self.retries: Counter[str] = Counter()
        self.retries_refused: Counter[str] = Counter()
        self.fallbacks: Counter[tuple[str, str]] = Counter()
        self.scorer_errors: Counter[tuple[str, str, str]] = Counter()
        self.unscored: Counter[tuple[str, str]] = Counter()
        self.scorer_seconds: defaultdict[str, BucketCounts] = defaultdict(lambda: BucketCounts(LATENCY_BUCKETS))
        self.faults: Counter[tuple[str, str]] = Counter()
        self.queued = 0
        self.spans: Counter[str] = Counter()
        self.latched: Counter[str] = Counter()
        self.shadows: Counter[tuple[str, str]] = Counter()
        self.ladder_steps: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.scores = BucketCounts(SCORE_BUCKETS)
        self.request_seconds = {port: BucketCounts(LATENCY_BUCKETS) for port in ("client", "peer", "shadow")}
        self.first_byte_seconds = {port: BucketCounts(LATENCY_BUCKETS) for port in ("client", "peer", "shadow")}


def _labels(names: Iterable[str], values: Iterable[str]) -> str:
    pairs = ",".join(f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}" if pairs else ""


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(value)


def samples(
    name: str, kind: str, text: str, label_names: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]
) -> Iterator[str]:
    """Lines of one counter or gauge family."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values:
        yield f"{name}{_labels(label_names, labels)} {_number(value)}"


def histogram(
    name: str, text: str, label_names: tuple[str, ...], children: Iterable[tuple[tuple[str, ...], BucketCounts]]
) -> Iterator[str]:
    """Lines of one histogram family."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} histogram"
    for labels, child in children:
        seen = 0
        for edge, count in zip((*child.edges, "+Inf"), child.counts, strict=True):
            seen += count
            yield f"{name}_bucket{_labels((*label_names, 'le'), (*labels, str(edge)))} {seen}"
        yield f"{name}_sum{_labels(label_names, labels)} {_number(child.sum)}"
        yield f"{name}_count{_labels(label_names, labels)} {seen}"


def client_exposition(clients: Iterable[tuple[str, int, int, dict[str, int]]]) -> bytes:
    """Return Prometheus' text format of what clients asked for.

    Args:
        clients: Id of the client's API keys, requests let in, tokens, requests denied by what was used up.
    """
    prefix = "cascadia_router_client_"
    known = list(clients)
    lines = [
        *samples(
            f"{prefix}requests_total", "counter", "Requests let in, by API key.",
            ("key",), (((name,), requests) for name, requests, _, _ in known),
        ),
        *samples(
            f"{prefix}tokens_total", "counter", "Tokens that requests took at all stages, by API key.",
            ("key",), (((name,), tokens) for name, _, tokens, _ in known),
        ),
        *samples(
            f"{prefix}limited_total", "counter", "Requests refused by a limit of their API key.",
            ("key", "limit"), (((name, of), count) for name, _, _, denied in known for of, count in denied.items()),
        ),
    ]  # fmt: skip
    return ("\n".join(lines) + "\n").encode()


def exposition(
    metrics: Metrics,
    *,
    stage: str,
    in_flight: int,
    waiting: int,
    policy_revision: int,
    policy_rejected: int,
    ladder_position: int | None,
    access_log_dropped: int,
    ready: bool,
    replicas: Iterable[tuple[str, str, int, bool]],
) -> bytes:
    """Return Prometheus' text format.

    Args:
        metrics: The counters.
        stage: Name of the router's own stage; empty for an entry router.
        in_flight: Requests held now.
        waiting: Requests that wait for room.
        policy_revision: Revision in force; 0 if none.
        policy_rejected: Policy documents refused as invalid.
        ladder_position: Index in the ladder of the thresholds in force.
        access_log_dropped: Lines of the access log that were not written.
        ready: What `/readyz` says.
        replicas: Per replica known: stage, name, outstanding requests, whether requests may go there.
    """
    prefix = "cascadia_router_"
    known = list(replicas)
    lines = [
        *samples(
            f"{prefix}requests_total", "counter", "Requests finished, by port, answering stage and outcome.",
            ("port", "stage", "outcome"), metrics.requests.items(),
        ),
        *samples(
            f"{prefix}refused_total", "counter", "Requests refused before they began, by reason.",
            ("reason",), (((reason,), count) for reason, count in metrics.refused.items()),
        ),
        *samples(
            f"{prefix}escalations_total", "counter", "Requests passed on to a later stage, by reason.",
            ("from", "to", "reason"), metrics.escalations.items(),
        ),
        *samples(
            f"{prefix}retries_total", "counter", "Calls repeated on another replica of the same stage.",
            ("stage",), (((name,), count) for name, count in metrics.retries.items()),
        ),
        *samples(
            f"{prefix}retries_refused_total", "counter", "Calls not repeated, for the retry budget was spent.",
            ("stage",), (((name,), count) for name, count in metrics.retries_refused.items()),
        ),
        *samples(
            f"{prefix}fallbacks_total", "counter", "Answers given although under their threshold, by reason.",
            ("stage", "reason"), metrics.fallbacks.items(),
        ),
        *samples(
            f"{prefix}shadows_total", "counter", "Accepted answers drawn for comparison with the next stage's.",
            ("stage", "outcome"), metrics.shadows.items(),
        ),
        *samples(
            f"{prefix}call_faults_total", "counter", "Calls to engines and routers that failed, by kind.",
            ("stage", "fault"), metrics.faults.items(),
        ),
        *samples(
            f"{prefix}scorer_errors_total", "counter", "Answers of the own stage that could not be scored, by reason.",
            ("stage", "scorer", "reason"), metrics.scorer_errors.items(),
        ),
        *samples(
            f"{prefix}unscored_total", "counter", "What became of the answers that could not be scored.",
            ("stage", "decision"), metrics.unscored.items(),
        ),
        *histogram(
            f"{prefix}scorer_seconds", "Time from a scorer's question to its answer, service seconds.",
            ("scorer",), (((name,), child) for name, child in metrics.scorer_seconds.items()),
        ),
        *histogram(
            f"{prefix}scores", "Scores of the own stage's answers.", ("stage",), [((stage,), metrics.scores)]
        ),
        *histogram(
            f"{prefix}request_seconds", "First byte of a request to the last of its answer, service seconds.",
            ("port",), (((port,), child) for port, child in metrics.request_seconds.items()),
        ),
        *histogram(
            f"{prefix}first_byte_seconds", "First byte of a request to the first of its answer, service seconds.",
            ("port",), (((port,), child) for port, child in metrics.first_byte_seconds.items()),
        ),
        *samples(f"{prefix}in_flight", "gauge", "Requests held now.", (), [((), in_flight)]),
        *samples(f"{prefix}waiting", "gauge", "Requests that wait for room.", (), [((), waiting)]),
        *samples(f"{prefix}queued_total", "counter", "Requests that had to wait.", (), [((), metrics.queued)]),
        *samples(f"{prefix}ready", "gauge", "1 while /readyz says so.", (), [((), ready)]),
        *samples(f"{prefix}policy_revision", "gauge", "Policy in force; 0: none.", (), [((), policy_revision)]),
        *samples(
            f"{prefix}policy_rejected_total", "counter", "Policy documents refused as invalid.",
            (), [((), policy_rejected)],
        ),
        *samples(
            f"{prefix}ladder_position", "gauge", "Index in the plan's ladder of the thresholds in force.",
            (), [] if ladder_position is None else [((), ladder_position)],
        ),
        *samples(
            f"{prefix}latched_total", "counter", "Requests that went to the stage of their conversation.",
            ("stage",), (((name,), count) for name, count in metrics.latched.items()),
        ),
        *samples(
            f"{prefix}ladder_steps_total", "counter", "Steps along the plan's ladder, by direction.",
            ("direction",), (((direction,), count) for direction, count in metrics.ladder_steps.items()),
        ),
        *samples(
            f"{prefix}access_log_dropped_total", "counter", "Lines of the access log that were not written.",
            (), [((), access_log_dropped)],
        ),
        *samples(
            f"{prefix}spans_total", "counter", "Spans of traces, by what became of them.",
            ("outcome",), (((outcome,), count) for outcome, count in metrics.spans.items()),
        ),
        *samples(
            f"{prefix}endpoint_outstanding", "gauge", "Requests of this router that a replica holds.",
            ("stage", "replica"), (((at, name), count) for at, name, count, _ in known),
        ),
        *samples(
            f"{prefix}endpoint_available", "gauge", "0 while a replica is not ready or its circuit breaker is open.",
            ("stage", "replica"), (((at, name), closed) for at, name, _, closed in known),
        ),
    ]  # fmt: skip
    return ("\n".join(lines) + "\n").encode()
