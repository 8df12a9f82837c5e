"""Where a run is shown: a live screen on a terminal, lines elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from rich.console import Console
from rich.live import Live

from cascadia_local.events import Event, EventLog
from cascadia_local.snapshot import Snapshot
from cascadia_local.view import event_text, line, render

__all__ = ["shown"]

REDRAW_S = 0.25
LINE_S = 5.0
"""Wall seconds between two lines where there is no terminal."""


@contextlib.asynccontextmanager
async def shown(console: Console, snapshot: Callable[[], Snapshot], events: EventLog) -> AsyncIterator[None]:
    """Show a run while the body runs.

    Args:
        console: Where to.
        snapshot: Returns the run's state now.
        events: Its events: printed as they come where there is no terminal.
    """
    if console.is_terminal:
        show = _redraw(console, snapshot)
    else:
        for event in events.events:
            _print_event(console, event)
        events.listen(lambda event: _print_event(console, event))
        show = _print_lines(console, snapshot)
    task = asyncio.create_task(show, name="view")
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _redraw(console: Console, snapshot: Callable[[], Snapshot]) -> None:
    with Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as live:
        while True:
            live.update(render(snapshot(), console.size), refresh=True)
            await asyncio.sleep(REDRAW_S)


async def _print_lines(console: Console, snapshot: Callable[[], Snapshot]) -> None:
    before = ""
    while True:
        await asyncio.sleep(LINE_S)
        text = line(snapshot())
        news = text.partition("]")[2]  # but for the time
        if news != before:
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        before = news


def _print_event(console: Console, event: Event) -> None:
    console.print(event_text(event), soft_wrap=True)
