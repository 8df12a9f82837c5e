"""Planning beside the event loop: in a process of its own, with a deadline, one cascade after the other.

Only plain data crosses the process boundary. A reconcile never waits for a plan: it starts planning and goes
on; when the plan is there, the cascade is looked at again. Until then, and when planning fails or takes too
long, the last good plan stays in force.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from cascadia_api.errors import InfeasibleError, InputError, PlanningTimeoutError
from cascadia_api.load import parse_cascade
from cascadia_api.plan import Plan
from cascadia_operator.decide.plan_choice import PlanFailure, Trouble
from cascadia_operator.metrics import PLANNING_SECONDS, PLANS
from cascadia_operator.world import Key, World

__all__ = ["MadePlan", "Planner", "PlanningJob", "PlanningOutcome", "PlanningPool", "PlansCascades", "plan_job"]

log = logging.getLogger("cascadia.operator.planning")

_GRACE_SECONDS = 30.0
"""Beyond the solver's own deadline: start of the process, imports, compilation."""
_RETRY_SECONDS = 60.0
_LONGEST_RETRY_SECONDS = 900.0


@dataclass(frozen=True, slots=True)
class PlanningJob:
    """All that a plan follows from, as plain data.

    Attributes:
        cascade: The manifest.
        calibration: Lines of the calibration set; empty for none.
        available_gpus: GPUs of each pool that it may hold.
        deadline_seconds: For the search.
        in_force: The plan whose replicas run and may stay: thresholds alone are planned where that is enough.
        free_by_node: GPUs that it may hold on each node of a pool, where nodes are known.
        corrections: File of corrections of step times; empty for none.
        learnt: Corrections that the operator has learnt itself, as `LiveCorrections.to_json` has them; empty for none.
    """

    cascade: Mapping[str, Any]
    calibration: tuple[str, ...]
    available_gpus: Mapping[str, int]
    deadline_seconds: float
    in_force: Mapping[str, Any] | None = None
    free_by_node: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    corrections: str = ""
    learnt: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlanningOutcome:
    """A plan, or why there is none.

    Attributes:
        plan: The plan as JSON; None if there is none.
        failure: Why; None if there is a plan.
        result: For the metrics: planned, infeasible, invalid or failed.
    """

    plan: dict[str, Any] | None = None
    failure: PlanFailure | None = None
    result: str = "planned"


def plan_job(job: PlanningJob) -> PlanningOutcome:
    """Plan one cascade; runs in a process of its own and raises nothing that a user can cause."""
    from cascadia_solver.calibration import parse_calibration
    from cascadia_solver.live_correction import LiveCorrections
    from cascadia_solver.planner import PlanningInputs, plan_cascade
    from cascadia_solver.rejected_rows import rejected_rows_summary
    from cascadia_solver.replanning import replan
    from cascadia_solver.sources import parse_corrections, source_of, with_learnt

    try:
        cascade = parse_cascade(dict(job.cascade))
        calibration = None
        if job.calibration:
            scorer = cascade.spec.routing.scorer_id
            models = [model.name for model in cascade.spec.models]
            calibration, problems = parse_calibration(job.calibration, models=models, scorer=scorer)
            if problems:
                log.warning("%s", rejected_rows_summary(problems, "calibration set"))
        cost = source_of(cascade.spec.planning, parse_corrections(job.corrections) if job.corrections else None)
        if job.learnt:
            cost = with_learnt(cost, LiveCorrections.from_json(job.learnt))
        inputs = PlanningInputs(
            cascade=cascade,
            calibration=calibration,
            available_gpus=dict(job.available_gpus),
            free_by_node=dict(job.free_by_node),
            cost=cost,
        )
        if job.in_force is None:
            plan = plan_cascade(inputs, deadline_seconds=job.deadline_seconds)
        else:
            in_force = Plan.model_validate(dict(job.in_force))
            plan = replan(inputs, in_force, deadline_seconds=job.deadline_seconds)
    except InfeasibleError as error:
        return PlanningOutcome(failure=PlanFailure(_infeasible(error), final=True), result="infeasible")
    except InputError as error:
        return PlanningOutcome(failure=PlanFailure(Trouble("InvalidSpec", str(error)), final=True), result="invalid")
    except PlanningTimeoutError as error:
        return _failed("PlanningTimedOut", f"{error}; the last good plan stays")
    return PlanningOutcome(plan=plan.for_json())


def _infeasible(error: InfeasibleError) -> Trouble:
    parts = [str(error)]
    parts += [f"{s.what}: needs {s.needed:g}, has {s.available:g}" for s in error.shortfalls]
    if error.nearest:
        parts.append(f"nearest feasible plan: {error.nearest}")
    return Trouble(error.reason, "; ".join(parts))


class PlansCascades(Protocol):
    """Runs planning jobs."""

    async def run(self, job: PlanningJob) -> PlanningOutcome:
        """Plan one cascade; raises nothing but cancellation."""
        ...


