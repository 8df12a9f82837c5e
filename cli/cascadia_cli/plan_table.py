"""A plan as a person reads it: what runs where, what it promises, and what was not chosen."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.plan import FrontierPoint, Percentiles, Plan
from cascadia_cli.figures import duration, money, percent, replica_words, target_words, threshold_words

__all__ = ["plan_view", "print_view"]

_STAGE_COLOURS = ("cyan", "green", "yellow", "magenta", "blue", "red", "bright_cyan", "bright_green")
_LONGEST_BAR = 32
_WITHOUT_BAR = 92
"""Width of the stage table without its bars, about."""
_PIPE_WIDTH = 132


def print_view(view: Callable[[int], RenderableType]) -> None:
    """Print what `view` returns for the width there is; a pipe or file gets plain lines without padding."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(view(console.width))
        return
    plain = Console(highlight=False, width=_PIPE_WIDTH, file=io.StringIO())
    with plain.capture() as capture:
        plain.print(view(_PIPE_WIDTH))
    console.file.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def plan_view(
    plan: Plan,
    cascade: CascadeDeployment,
    *,
    frontier: bool = False,
    explanation: Sequence[str] = (),
    width: int = _PIPE_WIDTH,
) -> RenderableType:
    """Return what `cascadia plan` prints.

    Args:
        plan: The plan.
        cascade: The manifest that it was made for.
        frontier: Whether to list the frontier too.
        explanation: Sentences that say why, if asked for.
        width: Columns that there are.
    """
    bar = min(_LONGEST_BAR, max(width - _WITHOUT_BAR, 4))
    parts: list[RenderableType] = [_title(plan), _stages(plan, bar), _promises(plan, cascade)]
    if explanation:
        parts.append(_section("Why", *(Text(f"• {sentence}") for sentence in explanation)))
        parts.append(_section("Each stage alone", _latencies(plan)))
    if frontier:
        parts.append(
            _section(
                "Frontier (no plan beats another of these in latency, cost and quality)",
                Text(f"GPUs of {', '.join(stage.name for stage in plan.stages)}", style="dim"),
                _frontier(plan),
            )
        )
    if plan.alternatives:
        parts.append(_section("Not chosen", _alternatives(plan)))
    if plan.warnings:
        parts.append(_section("Mind", *(Text(f"! {warning}", style="yellow") for warning in plan.warnings)))
    return Group(*parts)


def _section(title: str, *lines: RenderableType) -> RenderableType:
    return Padding(Group(Text(title, style="bold"), *(Padding(line, (0, 0, 0, 2)) for line in lines)), (1, 0, 0, 0))


def _title(plan: Plan) -> RenderableType:
    solver = plan.solver
    found = f"{solver.status.lower()} for {solver.objective}, gap {percent(solver.gap)}"
    if solver.status == "TimedOut":  # the gap is that of the thresholds found so far
        found = f"the best for {solver.objective} until the deadline"
    return Text.assemble(
        ("Plan ", "bold"),
        (plan.plan_id, "bold cyan"),
        (f" for {plan.cascade}", "bold"),
        (
            f"   {found}, {solver.threshold_vectors:,} threshold vectors, {duration(solver.elapsed_ms)} CPU",
            "dim",
        ),
    )


