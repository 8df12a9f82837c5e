"""`cascadia up` and `cascadia demo`, without their command lines."""

from __future__ import annotations

import asyncio
import math
import textwrap
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.plan import Plan
from cascadia_local.abilities import abilities_of
from cascadia_local.comparison import Period, comparison_view, filling_words, overhead_words, period_at_work
from cascadia_local.ending import INTERRUPTED, run_until_interrupted
from cascadia_local.session import Options, Session, open_session
from cascadia_local.traffic_process import TrafficProcess
from cascadia_solver.calibration import CalibrationSet
from cascadia_solver.inputs import PlanningInputs
from cascadia_solver.trace import Trace

__all__ = ["Options", "up"]

FAILED_REQUESTS = 1
"""Exit code of a replay with failed requests."""


def up(
    cascade: CascadeDeployment,
    *,
    calibration: CalibrationSet | None = None,
    trace: Trace | None = None,
    limit: int | None = None,
    options: Options | None = None,
    stay: bool = True,
    console: Console | None = None,
) -> int:
    """Plan a cascade, run the plan on this machine and serve it; with a trace, replay it first.

    Args:
        cascade: The manifest.
        calibration: Its calibration set; published accuracies where None.
        trace: Trace to plan for and to replay.
        limit: Most requests of the trace to replay.
        options: How to run it.
        stay: Whether to go on serving after a replay.
        console: Where to show it; standard output where None.

    Returns:
        Exit code: 0, or 1 if requests of the trace failed. Ctrl-C is how serving ends: 0 once every request in
        flight is finished, 130 after another Ctrl-C that cuts them off, or before anything was served.

    Raises:
        InputError: An option or the manifest is wrong.
        InfeasibleError: No plan can satisfy the manifest.
        CascadiaError: A process does not start.
    """
    shown_on = console or Console(highlight=False)
    settings = replace(options or Options(), replay=trace is not None)
    inputs = PlanningInputs(cascade=cascade, calibration=calibration, trace=trace, cost=settings.cost)
    served: Session | None = None
    code = 0

    async def story() -> int:
        nonlocal served, code
        abilities = abilities_of([model.name for model in cascade.spec.models], calibration)
        async with open_session(cascade, abilities, settings, shown_on) as session:
            if trace is not None:
                session.limit_replay(limit)
            plan = await session.plan(inputs)
            await session.start(plan)
            session.control(inputs)
            _say_how_to_ask(session)
            if trace is not None and await _replay(session, plan, trace):
                code = FAILED_REQUESTS
            if trace is None or stay:
                served = session
                session.watcher.traffic = None  # from here on it is others' requests that count
                session.watcher.activity.begin("serving; Ctrl-C stops it")
                await session.serve()
            return code

    ended = run_until_interrupted(story)
    if served is None:
        return ended
    shown_on.print(served.last_words, markup=False, soft_wrap=True)
    return INTERRUPTED if served.cut_off else code


async def _replay(session: Session, plan: Plan, trace: Trace) -> int:
    """Replay the trace, print predicted against measured; return how many requests failed."""
    traffic = await session.start_traffic()
    total = sum(1 for _ in session.requests.open("rb"))
    begun = session.clock.now()
    await traffic.replay()
    while not traffic.progress.replayed or traffic.progress.in_flight:
        session.check()
        if traffic.ended.is_set():
            break
        done = len(traffic.measurements.answers)
        session.watcher.activity.begin(f"replaying the trace: {done} of {total} requests", done / max(1, total))
        await asyncio.sleep(0.2)
    await traffic.stop()
    measured = traffic.measurements
    periods = _periods(session, traffic, plan, begun)
    notes = [
        session.honesty(),
        filling_words(periods),
        overhead_words(traffic.progress, session.clock.scale),
        f"The plan is for the whole trace ({len(trace)} requests); the first {total} were replayed."
        if total < len(trace)
        else "",
        f"{len(measured.answers)} requests, {len(measured.failures) or 'none'} failed.",
        *(f"  {answer.failure}" for answer in measured.failures[:5]),
    ]
    session.console.print(comparison_view(periods, notes), highlight=False)
    return len(measured.failures)


def _periods(session: Session, traffic: TrafficProcess, plan: Plan, begun: float) -> list[Period]:
    """The replay, cut where a new plan came into force; what was sent during a transition counts for neither."""
    periods, measured = [], traffic.measurements
    ended = max((answer.sent_at for answer in measured.answers), default=begun)
    moves = [] if session.controller is None else session.controller.replans
    for move in moves:
        if move.decision.verdict == "Applied":
            periods.append(period_at_work("the trace", plan, measured, begun, move.started_at))
            plan, begun = move.after, move.finished_at
    periods.append(period_at_work("the trace", plan, measured, begun, math.nextafter(ended, math.inf)))
    return [period for period in periods if period.measured.requests]


def _say_how_to_ask(session: Session) -> None:
    console, endpoint, name = session.console, session.runtime.endpoint, session.cascade.metadata.name
    messages = '[{"role": "user", "content": "Why is the sky blue?"}]'
    console.print()
    console.print(Text.assemble((name, "bold cyan"), " is served at ", (endpoint, "bold underline")))
    keyed = session.options.api_keys is not None
    header = "  -H 'Authorization: Bearer YOUR-KEY' \\\n" if keyed else ""
    shell = f"""curl {endpoint}/chat/completions \\
{header}  -H 'Content-Type: application/json' \\
  -d '{{"model": "{name}", "messages": {messages}}}'"""
    python = f"""from openai import OpenAI
client = OpenAI(base_url="{endpoint}", api_key="{"YOUR-KEY" if keyed else "not-needed"}")
messages = {messages}
answer = client.chat.completions.create(model="{name}", messages=messages)
print(answer.choices[0].message.content, answer.cascadia)"""
    for code in (shell, python):
        console.print(Text(textwrap.indent(f"\n{code}", "  ")), soft_wrap=True)
    console.print()
