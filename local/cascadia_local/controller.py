"""The slow loop of the embedded runtime: looks at the traffic, plans again when it has drifted, applies what is better.

Drift has to be seen at two looks in a row: one burst moves no replica, and the window that the new
plan is made from then lies wholly behind the change. The cooldown is between placements: until it is
over, thresholds alone are planned for the replicas that run, and all is planned afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cascadia_api.clock import ScaledClock
from cascadia_api.errors import CascadiaError, InfeasibleError
from cascadia_api.plan import Plan
from cascadia_api.report import CalibrationSample, WorkloadReport
from cascadia_local.decision import Decision, decide
from cascadia_local.engine_watch import EngineWatch
from cascadia_local.events import EventLog
from cascadia_local.planning_messages import Job
from cascadia_local.planning_process import PlanningProcess
from cascadia_local.runtime import EmbeddedRuntime
from cascadia_solver.drift import DriftVerdict, MergedReport, assess, looks_per_week, merge_reports
from cascadia_solver.inputs import PlanningInputs
from cascadia_solver.observed import ObservedDemand
from cascadia_solver.shadow_agreement import agreements

__all__ = ["Controller", "Replan"]

LOOKS = 2
"""Looks in a row that have to see drift."""
_SHADOWS_KEPT = 2_000
_SHADOWS_TOLD = 30
"""Fewer compared answers say too little to be told; then each doubling is."""
WATCHING = "watching for drift"
PLANNING_DEADLINE_S = 30.0
"""Wall seconds of the planner's own deadline."""


@dataclass(frozen=True, slots=True)
class Replan:
    """One re-plan: what set it off, what was decided, and when.

    Attributes:
        trigger: What drifted, with statistics and levels.
        before: Plan in force.
        after: New plan.
        decision: What was done with it.
        started_at: When drift was confirmed, scaled Unix time.
        finished_at: When the new plan was in force (or the decision fell), scaled Unix time.
    """

    trigger: str
    before: Plan
    after: Plan
    decision: Decision
    started_at: float
    finished_at: float