class PlanningPool:
    """One planning process, started at the first job and again after a time-out or a crash."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._turn = asyncio.Lock()

    async def run(self, job: PlanningJob) -> PlanningOutcome:
        """See `PlansCascades.run`."""
        async with self._turn:
            limit = job.deadline_seconds + _GRACE_SECONDS
            try:
                async with asyncio.timeout(limit):
                    return await asyncio.get_running_loop().run_in_executor(self._process(), plan_job, job)
            except TimeoutError:
                self.close()
                return _failed("PlanningTimedOut", f"planning took longer than {limit:.0f} s; the last good plan stays")
            except BrokenExecutor:
                self.close()
                return _failed("PlannerFailed", "the planning process ended early, out of memory perhaps")
            except Exception as error:  # a defect of the planner must not stop the operator
                log.exception("planning failed")
                return _failed("PlannerFailed", f"planning failed: {type(error).__name__}: {error}")

    def close(self) -> None:
        """End the process at once, whatever it is doing."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())  # noqa: SLF001 - nothing public ends a busy worker
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.kill()

    def _process(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # Spawned, not forked: the operator has threads.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)
        return self._pool


def _end_with_parent() -> None:
    """End this process when the operator is killed: it would wait for work for ever."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="end with the parent", daemon=True).start()


def _failed(reason: str, message: str) -> PlanningOutcome:
    return PlanningOutcome(failure=PlanFailure(Trouble(reason, message), final=False), result="failed")


@dataclass
class _Attempt:
    """The planning of one cascade for certain inputs."""

    inputs: str
    trigger: str
    trigger_message: str
    available: Mapping[str, int]
    free_by_node: Mapping[str, tuple[int, ...]]
    learnt: Mapping[str, Any]
    tries: int = 1
    outcome: PlanningOutcome | None = None
    finished: float = 0.0
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class MadePlan(NamedTuple):
    """A plan that was made.

    Attributes:
        plan: The plan.
        trigger: Why.
        message: The facts behind it.
        learnt: See `PlanningJob.learnt`.
    """

    plan: Plan
    trigger: str
    message: str
    learnt: Mapping[str, Any]


class Planner:
    """Keeps one attempt for each cascade. What it remembers saves work only: without it, it plans again.

    Args:
        pool: Runs the jobs.
        deadline_seconds: For one search.
        ready: Called with the cascade's key when an attempt has ended.
    """

    def __init__(self, pool: PlansCascades, deadline_seconds: float, ready: Callable[[Key], None]) -> None:
        self._pool = pool
        self._deadline = deadline_seconds
        self._ready = ready
        self._attempts: dict[Key, _Attempt] = {}

    def running(self, world: World) -> bool:
        """Whether a plan for the present inputs is being made."""
        attempt = self._attempts.get(world.key)
        return attempt is not None and attempt.inputs == world.inputs and attempt.outcome is None

    def made(self, world: World) -> MadePlan | None:
        """The plan that was made for the present inputs."""
        attempt = self._attempts.get(world.key)
        if attempt is None or attempt.inputs != world.inputs or attempt.outcome is None or not attempt.outcome.plan:
            return None
        plan = Plan.model_validate(attempt.outcome.plan)
        return MadePlan(plan, attempt.trigger, attempt.trigger_message, attempt.learnt)

    def failure(self, world: World) -> PlanFailure | None:
        """How planning for the present inputs failed; None once it is worth another try.

        What is infeasible is tried again when other GPUs are free; what timed out or crashed, after a while.
        """
        attempt = self._attempts.get(world.key)
        if attempt is None or attempt.inputs != world.inputs or attempt.outcome is None:
            return None
        failure = attempt.outcome.failure
        if failure is None:
            return None
        if failure.final:
            same = (attempt.available, attempt.free_by_node) == (dict(world.available), dict(world.free_by_node))
            return failure if same else None
        wait = min(_RETRY_SECONDS * 2 ** (attempt.tries - 1), _LONGEST_RETRY_SECONDS)
        return failure if time.monotonic() < attempt.finished + wait else None

    def start(
        self,
        world: World,
        trigger: str,
        message: str,
        in_force: Plan | None = None,
        learnt: Mapping[str, Any] | None = None,
    ) -> None:
        """Plan for the present inputs, unless that is under way.

        Args:
            world: The cascade as it is.
            trigger: Why.
            message: The facts behind it.
            in_force: The plan whose replicas may stay; None to plan everything anew.
            learnt: See `PlanningJob`.
        """
        if self.running(world):
            return
        before = self._attempts.get(world.key)
        tries = before.tries + 1 if before is not None and before.inputs == world.inputs else 1
        attempt = _Attempt(
            world.inputs, trigger, message, dict(world.available), dict(world.free_by_node), learnt or {}, tries
        )
        job = PlanningJob(
            cascade=world.cascade.model_dump(mode="json", by_alias=True, exclude_none=True),
            calibration=world.calibration.lines,
            available_gpus=world.available,
            deadline_seconds=self._deadline,
            in_force=None if in_force is None else in_force.for_json(),
            free_by_node=world.free_by_node,
            corrections=world.corrections.text,
            learnt=learnt or {},
        )
        self._attempts[world.key] = attempt
        attempt.task = asyncio.create_task(self._run(world.key, attempt, job))

    def forget(self, key: Key) -> None:
        """Drop what is known of a cascade that is gone."""
        attempt = self._attempts.pop(key, None)
        if attempt is not None and attempt.task is not None:
            attempt.task.cancel()

    async def close(self) -> None:
        """Give up all that is under way."""
        tasks = [attempt.task for attempt in self._attempts.values() if attempt.task is not None]
        self._attempts.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: Key, attempt: _Attempt, job: PlanningJob) -> None:
        with PLANNING_SECONDS.time():
            outcome = await self._pool.run(job)
        PLANS.labels(outcome.result).inc()
        attempt.outcome, attempt.finished = outcome, time.monotonic()
        if self._attempts.get(key) is attempt:
            self._ready(key)
