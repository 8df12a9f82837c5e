"""Numbers and shapes in words, the same in tables and pictures."""

from __future__ import annotations

from collections.abc import Iterable

from cascadia_api.cascade import LatencyTarget
from cascadia_api.plan import Plan, PlanStage, ReplicaGroup

__all__ = [
    "duration",
    "gpu_words",
    "money",
    "percent",
    "replica_words",
    "shape_words",
    "target_words",
    "threshold_words",
]

_METRICS = {"EndToEnd": "end to end", "TimeToFirstToken": "first token", "TimePerOutputToken": "each further token"}


def duration(milliseconds: float | None) -> str:
    """``640 ms``, ``9.8 s``, ``2.5 min``; a dash where unknown."""
    if milliseconds is None:
        return "–"
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"
    if milliseconds < 120_000:
        return f"{milliseconds / 1000:.3g} s"
    return f"{milliseconds / 60_000:.3g} min"


def percent(share: float) -> str:
    """``45 %``, ``0.4 %``, ``99.9 %``; only nothing is ``0 %``, and only all but a billionth ``100 %``."""
    if 0 < share < 1e-4:
        return "< 0.01 %"
    if 0.995 <= share < 1:
        return next(
            (f"{words} %" for d in range(1, 8) if not (words := f"{share * 100:.{d}f}").startswith("1")), "100 %"
        )
    return f"{share * 100:.0f} %" if share == 0 or share >= 0.0095 else f"{share * 100:.1g} %"


def gpu_words(count: int) -> str:
    """``1 GPU``, ``4 GPUs``."""
    return "1 GPU" if count == 1 else f"{count} GPUs"


def money(amount: float | None) -> str:
    """``79.68``; a dash where unknown."""
    return "–" if amount is None else f"{amount:,.2f}"


def threshold_words(stage: PlanStage) -> str:
    """From which score on a stage's answers are accepted."""
    if not stage.gpus:
        return "–"
    return "every answer" if stage.threshold is None else f"score ≥ {stage.threshold:.3f}"


def shape_words(group: ReplicaGroup) -> str:
    """``TP8``, ``TP8 PP2``."""
    pipeline = f" PP{group.pipeline_parallel}" if group.pipeline_parallel > 1 else ""
    return f"TP{group.tensor_parallel}{pipeline}"


def replica_words(groups: Iterable[ReplicaGroup]) -> str:
    """``2 × TP8 + 1 × TP4``."""
    return " + ".join(f"{group.count} × {shape_words(group)}" for group in groups) or "dropped"


def target_words(target: LatencyTarget, plan: Plan) -> str:
    """``end to end p95 19.2 s of 20 s``: what a plan makes of a target."""
    latency = plan.latency
    figures = {"TimeToFirstToken": latency.time_to_first_token, "TimePerOutputToken": latency.time_per_output_token}
    reached = getattr(figures.get(target.metric, latency), f"p{target.percentile}_ms", None)
    return f"{_METRICS[target.metric]} p{target.percentile} {duration(reached)} of {duration(target.milliseconds)}"