class Controller:
    """Plans again when the traffic has drifted.

    Args:
        runtime: What runs.
        inputs: What the plan in force was made from.
        planner: Where plans are made.
        clock: The run's clock.
        events: Told every decision.
        adapt: Applied to every new plan before it is compared and applied.
        watch: Knows how far off the cost source is; None where the engines are not those planned for.

    Attributes:
        replans: What has been decided so far.
        activity: What it does, in words.
    """

    def __init__(
        self,
        runtime: EmbeddedRuntime,
        inputs: PlanningInputs,
        planner: PlanningProcess,
        clock: ScaledClock,
        events: EventLog,
        *,
        adapt: Callable[[Plan], Plan] = lambda plan: plan,
        watch: EngineWatch | None = None,
    ) -> None:
        self.replans: list[Replan] = []
        self.activity = WATCHING
        self._runtime = runtime
        self._inputs = inputs
        self._planner = planner
        self._clock = clock
        self._events = events
        self._adapt = adapt
        self._watch = watch
        self._settings = inputs.cascade.spec.replanning
        self._placed_at = clock.monotonic()
        self._busy = False
        self._drifted = 0
        self._stopgap = False
        """Whether the thresholds in force were planned alone because of the cooldown."""
        self._said = ""
        self._shadows: dict[str, CalibrationSample] = {}
        self._shadows_of = ""
        self._shadows_told: dict[tuple[str, str], int] = {}

    async def run(self) -> None:
        """Look every interval until cancelled."""
        if self._settings.mode == "Disabled":
            return
        while True:
            await asyncio.sleep(self._clock.wall(self._settings.interval_seconds))
            await self._look()

    async def _look(self) -> None:
        plan = self._runtime.plan
        if plan is None:
            return
        reports = await self._runtime.reports(self._settings.interval_seconds)
        self._look_at_shadows(plan, reports)
        if self._watch is not None:
            await self._watch.look(self._runtime.replicas.values())
        merged = merge_reports(reports)
        if not merged.arrivals or not self._busy:
            # No traffic is no reason to move; and a window in which it began says nothing of its rate.
            self._busy = bool(merged.arrivals)
            return
        first = plan.live_stages[0].name
        looks = looks_per_week(self._settings.interval_seconds)
        verdict = assess(plan.demand, merged, first_stage=first, looks_per_week=looks)
        self._drifted = self._drifted + 1 if verdict.drifted else 0
        if not self._drifted:
            self._said = ""
        elif self._drifted < LOOKS:
            self._tell(verdict, f"seen, to be confirmed at the next look: {verdict.message}")
        else:
            left = self._cooldown_left()
            if left > 0 and self._said == "cooldown":
                return
            self._tell(verdict, f"confirmed: {verdict.message}")
            if left > 0:
                text = f"drift is confirmed; the cooldown has {left:.0f} s left: only thresholds may change"
                self._say_once("cooldown", text)
            else:
                self._drifted = 0
            await self._plan_again(plan, verdict.message, merged, only_thresholds=left > 0)
            return
        surprise = "" if self._watch is None else self._watch.surprise()
        if surprise and not self._drifted:
            self._events.add("Drift", surprise)
            await self._plan_again(plan, surprise, merged, only_thresholds=self._cooldown_left() > 0)
        elif self._stopgap and not self._drifted and self._cooldown_left() <= 0:
            await self._plan_again(plan, "the cooldown is over", merged, only_thresholds=False)

    def _look_at_shadows(self, plan: Plan, reports: Sequence[WorkloadReport]) -> None:
        """Say how far accepted answers agree with the next stage's, as more of them have been compared."""
        if self._shadows_of != plan.plan_id:
            self._shadows_of = plan.plan_id
            self._shadows.clear()
            self._shadows_told.clear()
        for report in reports:
            if report.plan_id == plan.plan_id:
                self._shadows.update({s.request_id: s for s in report.samples if s.next is not None})
        while len(self._shadows) > _SHADOWS_KEPT:
            del self._shadows[next(iter(self._shadows))]
        for found in agreements(self._shadows.values()):
            pair = found.stage, found.next_stage
            if found.samples < self._shadows_told.get(pair, _SHADOWS_TOLD):
                continue
            self._shadows_told[pair] = 2 * found.samples
            self._events.add(
                "Shadow",
                f"accepted answers of {found.stage} agree with {found.next_stage}'s by {found.mean:.2f} "
                f"± {found.standard_error:.2f} (token F1, {found.samples} compared)",
                agreement=found.mean,
                standardError=found.standard_error,
                samples=found.samples,
            )

    def _cooldown_left(self) -> float:
        return self._placed_at + self._settings.cooldown_seconds - self._clock.monotonic()

    async def _plan_again(self, plan: Plan, trigger: str, merged: MergedReport, *, only_thresholds: bool) -> None:
        self.activity = "planning thresholds again" if only_thresholds else "planning again"
        self._stopgap = False
        try:
            await self._replan(plan, trigger, merged, only_thresholds=only_thresholds)
        finally:
            self.activity = WATCHING

    def _tell(self, verdict: DriftVerdict, text: str) -> None:
        figures = {
            test.name: {"statistic": test.statistic, "pValue": test.p_value, "level": test.level, "effect": test.effect}
            for test in verdict.tests
            if test.drifted
        }
        self._events.add("Drift", text, tests=figures)

    def _say_once(self, subject: str, text: str) -> None:
        if self._said != subject:
            self._said = subject
            self._events.add("Drift", text)

    async def _replan(self, plan: Plan, trigger: str, merged: MergedReport, *, only_thresholds: bool) -> None:
        started = self._clock.now()
        first = plan.live_stages[0].name
        seen = merged.stages.get(first)
        if seen is None or not merged.requests_per_second:
            self._events.add("Replan", f"not possible: no router of {first} reports; the plan in force stays")
            return
        observed = ObservedDemand(
            requests_per_second=merged.requests_per_second,
            stage=first,
            input_tokens=seen.input_tokens,
            output_tokens=seen.output_tokens,
            scores=seen.scores,
        )
        inputs = replace(self._inputs, observed=observed)
        if self._watch is not None:
            inputs = replace(inputs, cost=self._watch.cost)
            self._watch.planned()
        self._events.add("Replan", f"planning for {merged.requests_per_second:.1f} requests a second as seen")
        try:
            replicas: Literal["Keep", "KeepIfEnough"] = "Keep" if only_thresholds else "KeepIfEnough"
            planned = await self._planner.run(Job(inputs, PLANNING_DEADLINE_S, in_force=plan, replicas=replicas))
        except CascadiaError as error:
            numbers = ""
            if isinstance(error, InfeasibleError):
                numbers = "".join(f"; {s.what}: {s.needed:g} needed, {s.available:g} there" for s in error.shortfalls)
            self._events.add("Replan", f"rejected, the plan in force stays: {error}{numbers}", decision="Rejected")
            return
        assert planned.in_force is not None
        new = self._adapt(planned.plan)
        decision = decide(inputs.cascade.spec, plan, planned.in_force, new)
        self._events.add(
            "Replan",
            f"{new.plan_id} {decision.verdict.lower()}: {decision.reason}",
            trigger=trigger,
            decision=decision.verdict,
            reason=decision.reason,
        )
        if decision.verdict == "Applied" and not await self._apply(new):
            return
        self._stopgap = only_thresholds and decision.verdict == "Applied"
        self.replans.append(Replan(trigger, plan, new, decision, started, self._clock.now()))

    async def _apply(self, plan: Plan) -> bool:
        begun = self._clock.monotonic()
        self.activity = f"moving to {plan.plan_id} while requests flow"
        self._events.add("Transition", f"to {plan.plan_id} begins")
        try:
            await self._runtime.apply(plan)
        except CascadiaError as error:
            self._events.add("Warning", str(error))
            return False
        finally:
            if plan.replicas_of is None:
                self._placed_at = self._clock.monotonic()
        took = self._clock.monotonic() - begun
        self._events.add("Transition", f"done: {plan.plan_id} is in force after {took:.0f} s")
        return True
