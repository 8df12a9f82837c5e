"""Predicted against measured: what a run ends with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cascadia_api.plan import Plan
from cascadia_local.measurements import Measured, Measurements
from cascadia_local.traffic import Progress

__all__ = ["Period", "Row", "compare", "comparison_view", "filling_words", "overhead_words", "period_at_work"]


@dataclass(frozen=True, slots=True)
class Period:
    """A stretch of traffic under one plan.

    Attributes:
        name: In words.
        plan: The plan in force.
        measured: What was measured.
        left_out: Requests at its ends that are not among those: engines filled, or drained, around them.
    """

    name: str
    plan: Plan
    measured: Measured
    left_out: int = 0


def period_at_work(name: str, plan: Plan, measurements: Measurements, begun: float, ended: float) -> Period:
    """What was measured under a plan, but for what was sent while engines filled and drained.

    Plans say what a cascade does at work. It fills, and drains, in about the time of a slow request. Where that would
    leave less than half of the requests, all are measured.

    Args:
        name: In words.
        plan: The plan in force.
        measurements: All answers.
        begun: From when on requests count, scaled Unix time, s.
        ended: Until when they do.
    """
    settle = plan.latency.p95_ms / 1000
    whole, part = measurements.between(begun, ended), measurements.between(begun + settle, ended - settle)
    if 2 * part.requests < whole.requests:
        return Period(name, plan, whole)
    return Period(name, plan, part, whole.requests - part.requests)


def filling_words(periods: Sequence[Period]) -> str:
    """What is not in the periods, or what is and should not be, in words."""
    left_out = sum(period.left_out for period in periods)
    if left_out:
        return (
            f"Predictions are of a cascade at work: {left_out} requests sent while engines filled or drained are left "
            "out, as many seconds at each end as a slow request takes."
        )
    return (
        "Predictions are of a cascade at work; what was measured is too short to leave out the requests that found "
        "engines idle."
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        figure: What it is.
        predicted, measured: Its values; nan where unknown.
        unit: ``s``, ``%``, ``1/s`` or empty for a plain number.
    """

    figure: str
    predicted: float
    measured: float
    unit: str

    def difference(self) -> str:
        """Measured against predicted: in percent, of shares in points."""
        if math.isnan(self.predicted) or math.isnan(self.measured):
            return "–"
        if self.unit in ("%", ""):
            return f"{100 * (self.measured - self.predicted):+.1f} points"
        return f"{100 * (self.measured / self.predicted - 1):+.0f} %"

    def show(self, value: float) -> str:
        """A value in the row's unit."""
        if math.isnan(value):
            return "–"
        if self.unit == "%":
            return f"{100 * value:.1f} %"
        if self.unit == "":
            return f"{value:.3f}"
        return f"{value:.2f} {self.unit}"


def compare(period: Period) -> list[Row]:
    """Return the figures of a period."""
    plan, measured = period.plan, period.measured
    reach = [
        Row(f"reach of {stage.name}", stage.reach, measured.reach.get(stage.name, 0.0), "%")
        for stage in plan.live_stages
    ]
    return [
        Row("arrivals", plan.demand.requests_per_second, measured.per_second, "1/s"),
        Row("latency p50", plan.latency.p50_ms / 1000, measured.seconds_p50, "s"),
        Row("latency p95", plan.latency.p95_ms / 1000, measured.seconds_p95, "s"),
        *reach,
        Row("quality", plan.quality.mean, measured.quality, ""),
        Row("overhead p50", math.nan, measured.overhead_p50, "s"),
        Row("overhead p95", math.nan, measured.overhead_p95, "s"),
    ]


def overhead_words(progress: Progress, scale: float) -> str:
    """What the machine's own overhead is, in words."""
    return (
        "Overhead is what this machine itself added (client, routers, wake-ups): end-to-end minus the exact virtual "
        f"time in the engine, of answers of the first stage, in service time ({scale:g} s are 1 s here). Requests left "
        f"{1000 * progress.late_seconds_mean:.1f} ms behind schedule on average; the client's event loop lagged "
        f"{1000 * progress.loop_lag_p95_seconds:.0f} ms (p95) and took {progress.cpu_seconds:.0f} s of CPU."
    )


def comparison_view(periods: Sequence[Period], notes: Sequence[str]) -> RenderableType:
    """A table a period, side by side figures, and notes below."""
    table = Table(box=box.SIMPLE_HEAD, title="Predicted against measured", title_style="bold", title_justify="left")
    table.add_column("")
    for name in ("predicted", "measured", "difference"):
        table.add_column(name, justify="right")
    for position, period in enumerate(periods):
        if position:
            table.add_section()
        requests = f"{period.measured.requests} requests"
        table.add_row(Text(period.name, "bold cyan"), Text(period.plan.plan_id, "dim"), Text(requests, "dim"), "")
        for row in compare(period):
            table.add_row(f"  {row.figure}", row.show(row.predicted), row.show(row.measured), row.difference())
    return Group(table, *(Text(note) for note in notes if note))
