"""The live view of a run on a terminal: what is planned beside what happens.

On a terminal `LiveView` redraws one screen; elsewhere (a log, CI) `line` gives one line every few
seconds. Both are pure functions of a `Snapshot`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import ConsoleDimensions, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cascadia_local.events import Event
from cascadia_local.snapshot import GpuState, Snapshot, StageSnapshot

__all__ = ["EVENT_STYLES", "event_text", "line", "render"]

STAGE_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red", "bright_cyan", "bright_green")
EVENT_STYLES = {
    "Plan": "bold cyan",
    "Policy": "blue",
    "Replica": "green",
    "Transition": "bold blue",
    "Drift": "bold yellow",
    "Replan": "bold magenta",
    "Traffic": "bold white",
    "Shadow": "cyan",
    "Crash": "bold red",
    "Warning": "yellow",
    "Stop": "bold white",
}
GPU_SYMBOLS: dict[GpuState, str] = {"Ready": "■", "Starting": "▨", "Draining": "□", "Failed": "✗"}
BLOCKS = "▁▂▃▄▅▆▇█"
EVENTS_SHOWN = 12
HEIGHT_WITHOUT_EVENTS = 20
"""Lines of the screen but for stages and events, the last line of the terminal included."""
WIDE = 104
"""Columns from which on the models' names are shown."""
BAR = 10
SCORE_HEIGHT = 5


def seconds(value: float) -> str:
    """A duration for people: ``840 ms``, ``3.4 s``; a dash for nan."""
    if math.isnan(value):
        return "–"
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def share(value: float) -> str:
    """A share as a percentage; a dash for nan."""
    return "–" if math.isnan(value) else f"{100 * value:.0f} %"


def number(value: float, form: str = ".1f") -> str:
    """A number; a dash for nan."""
    return "–" if math.isnan(value) else format(value, form)


