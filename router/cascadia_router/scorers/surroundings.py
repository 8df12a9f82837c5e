"""What scorers need of the process that they run in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

__all__ = ["Surroundings"]


def _untold(scorer: str, seconds: float) -> None:
    """Nobody wants to know."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What scorers need of the process that they run in.

    Attributes:
        now: Service time (monotonic), s.
        scale: Service seconds per wall second.
        engine: URL of the API, as in ``http://127.0.0.1:30000/v1``, of the engine whose answers are scored; None
            if there is none.
        engine_key: API key of that API; None if it wants none.
        secrets: Folder with the files of keys and certificates.
        took: Is told how long a scorer was waited for: its id, service s.
    """

    now: Callable[[], float] = monotonic
    scale: float = 1.0
    engine: str | None = None
    engine_key: str | None = None
    secrets: str | None = None
    took: Callable[[str, float], None] = field(default=_untold)