def _stages(plan: Plan, bar: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in ("Stage", "Reached by", "Accepts", "Replicas", "GPUs", "", "Load", "p95"):
        right = header in ("Reached by", "GPUs", "Load", "p95")
        table.add_column(header, justify="right" if right else "left", no_wrap=header != "Replicas")
    most = max((stage.gpus for stage in plan.stages), default=1) or 1
    skips = any(stage.skipped > 0 for stage in plan.stages)
    if skips:
        table.add_column("Passed by", justify="right", no_wrap=True)
    for stage, colour in zip(plan.stages, _STAGE_COLOURS, strict=False):
        table.add_row(
            Text(stage.name, style=f"bold {colour}" if stage.gpus else "dim"),
            percent(stage.reach) if stage.gpus else "–",
            threshold_words(stage),
            replica_words(stage.replicas),
            str(stage.gpus),
            Text(_bar(stage.gpus, most, bar), style=colour),
            "–" if stage.utilization is None else percent(stage.utilization),
            duration(stage.p95_ms),
            *([percent(stage.skipped) if stage.skipped > 0 else "–"] if skips else []),
            style=None if stage.gpus else "dim",
        )
    return table


def _bar(gpus: int, most: int, length: int) -> str:
    """One block a GPU where the longest bar allows it."""
    return "█" * max(round(gpus * min(1.0, length / most)), 1) if gpus else ""


def _gpus_in_use(plan: Plan, cascade: CascadeDeployment) -> str:
    words = []
    for pool in cascade.spec.gpus.pools:
        used = sum(stage.gpus for stage in plan.live_stages if stage.pool == pool.name)
        words.append(f"{used} of {pool.max_gpus} {pool.gpu} in pool {pool.name}")
    return "; ".join(words)


def _promises(plan: Plan, cascade: CascadeDeployment) -> Table:
    quality, latency, demand = plan.quality, plan.latency, plan.demand
    floor = f"floor {cascade.spec.objective.min_quality}"
    if quality.lower_bound is None:
        worth = f"{quality.mean:.3f} ({floor}); from published accuracies, so no bound is claimed"
    else:
        rows = f", {quality.requests:,} requests" if quality.requests else ""
        worth = (
            f"{quality.mean:.3f}, at least {quality.lower_bound:.3f} with {percent(quality.confidence or 0)} "
            f"confidence ({floor}{rows})"
        )
    tail = [f"{name} {duration(value)}" for name, value in _percentiles(plan)]
    sure = f"±{latency.uncertainty_percent:.0f} %, " if latency.uncertainty_percent is not None else ""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    table.add_row("Quality", worth)
    table.add_row("Latency", f"{'  '.join(tail)}  ({sure}{latency.source})")
    for name, figures in (
        ("First token", latency.time_to_first_token),
        ("Each further", latency.time_per_output_token),
    ):
        if figures is not None:
            table.add_row(name, _four(figures))
    if targets := cascade.spec.objective.targets:
        table.add_row("Targets", "; ".join(target_words(target, plan) for target in targets))
    if latency.extrapolates:
        table.add_row("", Text(f"extrapolated: {'; '.join(latency.extrapolates)}", style="yellow"))
    table.add_row("GPUs", _gpus_in_use(plan, cascade))
    table.add_row("Cost", "no prices given" if plan.cost_per_hour is None else f"{money(plan.cost_per_hour)} an hour")
    table.add_row(
        "Traffic",
        f"{demand.requests_per_second:.3g} requests/s; on average a prompt has {demand.input_tokens_mean:,.0f} tokens, "
        f"an answer of {plan.live_stages[0].name} {demand.output_tokens_mean:,.0f} ({demand.source.lower()})",
    )
    return table


def _four(figures: Percentiles) -> str:
    named = (("p50", figures.p50_ms), ("p90", figures.p90_ms), ("p95", figures.p95_ms), ("p99", figures.p99_ms))
    return "  ".join(f"{name} {duration(value)}" for name, value in named)


def _latencies(plan: Plan) -> Table:
    """Each stage's own times."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for stage in plan.live_stages:
        if stage.latency is None:
            continue
        table.add_row(Text(stage.name, style="bold"), "whole answer", _four(stage.latency.end_to_end))
        table.add_row("", "first token", _four(stage.latency.time_to_first_token))
        table.add_row("", "each further", _four(stage.latency.time_per_output_token))
    return table


def _percentiles(plan: Plan) -> list[tuple[str, float]]:
    latency = plan.latency
    return [("p50", latency.p50_ms), ("p90", latency.p90_ms), ("p95", latency.p95_ms), ("p99", latency.p99_ms)]


def _frontier(plan: Plan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for header in ("p95", "Cost/h", "Quality", "Bound", "GPUs"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("Thresholds", overflow="fold")  # of many stages: what gives way to the figures
    for point in sorted(plan.frontier, key=lambda p: p.p95_ms):
        table.add_row(
            "►" if point.chosen else "",
            duration(point.p95_ms),
            money(point.cost_per_hour),
            f"{point.quality_mean:.3f}",
            "–" if point.quality_lower_bound is None else f"{point.quality_lower_bound:.3f}",
            "/".join(map(str, point.gpus)),
            _thresholds(point),
            style="bold cyan" if point.chosen else None,
        )
    return table


def _thresholds(point: FrontierPoint) -> str:
    return "  ".join(
        "–" if not gpus else "all" if threshold is None else f"≥{threshold:.3f}"
        for threshold, gpus in zip(point.thresholds, point.gpus, strict=False)
    )


def _alternatives(plan: Plan) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for alternative in plan.alternatives:
        quality = "" if alternative.quality_mean is None else f"quality {alternative.quality_mean:.3f}"
        latency = "" if alternative.p95_ms is None else f"p95 {duration(alternative.p95_ms)}"
        cost = "" if alternative.cost_per_hour is None else f"{money(alternative.cost_per_hour)}/h"
        table.add_row(alternative.name, latency, quality, cost, Text(alternative.reason, style="dim"))
    return table
