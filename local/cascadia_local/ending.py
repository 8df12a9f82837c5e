"""How a run ends: Ctrl-C once finishes what is in flight, twice ends it at once; and what it served is told."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import uvloop

from cascadia_router.served import STOPPED, Served

__all__ = ["INTERRUPTED", "read_served", "run_until_interrupted", "served_words"]

INTERRUPTED = 130
_TAIL_BYTES = 64 * 1024
_UNANSWERED = {
    "refused_by_engine": "refused by an engine",
    "failed": "failed",
    "deadline": "ran out of time",
    "interrupted": "broke off",
    "disconnected": "given up by the client",
}


class _Line(msgspec.Struct):
    event: str = ""


def run_until_interrupted(story: Callable[[], Awaitable[int]]) -> int:
    """Run `story` to its end, or to Ctrl-C or SIGTERM; return its exit code (130 if interrupted).

    The first signal cancels it, so that it ends in order. Ctrl-C after that cancels it once more: what is waited
    for at the end is then ended at once. Further signals change nothing.
    """

    async def guarded() -> int:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(story())
        signals = 0

        def interrupt(number: int) -> None:
            nonlocal signals
            if not signals or (signals == 1 and number == signal.SIGINT):
                signals += 1
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt, number)
        try:
            return await task
        except asyncio.CancelledError:
            if signals:
                return INTERRUPTED
            raise

    return uvloop.run(guarded())


def read_served(log: Path) -> Served | None:
    """What a router said at the end of its log; None if it did not come to that."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            if msgspec.json.decode(line, type=_Line).event == STOPPED:
                return msgspec.json.decode(line, type=Served)
        except msgspec.MsgspecError:
            continue
    return None


def served_words(served: Served, *, restarts: int = 0) -> str:
    """A run's requests in one sentence.

    Args:
        served: What the endpoint's router counted.
        restarts: How often it was started again; each time its counters began anew.
    """
    answered = sum(served.answered.values())
    by = ", ".join(f"{count:,} by {stage}" for stage, count in served.answered.items())
    others = [f"{count:,} {_UNANSWERED.get(outcome, outcome)}" for outcome, count in served.unanswered.items()]
    if refused := sum(served.refused.values()):
        others.append(f"{refused:,} refused")
    if served.cut_off:
        others.append(f"{served.cut_off:,} cut off")
    words = f"{answered:,} {'request' if answered == 1 else 'requests'} answered" + (f" ({by})" if by else "")
    since = " since the endpoint's router was last started again" if restarts else ""
    return f"{words}, {', '.join(others) or 'none failed'}{since}."
