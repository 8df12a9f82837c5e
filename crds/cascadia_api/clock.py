"""One clock for everything that runs in compressed time.

`cascadia up --time-scale 10` plays ten seconds of service time in one second of wall time. Engines,
routers, cooldowns and time-outs then all read the same scaled clock, so that a time-out of 30 s is
still thirty of the seconds in which the engines work. In a cluster the scale is 1 and the scaled
clock is the machine's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

__all__ = ["ScaledClock"]


@dataclass(frozen=True, slots=True)
class ScaledClock:
    """A clock that runs `scale` times as fast as the machine's.

    Attributes:
        scale: Service seconds per wall second, > 0.
        epoch: Wall time (Unix seconds) at which the scaled clock and the wall clock agreed. All
            processes of one run share it, so their scaled times are comparable.
    """

    scale: float = 1.0
    epoch: float = 0.0

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"time scale must be positive, not {self.scale}")

    def now(self) -> float:
        """Scaled Unix time, s."""
        return self.epoch + (time.time() - self.epoch) * self.scale

    def monotonic(self) -> float:
        """Scaled monotonic time, s: only differences mean something."""
        return time.monotonic() * self.scale

    def wall(self, seconds: float) -> float:
        """Wall seconds that `seconds` of service time take: what to hand to `call_later`."""
        return seconds / self.scale
