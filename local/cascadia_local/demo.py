"""The demo: a cascade is planned, started and loaded; its traffic changes; it plans again and moves under load."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from msgspec.structs import replace
from rich import box
from rich.console import Console, Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.plan import Plan, PlanStage
from cascadia_local.abilities import abilities_of
from cascadia_local.comparison import Period, comparison_view, overhead_words
from cascadia_local.controller import Controller, Replan
from cascadia_local.demo_calibration import EXAMPLE_ABILITIES
from cascadia_local.ending import run_until_interrupted
from cascadia_local.measurements import measure
from cascadia_local.plan_words import shapes_words
from cascadia_local.session import Options, Session, open_session
from cascadia_local.simulated_engine.calibration import LengthDistribution
from cascadia_local.traffic import Phase, PlannedRequest, write_requests
from cascadia_local.traffic_process import TrafficProcess
from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.inputs import PlanningInputs
from cascadia_solver.trace import Trace

__all__ = ["DEMO_TIME_SCALE", "demo"]

DEMO_TIME_SCALE = 8.0
FIRST_SECONDS = 300.0
SECOND_SECONDS = 210.0
"""Service seconds that are measured before and after the change."""
WARM_UP_SECONDS = 30.0
"""Service seconds for empty engines to fill, which are not measured."""
RATE_FACTOR = 1.5
HARDNESS = 0.1
"""The change: requests this much more often, and this much harder (standard deviations of the difficulty model)."""
REPLAN_DEADLINE_SECONDS = 900.0
REAL_REQUESTS_PER_SECOND, REAL_SECONDS = 0.5, 60.0
"""What small models on a CPU can take."""
LONGEST_PROMPT, LONGEST_ANSWER = 14_050, 1_000
"""The longest in Azure's conversation trace."""
FAILED = 1


def demo(
    cascade: CascadeDeployment,
    calibration: CalibrationSet | None,
    *,
    trace: Trace | None = None,
    options: Options | None = None,
    console: Console | None = None,
) -> int:
    """Run the demo.

    Args:
        cascade: The manifest.
        calibration: Its calibration set.
        trace: Trace whose arrivals and lengths the traffic has; synthetic traffic where None.
        options: How to run it; the demo's time scale where None.
        console: Where to show it; standard output where None.

    Returns:
        Exit code: 0 if the change was seen, planned for and moved to without a failed request, else 1;
        130 if interrupted.

    Raises:
        CascadiaError: Something cannot be started, or the input is wrong.
    """
    shown_on = console or Console(highlight=False)
    settings = options or Options(time_scale=DEMO_TIME_SCALE)
    inputs = PlanningInputs(cascade=cascade, calibration=calibration, trace=trace, cost=settings.cost)

    async def story() -> int:
        names = [model.name for model in cascade.spec.models]
        example = {ability.name: ability for ability in EXAMPLE_ABILITIES}
        abilities = EXAMPLE_ABILITIES if set(names) <= example.keys() else abilities_of(names, calibration)
        async with open_session(cascade, abilities, settings, shown_on) as session:
            _introduce(session)
            plan = await session.plan(inputs)
            await session.start(plan)
            if settings.engine == "simulated":
                return await _change_of_traffic(session, inputs, plan, trace)
            return await _real_models(session, plan, trace)

    return run_until_interrupted(story)


async def _change_of_traffic(session: Session, inputs: PlanningInputs, plan: Plan, trace: Trace | None) -> int:
    """Traffic as planned, then harder and more of it: drift, a new plan, a transition."""
    traffic = await session.start_traffic()
    first, second = _phases(session, plan, trace)
    controller = session.control(inputs)
    await traffic.phase(first)
    session.events.add("Traffic", f"{first.requests_per_second:.3g} requests a second begin")
    stretches = [await _flow(session, plan, "before the change", FIRST_SECONDS)]
    session.events.add(
        "Traffic",
        f"the traffic changes: {second.requests_per_second:.3g} requests a second instead of "
        f"{first.requests_per_second:.3g}, and harder ones",
    )
    changed_at = session.clock.now()
    await traffic.phase(second)
    move = await _wait_for_move(session, controller, changed_at)
    if move is not None:
        await session.stop_control()  # so that what follows is measured under one plan
        stretches.append(await _flow(session, move.after, "after the change, new plan", SECOND_SECONDS))
    session.watcher.activity.begin("waiting for the last answers")
    await traffic.stop()
    return _conclude(session, traffic, stretches, move, changed_at)


async def _real_models(session: Session, plan: Plan, trace: Trace | None) -> int:
    """A few requests to small models that really answer: this shows scores and escalation, not performance."""
    traffic = await session.start_traffic()
    first, _ = _phases(session, plan, trace)
    await traffic.phase(replace(first, requests_per_second=REAL_REQUESTS_PER_SECOND))
    await session.sleep(REAL_SECONDS, "real requests")
    session.watcher.activity.begin("waiting for the last answers")
    await traffic.stop()
    measured, console = measure(traffic.measurements.answers), session.console
    reach = ", ".join(f"{share:.0%} reached {stage}" for stage, share in measured.reach.items())
    console.print(f"{reach}; p50 {measured.seconds_p50:.1f} s. {session.honesty()}")
    return _verdict(console, traffic)


