"""What a router did for its clients in its life: its last line of log."""

from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
from msgspec import Struct

from cascadia_router.metrics import Metrics

__all__ = ["STOPPED", "Served"]

STOPPED = "stopped"
"""Event of the line."""
_ANSWERED = frozenset({"answered", "fallback"})


class Served(Struct, frozen=True, kw_only=True):
    """Clients' requests, of the client port.

    Attributes:
        answered: Answers by stage.
        unanswered: Those that ended otherwise, by outcome (docs/metrics.md).
        refused: Those never begun, by reason.
        cut_off: Those still in flight at the end.
    """

    answered: dict[str, int] = msgspec.field(default_factory=dict)
    unanswered: dict[str, int] = msgspec.field(default_factory=dict)
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    cut_off: int = 0

    @classmethod
    def counted(cls, metrics: Metrics, cut_off: int) -> Served:
        """From a router's settled counters."""
        answered: Counter[str] = Counter()
        unanswered: Counter[str] = Counter()
        for (port, stage, outcome), count in metrics.requests.items():
            if port == "client" and outcome in _ANSWERED:
                answered[stage] += count
            elif port == "client":
                unanswered[outcome] += count
        return cls(answered=dict(answered), unanswered=dict(unanswered), refused=dict(metrics.refused), cut_off=cut_off)

    def fields(self) -> dict[str, Any]:
        """For the line of log."""
        return {"fields": msgspec.to_builtins(self)}
