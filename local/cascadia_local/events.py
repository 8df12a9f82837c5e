"""What happens in a run, in words: shown in the view, and kept as JSON lines in the run's folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from cascadia_api.clock import ScaledClock

__all__ = ["Event", "EventLog", "Kind"]

Kind = Literal[
    "Plan", "Policy", "Replica", "Transition", "Drift", "Replan", "Traffic", "Shadow", "Crash", "Warning", "Stop"
]


class Event(Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """One event.

    Attributes:
        at: Service seconds since the run's start.
        kind: What it is about.
        text: One sentence.
        details: Figures behind it, by name.
    """

    at: float
    kind: Kind
    text: str
    details: dict[str, object] = msgspec.field(default_factory=dict)


class EventLog:
    """Events of a run, in order.

    Args:
        clock: The run's clock.
        path: File for the JSON lines.
    """

    def __init__(self, clock: ScaledClock, path: Path) -> None:
        self.events: list[Event] = []
        self._clock = clock
        self._start = clock.monotonic()
        self._path = path
        self._listeners: list[Callable[[Event], None]] = []

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Have `listener` called with each event from now on."""
        self._listeners.append(listener)

    def seconds(self) -> float:
        """Service seconds since the start."""
        return self._clock.monotonic() - self._start

    def add(self, kind: Kind, text: str, **details: object) -> None:
        """Record an event that happens now."""
        event = Event(at=round(self.seconds(), 2), kind=kind, text=text, details=details)
        self.events.append(event)
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(event) + b"\n")
        for listener in self._listeners:
            listener(event)