def _introduce(session: Session) -> None:
    models = " → ".join(model.name for model in session.cascade.spec.models)
    gpus = sum(pool.max_gpus for pool in session.cascade.spec.gpus.pools)
    console, scale = session.console, session.clock.scale
    console.print(Rule(Text.assemble(("Cascadia", "bold"), " demo"), style="cyan"))
    simulated = session.options.engine == "simulated"
    engines = "simulated engines" if simulated else "a small model for each stage"
    console.print(
        f"The cascade {session.cascade.metadata.name} ({models}) is planned for {gpus} GPUs, started as processes on "
        f"this machine with {engines}, and asked through an OpenAI client."
    )
    if not simulated:
        return
    console.print(
        "Then the traffic changes: drift is detected, a new plan is made, and the cascade moves to it while requests "
        "flow.\n"
        f"Time is compressed: one clock, {scale:g} times as fast as the wall's, drives engines, routers, cooldowns and "
        f"time-outs; {scale:g} s of service pass in 1 s here. Every answer says that it is simulated."
    )


def _phases(session: Session, plan: Plan, trace: Trace | None) -> tuple[Phase, Phase]:
    workload = session.cascade.spec.workload
    path = None
    if trace is not None:
        path = session.run.path / "trace.jsonl"
        rows = zip(trace.arrivals, trace.input_tokens, trace.output_tokens, strict=True)
        write_requests(
            path,
            (
                PlannedRequest(at=float(at), key="", input_tokens=int(prompt), output_tokens=int(answer))
                for at, prompt, answer in rows
            ),
        )
    rate = plan.demand.requests_per_second
    first = Phase(
        name="first",
        requests_per_second=rate,
        inputs=LengthDistribution(
            mean=workload.input_tokens.mean, p95=workload.input_tokens.p95, longest=LONGEST_PROMPT
        ),
        outputs=LengthDistribution(
            mean=workload.output_tokens.mean, p95=workload.output_tokens.p95, longest=LONGEST_ANSWER
        ),
        trace=None if path is None else str(path),
    )
    second = Phase(
        name="second",
        requests_per_second=round(rate * RATE_FACTOR, 2),
        hardness=HARDNESS,
        inputs=first.inputs,
        outputs=first.outputs,
        trace=first.trace,
    )
    return first, second


@dataclass(frozen=True, slots=True)
class Stretch:
    """Some time under one plan; `begun` and `ended` are scaled Unix times."""

    name: str
    plan: Plan
    begun: float
    ended: float


async def _flow(session: Session, plan: Plan, name: str, seconds: float) -> Stretch:
    """Let traffic flow for some service seconds after the engines have filled."""
    await session.sleep(WARM_UP_SECONDS, f"traffic {name}: warming up")
    begun = session.clock.now()
    await session.sleep(seconds, f"traffic {name}")
    return Stretch(name, plan, begun, session.clock.now())


async def _wait_for_move(session: Session, controller: Controller, since: float) -> Replan | None:
    """Wait until a plan made after `since` is in force; None if none is within the deadline."""
    begun = session.clock.monotonic()
    while session.clock.monotonic() - begun < REPLAN_DEADLINE_SECONDS:
        session.check()
        session.watcher.activity.begin(controller.activity)
        moved = [r for r in controller.replans if r.decision.verdict == "Applied" and r.started_at >= since]
        if moved:
            return moved[-1]
        await asyncio.sleep(0.1)
    return None


def _conclude(
    session: Session, traffic: TrafficProcess, stretches: list[Stretch], move: Replan | None, changed_at: float
) -> int:
    """Print what came of it; return the exit code."""
    console, measurements = session.console, traffic.measurements
    periods = [Period(s.name, s.plan, measurements.between(s.begun, s.ended)) for s in stretches]
    parts: list[RenderableType] = []
    if move is not None:
        parts.append(_move_view(move, traffic, changed_at))
    notes = [session.honesty(), overhead_words(traffic.progress, session.clock.scale)]
    parts.append(comparison_view(periods, notes))
    console.print(Group(*parts), highlight=False)
    if move is None:
        console.print(Text(f"no new plan was applied within {REPLAN_DEADLINE_SECONDS:.0f} s of the change", "bold red"))
    return _verdict(console, traffic) or (FAILED if move is None else 0)


def _verdict(console: Console, traffic: TrafficProcess) -> int:
    """Print how many requests failed; return the exit code."""
    failures = traffic.measurements.failures
    for answer in failures[:5]:
        console.print(Text(f"  {answer.failure}", "red"))
    style = "bold red" if failures else "bold green"
    console.print(Text(f"{len(traffic.measurements.answers)} requests, {len(failures) or 'none'} failed.", style))
    return FAILED if failures else 0


def _move_view(move: Replan, traffic: TrafficProcess, changed_at: float) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, title="Planned again under load", title_style="bold", title_justify="left")
    table.add_column("stage")
    for name in ("threshold\nbefore", "\nafter", "replicas\nbefore", "\nafter", "reach\nbefore", "\nafter"):
        table.add_column(name, justify="right")
    after = {stage.name: stage for stage in move.after.stages}
    for stage in move.before.stages:
        now = after[stage.name]
        cells: list[str] = []
        for show in (_threshold, _replicas, _reach):
            cells += [show(stage), show(now)]
        table.add_row(stage.name, *cells)
    during = traffic.measurements.between(move.started_at, move.finished_at)
    words = (
        f"Trigger: {move.trigger}.",
        f"Decision: {move.decision.verdict.lower()}; {move.decision.reason}.",
        f"Drift was confirmed {move.started_at - changed_at:.0f} s of service after the change, the new plan was in "
        f"force {move.finished_at - move.started_at:.0f} s later; of the {during.requests} requests sent meanwhile "
        f"{during.failed or 'none'} failed.",
    )
    return Group(table, *(Text(sentence) for sentence in words))


def _threshold(stage: PlanStage) -> str:
    if not stage.gpus:
        return "–"
    return "all" if stage.threshold is None else f"{stage.threshold:.3f}"


def _replicas(stage: PlanStage) -> str:
    return shapes_words(stage) or "–"


def _reach(stage: PlanStage) -> str:
    return f"{100 * stage.reach:.0f} %" if stage.gpus else "–"
