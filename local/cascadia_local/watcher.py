"""Keeps the picture of a run up to date: what the view shows."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from cascadia_api.clock import ScaledClock
from cascadia_api.plan import Plan, PlanStage
from cascadia_local.events import EventLog
from cascadia_local.measurements import measure
from cascadia_local.plan_words import shapes_words
from cascadia_local.replica import EngineLoad, Replica
from cascadia_local.runtime import EmbeddedRuntime
from cascadia_local.snapshot import Snapshot, StageSnapshot
from cascadia_local.traffic_process import TrafficProcess
from cascadia_solver.drift import MergedReport, merge_reports

__all__ = ["Activity", "Watcher"]

POLL_S = 1.0
"""Wall seconds between two polls of routers and engines."""
WINDOW_SECONDS = 60.0
HISTORY = 120
SCORE_BINS = 25
"""Bins of the histogram shown: two of the report's each."""


class Activity:
    """What the run is doing, as the view's progress bar tells it.

    Attributes:
        text: In words.
        progress: Share done; nan if open-ended.
    """

    def __init__(self) -> None:
        self.text = "starting"
        self.progress = math.nan

    def begin(self, text: str, progress: float = math.nan) -> None:
        """Say what is done from now on."""
        self.text, self.progress = text, progress


class Watcher:
    """Polls what runs and makes snapshots of it.

    Args:
        runtime: What runs.
        clock: The run's clock.
        events: Its events.
        words: What each stage runs, in words, by stage name.
        engines: What kind of engines, in words.
    """

    def __init__(
        self, runtime: EmbeddedRuntime, clock: ScaledClock, events: EventLog, words: Mapping[str, str], engines: str
    ) -> None:
        self.activity = Activity()
        self.traffic: TrafficProcess | None = None
        self._runtime = runtime
        self._clock = clock
        self._events = events
        self._words = words
        self._engines = engines
        self._loads: dict[str, EngineLoad] = {}
        self._merged: MergedReport | None = None
        self._history: deque[float] = deque(maxlen=HISTORY)

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            replicas = dict(self._runtime.replicas)
            loads = await asyncio.gather(*(replica.load() for replica in replicas.values()))
            self._loads = dict(zip(replicas, loads, strict=True))
            self._merged = merge_reports(await self._runtime.reports(WINDOW_SECONDS))
            if self.traffic is not None and self.traffic.measurements.recent:
                self._history.append(measure(self.traffic.measurements.recent).seconds_p95)

    def snapshot(self) -> Snapshot:
        """The run now."""
        runtime, plan, policy = self._runtime, self._runtime.target, self._runtime.policy
        first = policy.stages[0] if policy is not None else None
        shown = Snapshot(
            cascade=runtime.cascade.metadata.name,
            endpoint=runtime.endpoint,
            engines=self._engines,
            scale=self._clock.scale,
            elapsed=self._events.seconds(),
            activity=self.activity.text,
            progress=self.activity.progress,
            plan_id=policy.plan_id if policy is not None else "",
            revision=policy.policy_revision if policy is not None else 0,
            gpus_total=sum(pool.max_gpus for pool in runtime.cascade.spec.gpus.pools),
            stages=self._stages(plan),
            rate=self._merged.requests_per_second if self._merged is not None else math.nan,
            rate_planned=plan.demand.requests_per_second if plan is not None else math.nan,
            p50_planned=plan.latency.p50_ms / 1000 if plan is not None else math.nan,
            p95_planned=plan.latency.p95_ms / 1000 if plan is not None else math.nan,
            quality_planned=plan.quality.mean if plan is not None else math.nan,
            history=tuple(self._history),
            scores=self._scores(first.name) if first is not None else (),
            score_threshold=first.threshold if first is not None else None,
            events=tuple(self._events.events[-40:]),
        )
        return self._with_own_traffic(shown, self.traffic) if self.traffic is not None else self._with_reports(shown)

    @staticmethod
    def _with_own_traffic(shown: Snapshot, traffic: TrafficProcess) -> Snapshot:
        """What our own client measured."""
        now, total = measure(traffic.measurements.recent), traffic.measurements
        return replace(
            shown,
            p50=now.seconds_p50,
            p95=now.seconds_p95,
            quality=now.quality,
            answered=len(total.answers) - len(total.failures),
            failed=len(total.failures),
            in_flight=traffic.progress.in_flight,
        )

    def _with_reports(self, shown: Snapshot) -> Snapshot:
        """What the routers measured of the last minute, for clients of others."""
        merged = self._merged
        if merged is None or merged.end_to_end_ms is None:
            return shown
        p50, p95 = (merged.end_to_end_ms.quantile(share) for share in (0.5, 0.95))
        return replace(
            shown,
            p50=math.nan if p50 is None else p50 / 1000,
            p95=math.nan if p95 is None else p95 / 1000,
            answered=sum(merged.answered_by.values()),
            failed=merged.failures + merged.interrupted,
            in_flight=merged.in_flight,
        )

    def _scores(self, stage: str) -> tuple[int, ...]:
        seen = self._merged.stages.get(stage) if self._merged is not None else None
        if seen is None:
            return (0,) * SCORE_BINS
        counts = seen.scores.counts[: 2 * SCORE_BINS]
        return tuple(sum(counts[2 * k : 2 * k + 2]) for k in range(SCORE_BINS))

    def _stages(self, plan: Plan | None) -> tuple[StageSnapshot, ...]:
        runtime, policy = self._runtime, self._runtime.policy
        planned = {stage.name: stage for stage in plan.stages} if plan is not None else {}
        thresholds = {stage.name: stage.threshold for stage in policy.stages} if policy is not None else {}
        held: dict[str, list[Replica]] = {}
        for replica in runtime.replicas.values():
            held.setdefault(replica.desired.stage, []).append(replica)
        return tuple(
            self._stage(name, planned[name], held.get(name, []), thresholds.get(name))
            for name in (model.name for model in runtime.cascade.spec.models)
            if name in planned and (planned[name].gpus or name in held)
        )

    def _stage(self, name: str, planned: PlanStage, replicas: list[Replica], threshold: float | None) -> StageSnapshot:
        loads = [self._loads[r.name] for r in replicas if r.name in self._loads]
        return StageSnapshot(
            name=name,
            model=self._words[name],
            shapes=shapes_words(planned),
            ready=sum(replica.state == "Ready" for replica in replicas),
            planned=sum(group.count for group in planned.replicas),
            gpus=tuple(replica.state.value for replica in replicas for _ in range(replica.desired.gpus)),
            threshold=threshold,
            reach=self._reach(name),
            reach_planned=planned.reach,
            running=sum(load.running for load in loads),
            waiting=sum(load.waiting for load in loads),
            cache_share=sum(load.cache_share for load in loads) / len(loads) if loads else math.nan,
        )

    def _reach(self, stage: str) -> float:
        if self.traffic is not None:
            recent = self.traffic.measurements.recent
            return measure(recent).reach.get(stage, 0.0) if recent else math.nan
        if self._merged is None or not self._merged.arrivals:
            return math.nan
        seen = self._merged.stages.get(stage)
        return seen.requests / self._merged.arrivals if seen is not None else 0.0
