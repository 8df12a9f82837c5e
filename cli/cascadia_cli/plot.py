"""A plan as one picture: where it lies among the plans there are, and what runs on which GPUs.

Above, each point is a plan that no other beats in latency, cost and quality at once; the star is the
one chosen. Below, each cell is a GPU and each block of cells a replica.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.errors import InputError, Problem
from cascadia_api.plan import FrontierPoint, Plan, PlanStage
from cascadia_cli.figures import duration, gpu_words, money, percent, replica_words, target_words, threshold_words
from cascadia_cli.files import unwritable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

__all__ = ["PLOT_FORMATS", "check_format", "plan_figure", "write_plot"]

PLOT_FORMATS = (".png", ".svg", ".pdf", ".html")
_COLOURS = ("#2a9d8f", "#e9a23b", "#c8553d", "#577590", "#8a5a83", "#6a994e", "#3d405b", "#bc6c25")
_INK, _FAINT = "#22303c", "#8a97a3"
_CELLS_PER_ROW = 32
_NEAR_THE_EDGE = 0.3
_PLACES = (
    ((-10, 9), "right", "bottom"),
    ((10, 9), "left", "bottom"),
    ((10, -9), "left", "top"),
    ((-10, -9), "right", "top"),
    ((0, 14), "center", "bottom"),
    ((0, -14), "center", "top"),
    ((14, 0), "left", "center"),
    ((-14, 0), "right", "center"),
    ((0, 28), "center", "bottom"),
    ((0, -28), "center", "top"),
    ((30, 24), "left", "bottom"),
    ((-30, 24), "right", "bottom"),
    ((30, -24), "left", "top"),
    ((-30, -24), "right", "top"),
)
"""Offsets of a name from its point, in points, and how it is aligned there."""


def write_plot(plan: Plan, cascade: CascadeDeployment, path: str, explanation: Sequence[str] = ()) -> None:
    """Draw a plan into a file; its ending says the format. A page (HTML) also has the explanation.

    Raises:
        InputError: The ending is not one of `PLOT_FORMATS`, or the file cannot be written.
    """
    check_format(path)
    figure = plan_figure(plan, cascade)
    try:
        if path.lower().endswith(".html"):
            Path(path).write_text(_page(figure, plan, _headline(plan, cascade), explanation), encoding="utf-8")
        else:
            figure.savefig(path, dpi=150, metadata={"Date": None} if path.endswith(".svg") else None)
    except OSError as error:
        raise unwritable(path, error) from None


def _page(figure: Figure, plan: Plan, title: str, explanation: Sequence[str]) -> str:
    """The picture and what goes with it as one HTML document that needs nothing else."""
    drawn = StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    picture = drawn.getvalue()
    warnings = "".join(f"<li>{escape(warning)}</li>" for warning in plan.warnings)
    why = "".join(f"<li>{escape(sentence)}</li>" for sentence in explanation)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        "<style>body{font:15px/1.5 system-ui,sans-serif;color:#22303c;max-width:1000px;margin:1.5em auto;padding:0 1em}"
        "svg{width:100%;height:auto}</style></head><body>\n"
        f"{picture[picture.index('<svg') :]}\n"
        + (f"<h2>Why</h2><ul>{why}</ul>\n" if why else "")
        + (f"<h2>Mind</h2><ul>{warnings}</ul>\n" if warnings else "")
        + f"<p>Plan {escape(plan.plan_id)}</p></body></html>\n"
    )


def check_format(path: str) -> None:
    """Refuse a picture's name before anything is planned for it.

    Raises:
        InputError: The ending is not one of `PLOT_FORMATS`, or there is no such folder.
    """
    if Path(path).suffix.lower() not in PLOT_FORMATS:
        raise InputError(Problem("--plot", f"{path!r} does not say the format: end it in {' or '.join(PLOT_FORMATS)}"))
    if not Path(path).parent.is_dir():
        raise InputError(Problem("--plot", f"there is no folder {Path(path).parent}: make it"))


def plan_figure(plan: Plan, cascade: CascadeDeployment) -> Figure:
    """Draw a plan; the figure needs no display."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 10,
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "axes.edgecolor": _FAINT,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": plan.plan_id,
    }
    with mpl.rc_context(style):
        rows = sum(_rows(stage) for stage in plan.live_stages)
        blocks = 0.42 * rows + 0.55 * len(plan.stages)
        figure = Figure(figsize=(10, 6.2 + blocks), layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, height_ratios=[5.2, blocks + 0.3])
        labels = _draw_frontier(figure, above, plan, cascade)
        _draw_replicas(below, plan, pools=len(cascade.spec.gpus.pools))
        figure.suptitle(_headline(plan, cascade), x=0.012, ha="left", fontsize=14, fontweight="bold")
        if targets := cascade.spec.objective.targets:
            kept = "; ".join(target_words(target, plan) for target in targets)
            above.set_title(fill(f"kept: {kept}", 120), loc="left", fontsize=9.5)
        _place(figure, above, labels)
    return figure


