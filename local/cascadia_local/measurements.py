"""What the traffic showed: counts, percentiles and shares of the answers, by phase and lately."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cascadia_local.traffic import Answered

__all__ = ["Measured", "Measurements", "measure", "percentile"]

RECENT_SECONDS = 60.0
"""Service seconds that count as "now" in the live view."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that a share of `values` does not exceed (linear interpolation); nan of none."""
    if not values:
        return math.nan
    ranked = sorted(values)
    position = share * (len(ranked) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (ranked[high] - ranked[low]) * (position - low)


@dataclass(frozen=True, slots=True)
class Measured:
    """A summary of some answers. Times are service seconds; nan where nothing was measured.

    Attributes:
        requests: Answers and failures.
        failed: Requests without a whole answer.
        per_second: Requests per service second, by the moments of sending.
        seconds_p50, seconds_p95: End-to-end latency.
        reach: Share of answered requests that got to each stage.
        quality: Mean worth of the answers, where told.
        overhead_p50, overhead_p95: What the machine itself added to answers of a path of one stage:
            end-to-end minus the virtual time in the engine.
    """

    requests: int
    failed: int
    per_second: float
    seconds_p50: float
    seconds_p95: float
    reach: dict[str, float]
    quality: float
    overhead_p50: float
    overhead_p95: float


def measure(answers: Iterable[Answered]) -> Measured:
    """Summarise answers."""
    all_answers = list(answers)
    good = [answer for answer in all_answers if not answer.failure]
    seconds = [answer.seconds for answer in good]
    worth = [answer.quality for answer in good if answer.quality is not None]
    overhead = [
        answer.seconds - answer.engine_seconds
        for answer in good
        if answer.engine_seconds is not None and ">" not in answer.path
    ]
    sent = [answer.sent_at for answer in all_answers]
    span = max(sent) - min(sent) if len(sent) > 1 else math.nan
    visits = Counter(stage for answer in good for stage in answer.path.split(">"))
    return Measured(
        requests=len(all_answers),
        failed=len(all_answers) - len(good),
        per_second=(len(sent) - 1) / span if span else math.nan,
        seconds_p50=percentile(seconds, 0.5),
        seconds_p95=percentile(seconds, 0.95),
        reach={stage: visited / len(good) for stage, visited in visits.items()},
        quality=sum(worth) / len(worth) if worth else math.nan,
        overhead_p50=percentile(overhead, 0.5),
        overhead_p95=percentile(overhead, 0.95),
    )


@dataclass(slots=True)
class Measurements:
    """All answers of a run so far; `recent` holds those of the last service minute."""

    answers: list[Answered] = field(default_factory=list)
    recent: deque[Answered] = field(default_factory=deque)
    failures: list[Answered] = field(default_factory=list)

    def add(self, answers: Iterable[Answered], *, now: float) -> None:
        """Add answers that came in; `now` is scaled Unix time, s."""
        for answer in answers:
            self.answers.append(answer)
            self.recent.append(answer)
            if answer.failure:
                self.failures.append(answer)
        while self.recent and self.recent[0].sent_at + self.recent[0].seconds < now - RECENT_SECONDS:
            self.recent.popleft()

    def between(self, start: float, end: float = math.inf) -> Measured:
        """Summarise the requests sent from `start` to `end`, scaled Unix times, s."""
        return measure(answer for answer in self.answers if start <= answer.sent_at < end)
