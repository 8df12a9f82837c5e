"""Counting, many at a time, the requests that went the short way (`Express`).

Each would take ten bisections and thirty attributes; a batch is transposed and counted by loops in C, for
a third of that. Batches are settled every tick, before a slice of the window ends, and before anyone reads
the counts.
"""

from __future__ import annotations

from operator import attrgetter, mul, sub
from itertools import repeat

from cascadia_router.completion_body import Usage
from cascadia_router.escalation_budget import EscalationBudget
from cascadia_router.metrics import Metrics
from cascadia_router.window import Window

__all__ = ["Acceptance", "settle"]

Acceptance = tuple[float, float, float, float, Usage | None]
"""See `Node.accepted`."""

_prompt_tokens = attrgetter("prompt_tokens")
_completion_tokens = attrgetter("completion_tokens")


def settle(
    accepted: list[Acceptance], stage: str, scale: float, metrics: Metrics, window: Window, budget: EscalationBudget
) -> None:
    """Count accepted requests in the window's newest slice and in the metrics, and clear the list.

    Args:
        accepted: At least one; all of the newest slice.
        stage: The router's own stage, which answered them.
        scale: Service seconds per wall second.
        metrics: See `Node`.
        window: See `Node`.
        budget: See `Node`.
    """
    arrived, asked, answered, scores, usages = zip(*accepted, strict=True)
    count = len(accepted)
    accepted.clear()
    piece = window.newest
    seconds = list(map(sub, answered, map(mul, arrived, repeat(scale))))
    metrics.requests["client", stage, "answered"] += count
    metrics.request_seconds["client"].observe_all(seconds)
    metrics.first_byte_seconds["client"].observe_all(seconds)
    metrics.scores.observe_all(scores)
    budget.count(answered[-1], count)
    piece.accepted += count
    piece.answered_by[stage] += count
    milliseconds = list(map(mul, seconds, repeat(1000.0)))
    piece.end_to_end_ms.observe_all(milliseconds)
    piece.first_token_ms.observe_all(milliseconds)
    piece.service_ms.observe_all(list(map(mul, map(sub, answered, asked), repeat(1000.0))))
    piece.scores.observe_all(scores)
    counted = [usage for usage in usages if usage is not None]
    piece.input_tokens.observe_all(list(map(_prompt_tokens, counted)))
    piece.output_tokens.observe_all(list(map(_completion_tokens, counted)))