def clock(value: float) -> str:
    """Service time as minutes and seconds."""
    return f"{int(value) // 60}:{int(value) % 60:02d}"


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as blocks, scaled to the largest."""
    shown = [value for value in values if not math.isnan(value)][-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return ""
    return "".join(BLOCKS[min(7, int(8 * value / top))] for value in shown)


def line(snapshot: Snapshot) -> str:
    """The snapshot in one line."""
    stages = "  ".join(
        f"{stage.name} {stage.ready}/{stage.planned} ready, reach {share(stage.reach)}, "
        f"{stage.running} running, {stage.waiting} queued"
        for stage in snapshot.stages
    )
    done = "" if math.isnan(snapshot.progress) else f" {share(snapshot.progress)}"
    return (
        f"[{clock(snapshot.elapsed)}] {snapshot.activity}{done} | {number(snapshot.rate)} req/s, "
        f"p50 {seconds(snapshot.p50)}, p95 {seconds(snapshot.p95)}, answered {snapshot.answered}, "
        f"failed {snapshot.failed} | {stages}"
    )


def event_text(event: Event) -> Text:
    """An event as one line."""
    style = EVENT_STYLES[event.kind]
    return Text.assemble((f"{clock(event.at):>6}  ", "dim"), (f"{event.kind:<11}", style), event.text)


def render(snapshot: Snapshot, size: ConsoleDimensions) -> RenderableType:
    """The whole screen, for a terminal of this size."""
    figures = Table.grid(expand=True)
    figures.add_column(ratio=1)
    figures.add_column(ratio=1)
    wide = size.width >= WIDE
    figures.add_row(_traffic(snapshot, size.width // 2), _scores(snapshot, size.width // 2))
    lines = size.height - HEIGHT_WITHOUT_EVENTS - len(snapshot.stages)
    parts = [_head(snapshot, wide=wide), _stages(snapshot, wide=wide), figures]
    if lines > 0:
        parts.append(_events(snapshot, min(lines, EVENTS_SHOWN)))
    return Group(*parts)


def _head(snapshot: Snapshot, *, wide: bool) -> RenderableType:
    facts = Table.grid(expand=True, padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(no_wrap=True, justify="right")
    plan = Text.assemble(("plan ", "dim"), snapshot.plan_id or "in the making")
    where = Text.assemble((snapshot.endpoint, "underline"))
    if wide:
        plan.append(f"   policy revision {snapshot.revision or '-'}", "dim")
        where.append(f"  {snapshot.engines}", "dim")
    facts.add_row(plan, where)
    bar = Table.grid(expand=True, padding=(0, 1))
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True, justify="right")
    open_ended = math.isnan(snapshot.progress)
    bar.add_row(
        Text(snapshot.activity, "bold"),
        ProgressBar(total=1.0, completed=0 if open_ended else snapshot.progress, pulse=open_ended),
        Text("" if open_ended else share(snapshot.progress), "dim"),
    )
    pace = "" if snapshot.scale == 1 else f"   1 s here = {snapshot.scale:g} s of service"
    return Panel(
        Group(facts, bar),
        title=Text.assemble(("Cascadia", "bold"), " · ", (snapshot.cascade, "bold cyan")),
        title_align="left",
        subtitle=Text(f"service time {clock(snapshot.elapsed)}{pace}", "dim"),
        subtitle_align="right",
        border_style="cyan",
        box=box.ROUNDED,
    )


def _stages(snapshot: Snapshot, *, wide: bool) -> RenderableType:
    table = Table(box=None, expand=True, padding=(0, 1), header_style="dim")
    for name in ("stage", "model", "replicas") if wide else ("stage", "replicas"):
        table.add_column(name, no_wrap=True)
    table.add_column("accepts", justify="right", no_wrap=True)
    table.add_column("reach: now / plan" if wide else "reach / plan", no_wrap=True)
    for name in ("running", "queued", "KV cache") if wide else ("run", "wait", "KV"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage, colour in _coloured(snapshot):
        table.add_row(*_stage_row(stage, colour, wide=wide))
    return Panel(Group(table, _gpus(snapshot)), box=box.ROUNDED, border_style="dim")


def _coloured(snapshot: Snapshot) -> Iterator[tuple[StageSnapshot, str]]:
    return zip(snapshot.stages, itertools.cycle(STAGE_COLOURS), strict=False)


def _stage_row(stage: StageSnapshot, colour: str, *, wide: bool) -> list[RenderableType]:
    ready = Text(f"{stage.ready}/{stage.planned}", "green" if stage.ready == stage.planned else "yellow")
    reach = Text(f"{share(stage.reach):>5} / {share(stage.reach_planned):>5}")
    if wide:
        filled = 0 if math.isnan(stage.reach) else round(BAR * min(1.0, stage.reach))
        reach = Text.assemble(("━" * filled, colour), ("━" * (BAR - filled), "grey23"), " ", reach)
    return [
        Text(stage.name, f"bold {colour}"),
        *([stage.model] if wide else []),
        Text.assemble(ready, f"  {stage.shapes}"),
        "all" if stage.threshold is None else f"≥ {stage.threshold:.3f}",
        reach,
        str(stage.running),
        Text(str(stage.waiting), "yellow" if stage.waiting else ""),
        share(stage.cache_share),
    ]


def _gpus(snapshot: Snapshot) -> Text:
    """One symbol a GPU, coloured by stage; dots are free."""
    text = Text.assemble((" GPUs ", "dim"))
    used = 0
    for stage, colour in _coloured(snapshot):
        for state in stage.gpus:
            text.append(GPU_SYMBOLS[state], colour if state == "Ready" else f"dim {colour}")
        used += len(stage.gpus)
    text.append("·" * max(0, snapshot.gpus_total - used), "dim")
    text.append(f"  {used} of {snapshot.gpus_total}", "dim")
    if any(state != "Ready" for stage in snapshot.stages for state in stage.gpus):
        text.append("   ▨ starting  □ draining", "dim")
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _traffic(snapshot: Snapshot, width: int) -> RenderableType:
    table = Table(box=None, expand=True, padding=(0, 1), header_style="dim")
    table.add_column("last minute", no_wrap=True)
    table.add_column("now", justify="right", no_wrap=True)
    table.add_column("plan", justify="right", no_wrap=True, style="dim")
    table.add_row("requests/s", number(snapshot.rate), number(snapshot.rate_planned))
    table.add_row("latency p50", seconds(snapshot.p50), seconds(snapshot.p50_planned))
    table.add_row("latency p95", seconds(snapshot.p95), seconds(snapshot.p95_planned))
    table.add_row("quality", number(snapshot.quality, ".3f"), number(snapshot.quality_planned, ".3f"))
    history = Text.assemble((" p95 ", "dim"), (sparkline(snapshot.history, max(4, width - 10)), "cyan"))
    failed = Text(f" {snapshot.failed} failed", "bold red" if snapshot.failed else "green")
    counts = Text.assemble(failed, f", {snapshot.answered} answered, {snapshot.in_flight} open")
    for text in (history, counts):
        text.no_wrap, text.overflow = True, "ellipsis"
    content = Group(table, history, counts)
    return Panel(content, title="Traffic", title_align="left", box=box.ROUNDED, border_style="dim")


def _scores(snapshot: Snapshot, width: int) -> RenderableType:
    """Histogram of the first stage's scores: red left of the threshold (escalated), green right of it."""
    top = max(snapshot.scores, default=0)
    bins = len(snapshot.scores)
    columns = max(1, (width - 6) // bins) if bins else 1
    threshold = snapshot.score_threshold
    rows: list[Text] = []
    for row in range(SCORE_HEIGHT, 0, -1):
        text = Text(" ")
        for position, count in enumerate(snapshot.scores):
            level = 8 * SCORE_HEIGHT * count / top - 8 * (row - 1) if top else 0.0
            symbol = " " if level < 1 else BLOCKS[min(8, int(level)) - 1]
            accepted = threshold is None or (position + 1) / bins > threshold
            text.append(symbol * columns, "green" if accepted else "red")
        rows.append(text)
    rows.append(Text(" " + _axis(bins * columns, threshold), "dim"))
    total = sum(snapshot.scores)
    caption = Text(" no answers yet", "dim")
    if total:
        caption = Text.assemble(f" {total} answers: ", ("accepted", "green"), ", ", ("escalated", "red"))
    caption.no_wrap, caption.overflow = True, "ellipsis"
    name = snapshot.stages[0].name if snapshot.stages else "the first stage"
    title = f"Scores of {name}" + ("" if threshold is None else f", threshold {threshold:.3f}")
    return Panel(Group(*rows, caption), title=title, title_align="left", box=box.ROUNDED, border_style="dim")


def _axis(columns: int, threshold: float | None) -> str:
    if not columns:
        return ""
    marks = ["─"] * columns
    if threshold is not None:
        marks[min(columns - 1, int(threshold * columns))] = "┴"
    return "0" + "".join(marks[1:-1]) + "1"


def _events(snapshot: Snapshot, count: int) -> RenderableType:
    lines = [event_text(event) for event in snapshot.events[-count:]]
    for text in lines:
        text.no_wrap, text.overflow = True, "ellipsis"
    lines += [Text("")] * (count - len(lines))
    return Panel(Group(*lines), title="Events", title_align="left", box=box.ROUNDED, border_style="dim")
