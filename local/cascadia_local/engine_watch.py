"""What the run's engines say of themselves, and how far that is from what was planned with."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from pathlib import Path

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.clock import ScaledClock
from cascadia_api.errors import CascadiaError
from cascadia_local.corrections_file import learn_into
from cascadia_local.events import EventLog
from cascadia_local.loopback_http import UnreachableError, ask
from cascadia_local.replica import Replica
from cascadia_solver.engine_window import EngineCounters, learn, read_counters, window_between
from cascadia_solver.live_correction import CorrectionKey, LiveCorrections, LiveSource
from cascadia_solver.predicted_replica import predicted_replica
from cascadia_solver.roofline import CostSource, Shape

__all__ = ["SIMULATED", "EngineWatch"]

SIMULATED = "sglang simulated"
"""Engine version under which corrections of simulated engines are kept."""
_DEADLINE_S = 2.0
_WINDOWS = 3
"""Fewest windows from which a correction sets off a plan."""
_NOTICED = 0.2
"""Share by which a correction has to have moved since the plan in force was made."""


class EngineWatch:
    """Learns from the histograms of simulated engines how far off the cost source is.

    Args:
        cascade: The manifest.
        base: The cost source that is corrected.
        clock: The run's clock.
        events: Told what was learnt.
        corrections: What is known already.
        file: Where to keep what is learnt, or None.

    Attributes:
        corrections: What is known now.
    """

    def __init__(
        self,
        cascade: CascadeDeployment,
        base: CostSource,
        clock: ScaledClock,
        events: EventLog,
        *,
        corrections: LiveCorrections | None = None,
        file: Path | None = None,
    ) -> None:
        self.corrections = corrections or LiveCorrections()
        self._cascade = cascade
        self._base = base
        self._clock = clock
        self._events = events
        self._file = file
        self._read: dict[str, EngineCounters] = {}
        self._planned = self.corrections

    @property
    def cost(self) -> CostSource:
        """The cost source with what is known now."""
        return LiveSource(self._base, self.corrections, SIMULATED) if self.corrections.by_key else self._base

    def planned(self) -> None:
        """From now on `surprise` compares with what is known now."""
        self._planned = self.corrections

    def surprise(self) -> str:
        """Which engines take so much longer or shorter than planned with that it is worth a plan; empty if none."""
        moved = [
            (change, key)
            for key, known in self.corrections.by_key.items()
            if len(known.decode) >= _WINDOWS and abs(change := self._change(key)) > math.log1p(_NOTICED)
        ]
        if not moved:
            return ""
        _, key = max(moved, key=lambda each: abs(each[0]))
        now, then = (known.factor(key, "decode") for known in (self.corrections, self._planned))
        return (
            f"{key.model} on {key.shape} of {key.gpu} decodes {now:.2f} times as long as the cost model says, planned "
            f"with {then:.2f}"
        )

    def _change(self, key: CorrectionKey) -> float:
        """Logarithm of what a correction has become since the plan was made, over what it was."""
        return math.log(self.corrections.factor(key, "decode") / self._planned.factor(key, "decode"))

    async def look(self, replicas: Iterable[Replica]) -> None:
        """Ask all engines, and learn from those that have worked since the last time."""
        asked = list(replicas)
        read = await asyncio.gather(*(self._ask(replica.engine_address) for replica in asked))
        before, self._read = self._read, {}
        learnt = self.corrections
        for replica, counters in zip(asked, read, strict=True):
            if counters is None:
                continue
            self._read[replica.name] = counters
            earlier = before.get(replica.name)
            window = window_between(earlier, counters) if earlier is not None else None
            if window is not None:
                desired = replica.desired
                shape = Shape(desired.tensor_parallel, desired.pipeline_parallel)
                expected = predicted_replica(self._cascade.spec, self._base, desired.stage, desired.pool, shape)
                learnt = learn(learnt, expected.key(SIMULATED), expected.step, {replica.name: window})
        if learnt is self.corrections:
            return
        before_it, self.corrections = self.corrections.by_key, learnt
        changed = {key: known for key, known in learnt.by_key.items() if before_it.get(key) is not known}
        if self._file is not None:
            try:
                learn_into(self._file, lambda there: LiveCorrections({**there.by_key, **changed}))
            except CascadiaError as error:
                self._events.add("Warning", str(error))
                self._file = None

    async def _ask(self, address: str) -> EngineCounters | None:
        try:
            status, body = await ask(address, "/metrics", deadline_s=_DEADLINE_S)
        except UnreachableError:
            return None
        return read_counters(body.decode(errors="replace"), self._clock.now()) if status == 200 else None