def _headline(plan: Plan, cascade: CascadeDeployment) -> str:
    quality = plan.quality
    worth = (
        f"quality about {quality.mean:.3f}"
        if quality.lower_bound is None
        else f"quality ≥ {quality.lower_bound:.3f} ({percent(quality.confidence or 0)} sure)"
    )
    cost = "" if plan.cost_per_hour is None else f", {money(plan.cost_per_hour)} an hour"
    most = sum(pool.max_gpus for pool in cascade.spec.gpus.pools)
    return f"{plan.cascade}: {worth}, p95 {duration(plan.latency.p95_ms)} on {plan.gpus} of {gpu_words(most)}{cost}"


def _draw_frontier(figure: Figure, axes: Axes, plan: Plan, cascade: CascadeDeployment) -> list[Annotation]:
    """Draw it; return the names of points, which are yet to be placed."""
    from matplotlib.ticker import MaxNLocator

    bounded = plan.quality.lower_bound is not None
    points = sorted(plan.frontier, key=lambda p: p.p95_ms)
    seconds = [p.p95_ms / 1000 for p in points]
    worth = [_worth(p, bounded=bounded) for p in points]
    priced = all(p.cost_per_hour is not None for p in points)
    shade = [float(p.cost_per_hour or 0) if priced else float(sum(p.gpus)) for p in points]
    dots = axes.scatter(
        seconds, worth, c=shade, cmap="viridis_r", s=52, zorder=3, edgecolor="white", linewidth=0.7,
        label="plans that no other beats",
    )  # fmt: skip
    bar = figure.colorbar(dots, ax=axes, pad=0.01, aspect=30)
    bar.set_label("cost per hour" if priced else "GPUs")
    bar.outline.set_visible(False)
    if not priced:
        bar.locator = MaxNLocator(integer=True)
    labels, others = [], list(_others(plan))
    for name, x, y in others:
        axes.scatter(
            [x], [y], marker="X", s=70, color=_FAINT, zorder=3, edgecolor="white", linewidth=0.7,
            label="others that were not chosen" if name is others[0][0] else None,
        )  # fmt: skip
        labels.append(_label(axes, name, x, y, colour=_FAINT))
    x = plan.latency.p95_ms / 1000
    y = plan.quality.mean if plan.quality.lower_bound is None else plan.quality.lower_bound
    axes.scatter([x], [y], marker="*", s=420, color="#c8553d", zorder=4, edgecolor="white", linewidth=1)
    labels.insert(0, _label(axes, "this plan", x, y, colour="#c8553d", own=True))
    floor = float(cascade.spec.objective.min_quality)
    axes.axhline(floor, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
    named = axes.annotate(
        f"quality floor {cascade.spec.objective.min_quality}", (0, floor), xycoords=("axes fraction", "data"),
        xytext=(6, 4), textcoords="offset points", ha="left", fontsize=9,
    )  # fmt: skip
    targets = [t for t in cascade.spec.objective.targets or [] if (t.metric, t.percentile) == ("EndToEnd", 95)]
    for target in targets:
        limit = target.milliseconds / 1000
        seconds.append(limit)
        axes.axvline(limit, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        axes.annotate(
            f"p95 target {duration(target.milliseconds)}", (limit, 1), xycoords=("data", "axes fraction"),
            xytext=(-4, -6), textcoords="offset points", ha="right", va="top", rotation=90, fontsize=9,
        )  # fmt: skip
    if max([*seconds, x]) > 8 * min([*seconds, x]):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.set_xlabel("end-to-end p95, s   (left is faster)", loc="left")
    axes.set_ylabel(
        f"quality, {percent(plan.quality.confidence or 0)} lower bound"
        if bounded
        else "quality, from published accuracies"
    )
    axes.margins(0.06, 0.12)
    axes.grid(color="#e3e7ea")
    axes.set_axisbelow(True)
    axes.legend(loc="upper right", bbox_to_anchor=(1.0, -0.05), ncols=2, fontsize=9, frameon=False, labelcolor=_INK)
    if axes.transAxes.inverted().transform(axes.transData.transform((x, y)))[0] < _NEAR_THE_EDGE:
        named.set(position=(-6, 4), ha="right")
        named.xy = (1, floor)
    return labels


def _worth(point: FrontierPoint, *, bounded: bool) -> float:
    return point.quality_lower_bound if bounded and point.quality_lower_bound is not None else point.quality_mean


def _others(plan: Plan) -> Iterator[tuple[str, float, float]]:
    """Alternatives that have a place in the picture: at their mean quality."""
    for alternative in plan.alternatives:
        if alternative.p95_ms is not None and alternative.quality_mean is not None:
            mean = " (mean)" if plan.quality.lower_bound is not None else ""
            yield f"{alternative.name}{mean}", alternative.p95_ms / 1000, alternative.quality_mean


def _label(axes: Axes, words: str, x: float, y: float, *, colour: str, own: bool = False) -> Annotation:
    return axes.annotate(
        words,
        (x, y),
        textcoords="offset points",
        xytext=(0, 0),
        color=colour,
        fontweight="bold" if own else "normal",
        fontsize=11 if own else 9.5,
        zorder=5,
    )


def _place(figure: Figure, axes: Axes, labels: Sequence[Annotation]) -> None:
    """Put each name beside its point, where it covers the least: neither points nor other words, nor leaves the frame.

    The better side comes first (up and left, where no plan can be).
    """
    import numpy as np
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    dots = [axes.transData.transform(point) for of in axes.collections for point in np.asarray(of.get_offsets())]
    boxes = [Bbox.from_bounds(x - 9, y - 9, 18, 18) for x, y in dots]
    boxes += [text.get_window_extent() for text in axes.texts if text not in labels]
    for label in labels:
        best = None
        for place in _PLACES:
            (dx, dy), horizontal, vertical = place
            label.set(position=(dx, dy), ha=horizontal, va=vertical)
            box = label.get_window_extent()
            outside = not (axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1))
            covered = sum(box.overlaps(other) for other in boxes) + 10 * outside
            if best is None or covered < best[0]:
                best = covered, place, box
        if best is not None:
            _, ((dx, dy), horizontal, vertical), box = best
            label.set(position=(dx, dy), ha=horizontal, va=vertical)
            boxes.append(box)


def _rows(stage: PlanStage) -> int:
    return -(-stage.gpus // _CELLS_PER_ROW)


def _draw_replicas(axes: Axes, plan: Plan, *, pools: int) -> None:
    """One row of cells a stage (several for many GPUs); replicas are blocks with a gap between them."""
    from matplotlib.patches import FancyBboxPatch

    axes.set_axis_off()
    top = 0.0
    widest = 0.0
    for stage, colour in zip(plan.stages, _COLOURS, strict=False):
        if not stage.gpus:
            axes.text(0, top + 0.1, stage.name, fontsize=11.5, fontweight="bold", color=_FAINT, va="bottom")
            axes.text(4.2, top + 0.1, "dropped: no request goes there", fontsize=9.5, va="bottom", color=_FAINT)
            top -= 0.8
            continue
        axes.text(0, top + 0.1, stage.name, fontsize=11.5, fontweight="bold", color=colour, va="bottom")
        where = f" of pool {stage.pool}" if pools > 1 else ""
        load = "" if stage.utilization is None else f", load {percent(stage.utilization)}"
        axes.text(
            4.2, top + 0.1,
            f"{gpu_words(stage.gpus)}{where}: {replica_words(stage.replicas)}   ·   reached by {percent(stage.reach)}, "
            f"accepts {threshold_words(stage)}{load}, p95 {duration(stage.p95_ms)}",
            fontsize=9.5, va="bottom",
        )  # fmt: skip
        x, y = 0.0, top - 0.82
        for size in (g.tensor_parallel * g.pipeline_parallel for g in stage.replicas for _ in range(g.count)):
            if x and x + size > _CELLS_PER_ROW + 4:
                x, y = 0.0, y - 1.0
            axes.add_patch(
                FancyBboxPatch(
                    (x + 0.06, y), size - 0.12, 0.72, boxstyle="round,pad=0,rounding_size=0.14",
                    facecolor=colour, edgecolor="none", alpha=0.22,
                )
            )  # fmt: skip
            for cell in range(size):
                axes.add_patch(
                    FancyBboxPatch(
                        (x + cell + 0.17, y + 0.11), 0.66, 0.5, boxstyle="round,pad=0,rounding_size=0.08",
                        facecolor=colour, edgecolor="none",
                    )
                )  # fmt: skip
            x += size + 0.35
            widest = max(widest, x)
        top = y - 1.0
    axes.set_xlim(-0.1, max(widest, _CELLS_PER_ROW))
    axes.set_ylim(top + 0.6, 0.9)
