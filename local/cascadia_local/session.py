"""One run of the embedded runtime: what `cascadia up` and the demo have in common."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.clock import ScaledClock
from cascadia_api.errors import InputError, Problem
from cascadia_api.plan import Plan
from cascadia_local.controller import PLANNING_DEADLINE_S, Controller
from cascadia_local.engine_commands import SimulationSettings
from cascadia_local.engine_watch import SIMULATED, EngineWatch
from cascadia_local.engines import EngineKind, engine_starter, one_replica_a_stage, stage_words
from cascadia_local.events import EventLog
from cascadia_local.plan_words import plan_words
from cascadia_local.planning_messages import Job, Planned, Progress
from cascadia_local.planning_process import PlanningProcess
from cascadia_local.ports import PortAllocator, is_free
from cascadia_local.replica import RunDirectory
from cascadia_local.runtime import EmbeddedRuntime
from cascadia_local.screen import shown
from cascadia_local.simulated_engine.difficulty import ModelAbility
from cascadia_local.traffic import TrafficConfig
from cascadia_local.traffic_process import TrafficProcess
from cascadia_local.watcher import Watcher
from cascadia_router.api_keys import A_KEY, holds_a_key
from cascadia_solver.inputs import PlanningInputs
from cascadia_solver.live_correction import LiveCorrections, LiveSource
from cascadia_solver.roofline import CostSource, Roofline

__all__ = ["Options", "Session", "open_session"]

PREFERRED_PORT = 8080
STREAM_INTERVAL_MS = 50.0
"""Shortest time between two chunks of a stream, wall ms: each costs every process on its way some CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a run is run.

    Attributes:
        engine: Which engines.
        model_file: llama.cpp only: GGUF file; SmolLM2-135M where None.
        time_scale: Service seconds per wall second.
        port: Loopback port of the endpoint; 8080 or, if that is taken, a free one where None.
        keep: Whether the run's folder stays.
        api_keys: File or folder with the API keys that clients need; None if they need none.
        secrets: Folder with keys, headers and certificates for scorers and the collector of traces, each in a file
            ``SECRET.KEY``.
        corrections: Of the cost model, learnt in earlier runs.
        corrections_file: Where to keep what this run learns, or None.
        replay: Whether a trace is replayed: the engines then answer as the calibration set says.
        base: Where the step times of simulated engines come from, and of plans before the run has learnt anything.
    """

    engine: EngineKind = "simulated"
    model_file: Path | None = None
    time_scale: float = 1.0
    port: int | None = None
    keep: bool = False
    api_keys: Path | None = None
    secrets: Path | None = None
    corrections: LiveCorrections | None = None
    corrections_file: Path | None = None
    replay: bool = False
    base: CostSource = field(default_factory=Roofline)

    @property
    def cost(self) -> CostSource:
        """Where step times come from, before this run has learnt anything."""
        return self.base if self.corrections is None else LiveSource(self.base, self.corrections, SIMULATED)

    def check(self) -> None:
        """Find what is wrong with the options.

        Raises:
            InputError: Something is.
        """
        problems = []
        if not 0.1 <= self.time_scale <= 100:
            problems.append(Problem("--time-scale", f"{self.time_scale:g} is not between 0.1 and 100"))
        if self.engine == "llamacpp" and self.time_scale != 1:
            problems.append(Problem("--time-scale", "llama.cpp really computes: its time cannot be compressed; use 1"))
        if self.model_file is not None and self.engine != "llamacpp":
            problems.append(Problem("--gguf", "only --engine llamacpp reads a model file"))
        if self.corrections_file is not None and self.engine != "simulated":
            problems.append(Problem("--live", "small models say nothing of the GPUs: needs --engine simulated"))
        elif self.corrections_file is not None and not self.corrections_file.parent.is_dir():
            problems.append(Problem("--live", f"there is no folder {self.corrections_file.parent}: make it"))
        if self.port is not None and not 1 <= self.port <= 65535:
            problems.append(Problem("--port", f"{self.port} is not between 1 and 65535"))
        elif self.port is not None and not is_free(self.port):
            problems.append(Problem("--port", f"{self.port} is taken: name another one, or leave it to us"))
        if self.api_keys is not None and (wrong := _wrong_with_keys(self.api_keys)):
            problems.append(Problem("--api-keys", wrong))
        if self.secrets is not None and not self.secrets.is_dir():
            message = f"there is no folder {self.secrets}: name one with a file SECRET.KEY for each secret"
            problems.append(Problem("--secrets", message))
        if problems:
            raise InputError(problems)


def _wrong_with_keys(source: Path) -> str:
    try:
        return "" if holds_a_key(source) else f"{source} holds none: write {A_KEY}, one a line"
    except FileNotFoundError:
        return f"there is no {source}: name a file of keys, one a line"
    except OSError as error:
        return f"{source} cannot be read: {error.strerror}"


class Session:
    """What a run consists of.

    Attributes:
        cascade: The manifest.
        options: How it is run.
        console: Where it is shown.
        clock: Its clock.
        run: Its folder.
        events: What happens.
        planner: Plans.
        runtime: Runs the plan.
        watcher: Knows what is going on.
        traffic: The traffic, once started.
        controller: Plans again, once started.
        cut_off: Whether it was ended before its requests were.
        last_words: What it served, once it is closed.
    """

    def __init__(
        self,
        cascade: CascadeDeployment,
        abilities: Sequence[ModelAbility],
        options: Options,
        console: Console,
        directory: Path,
    ) -> None:
        self.cascade = cascade
        self.options = options
        self.console = console
        self.clock = ScaledClock(options.time_scale, time.time())
        self.run = RunDirectory(directory, options.secrets and options.secrets.absolute())
        self.events = EventLog(self.clock, directory / "events.jsonl")
        self.planner = PlanningProcess(directory)
        self.outcomes = directory / "outcomes.jsonl"
        self.requests = directory / "requests.jsonl"
        self.traffic: TrafficProcess | None = None
        self._limit: int | None = None
        self.controller: Controller | None = None
        self._controlling: asyncio.Task[None] | None = None
        self._background: list[asyncio.Task[None]] = []
        self.cut_off = False
        self.last_words = ""
        self._held = 0
        self._stopping_told = False
        self._simulated = options.engine == "simulated"
        settings = SimulationSettings(
            abilities={ability.name: ability for ability in abilities},
            clock=self.clock,
            outcomes_file=self.outcomes if options.replay else None,
            scorer_id=_simulated_scorer(cascade),
            stream_interval_milliseconds=STREAM_INTERVAL_MS,
            cost=options.base,
        )
        port = options.port or (PREFERRED_PORT if is_free(PREFERRED_PORT) else PortAllocator().take())
        self.runtime = EmbeddedRuntime(
            cascade,
            engine_starter(cascade, settings, kind=options.engine, model_file=options.model_file),
            self.run,
            self.clock,
            self.events,
            port=port,
            api_keys=None if options.api_keys is None else str(options.api_keys.absolute()),
        )
        kind = "simulated engines" if self._simulated else "llama.cpp, small models"
        self.watcher = Watcher(self.runtime, self.clock, self.events, stage_words(cascade), kind)

    def adapt(self, plan: Plan) -> Plan:
        """The plan as this machine can run it."""
        return plan if self._simulated else one_replica_a_stage(plan)

    def limit_replay(self, requests: int | None) -> None:
        """Replay at most this many requests of the trace."""
        self._limit = requests

    async def plan(self, inputs: PlanningInputs) -> Plan:
        """Plan; for a replay, also write the demand's requests and what every model answers to them.

        Raises:
            InputError: The inputs are wrong.
            InfeasibleError: No plan can satisfy the manifest.
        """
        activity = self.watcher.activity
        activity.begin("planning")

        def progress(now: Progress) -> None:
            activity.begin(f"planning: {now.what}", now.share)

        job = Job(
            inputs,
            PLANNING_DEADLINE_S,
            requests_file=self.requests if self.options.replay else None,
            outcomes_file=self.outcomes if self.options.replay else None,
            most_requests=self._limit,
        )
        begun = time.monotonic()
        planned: Planned = await self.planner.run(job, progress=progress)
        plan = self.adapt(planned.plan)
        self.events.add("Plan", f"{plan.plan_id}: {plan_words(plan)}", wallSeconds=round(time.monotonic() - begun, 2))
        for warning in plan.warnings:
            self.events.add("Warning", warning)
        return plan

    async def start(self, plan: Plan) -> None:
        """Start a plan; returns once it is in force."""
        replicas = sum(group.count for stage in plan.live_stages for group in stage.replicas)
        self.watcher.activity.begin(f"starting {replicas} replicas, an engine and a router each")
        await self.runtime.start(plan)

    def control(self, inputs: PlanningInputs) -> Controller:
        """Start the controller: it plans again when the traffic drifts."""
        watch = None
        if self._simulated:
            known, file = self.options.corrections, self.options.corrections_file
            watch = EngineWatch(self.cascade, self.options.base, self.clock, self.events, corrections=known, file=file)
        self.controller = Controller(
            self.runtime, inputs, self.planner, self.clock, self.events, adapt=self.adapt, watch=watch
        )
        self._controlling = asyncio.create_task(self.controller.run(), name="controller")
        self._background.append(self._controlling)
        return self.controller

    async def stop_control(self) -> None:
        """Stop the controller: the plan in force stays."""
        if self._controlling is not None:
            self._controlling.cancel()
            await asyncio.gather(self._controlling, return_exceptions=True)

    async def start_traffic(self, *, seed: int = 0) -> TrafficProcess:
        """Start the traffic process; it sends nothing yet."""
        config = TrafficConfig(
            base_url=self.runtime.endpoint,
            model=self.cascade.metadata.name,
            clock_scale=self.clock.scale,
            clock_epoch=self.clock.epoch,
            timeout_seconds=self.cascade.spec.routing.request_timeout_seconds,
            seed=seed,
            simulated=self._simulated,
            requests_file=str(self.requests),
            api_key=self.runtime.traffic_key,
        )
        self.traffic = self.watcher.traffic = TrafficProcess(config, self.run.path)
        await self.traffic.start()
        return self.traffic

    async def sleep(self, seconds: float, text: str) -> None:
        """Wait for some service seconds, shown as progress."""
        begun = self.clock.monotonic()
        while (passed := self.clock.monotonic() - begun) < seconds:
            self.check()
            self.watcher.activity.begin(text, passed / seconds)
            await asyncio.sleep(min(0.2, self.clock.wall(seconds - passed)))

    async def serve(self) -> None:
        """Serve until something in the background fails or the run is interrupted."""
        while True:
            self.check()
            await asyncio.sleep(0.5)

    def honesty(self) -> str:
        """What figures of this run can tell and what they cannot."""
        if not self._simulated:
            return "Small models on this machine's CPU stand in for the plan's: its latencies are not comparable."
        pace = "" if self.clock.scale == 1 else f" Time was compressed: {self.clock.scale:g} s of service in 1 s here."
        answers = "the rows of the calibration set" if self.options.replay else "a difficulty model"
        return (
            f"The engines are simulated with the planner's own cost model and answer by {answers}: this compares "
            "queueing, batching, routing and escalation, not the cost model itself." + pace
        )

    def check(self) -> None:
        """Raise what has gone wrong in the background, if anything."""
        self.runtime.check()
        for task in self._background:
            if task.done() and not task.cancelled():
                task.result()

    def watch(self) -> None:
        """Start to keep the picture up to date."""
        self._background.append(asyncio.create_task(self.watcher.run(), name="watcher"))

    async def close(self) -> None:
        """Stop everything that was started: in order, or at once if this is cancelled."""
        closing = asyncio.create_task(self._close(), name="close")
        try:
            await asyncio.shield(closing)
        except asyncio.CancelledError:
            if closing.done():
                raise
            self.cut_off = True
            self.runtime.kill()
            await closing
            raise

    async def _close(self) -> None:
        self.watcher.activity.begin("stopping")
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        ours = self.traffic is not None and not self.traffic.ended.is_set()
        if self.traffic is not None:
            await self.traffic.kill()
        await self.planner.stop()
        await self.runtime.stop(lambda held: self._tell_in_flight(0 if ours else held))
        if self.cut_off:
            self.last_words = f"stopped at once, with {_requests(self._held)} in flight."
        else:
            self.last_words = f"stopped: {self.runtime.served() or 'nothing was served.'}"

    def _tell_in_flight(self, held: int) -> None:
        if self.cut_off:
            return
        self._held = held
        if not held:
            self.watcher.activity.begin("stopping")
            return
        self.watcher.activity.begin(f"stopping: {_requests(held)} in flight; Ctrl-C again cuts them off")
        if not self._stopping_told:
            self._stopping_told = True
            self.events.add(
                "Stop",
                f"{_requests(held)} in flight: finished first, within {self.runtime.drain_seconds:.0f} s; "
                "Ctrl-C again cuts them off",
            )


@contextlib.asynccontextmanager
async def open_session(
    cascade: CascadeDeployment, abilities: Sequence[ModelAbility], options: Options, console: Console
) -> AsyncIterator[Session]:
    """A session, shown while the body runs; whatever happens, nothing of it is left running afterwards.

    Args:
        cascade: The manifest.
        abilities: What its simulated models can do.
        options: How it is run.
        console: Where it is shown.

    Raises:
        InputError: An option is wrong.
    """
    options.check()
    directory = Path(tempfile.mkdtemp(prefix=f"cascadia-{cascade.metadata.name}-"))
    try:
        session = Session(cascade, abilities, options, console, directory)
        async with shown(console, session.watcher.snapshot, session.events):
            try:
                session.watch()
                yield session
            finally:
                await session.close()
    finally:
        if options.keep:
            console.print(f"configuration, logs and events: {directory}", highlight=False)
        else:
            shutil.rmtree(directory, ignore_errors=True)


def _simulated_scorer(cascade: CascadeDeployment) -> str:
    """Id of the scores that simulated answers show in their log-probabilities: the routers do the rest."""
    routing = cascade.spec.routing
    if routing.scorer.type == "LogProb":
        return routing.scorer_id
    of_tokens = [part.id for part in routing.scorer.parts or () if part.type == "LogProb"]
    return of_tokens[0] if of_tokens else "logprob-mean"


def _requests(count: int) -> str:
    return f"{count:,} {'request' if count == 1 else 'requests'}"
