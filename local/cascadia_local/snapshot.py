"""The state of a run at one moment, as the view shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from cascadia_local.events import Event

__all__ = ["GpuState", "Snapshot", "StageSnapshot"]

GpuState = Literal["Starting", "Ready", "Draining", "Failed"]


@dataclass(frozen=True, slots=True)
class StageSnapshot:
    """One live stage. Figures are nan where unknown.

    Attributes:
        name: Stage name.
        model: What it runs, in words.
        shapes: Its replicas, as in ``2×TP4``.
        ready, planned: Replicas that are ready, and that the plan wants.
        gpus: State of each GPU that the stage holds now.
        threshold: Threshold in force; None accepts every answer.
        reach, reach_planned: Share of requests that get there: lately, and predicted.
        running, waiting: Requests in its engines and in their queues.
        cache_share: Share of its key-value cache in use.
    """

    name: str
    model: str = ""
    shapes: str = ""
    ready: int = 0
    planned: int = 0
    gpus: tuple[GpuState, ...] = ()
    threshold: float | None = None
    reach: float = math.nan
    reach_planned: float = math.nan
    running: int = 0
    waiting: int = 0
    cache_share: float = math.nan


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment. Times are service seconds; figures are nan where unknown.

    Attributes:
        cascade: Name of the cascade.
        endpoint: OpenAI base URL.
        engines: What kind of engines, in words.
        scale: Service seconds per wall second.
        elapsed: Since the start of the run.
        activity: What is going on, in words.
        progress: Share of it that is done; nan if open-ended.
        plan_id: Plan in force; empty before the first.
        revision: Policy revision in force.
        gpus_total: GPUs of the budget.
        stages: Live stages, and those that still hold GPUs.
        rate, rate_planned: Requests a second: lately, and what the plan is for.
        p50, p95, p50_planned, p95_planned: End-to-end latency: lately, and predicted.
        quality, quality_planned: Mean worth: lately, and predicted.
        answered, failed, in_flight: Requests: of our own traffic since the start, of others' clients lately.
        history: p95 latency over time, oldest first.
        scores: Counts of the first stage's scores in equal bins over [0, 1], lately.
        score_threshold: The first stage's threshold.
        events: Latest events, oldest first.
    """

    cascade: str
    endpoint: str = ""
    engines: str = ""
    scale: float = 1.0
    elapsed: float = 0.0
    activity: str = ""
    progress: float = math.nan
    plan_id: str = ""
    revision: int = 0
    gpus_total: int = 0
    stages: tuple[StageSnapshot, ...] = ()
    rate: float = math.nan
    rate_planned: float = math.nan
    p50: float = math.nan
    p95: float = math.nan
    p50_planned: float = math.nan
    p95_planned: float = math.nan
    quality: float = math.nan
    quality_planned: float = math.nan
    answered: int = 0
    failed: int = 0
    in_flight: int = 0
    history: tuple[float, ...] = ()
    scores: tuple[int, ...] = ()
    score_threshold: float | None = None
    events: tuple[Event, ...] = field(default=())
