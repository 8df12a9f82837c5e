"""`cascadia up` and `cascadia demo`, without their command lines."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from rich.console import Console
from rich.padding import Padding
from rich.syntax import Syntax
from rich.text import Text

from cascadia_api.cascade import CascadeDeployment
from cascadia_local.abilities import abilities_of
from cascadia_local.comparison import Period, comparison_view, overhead_words
from cascadia_local.session import INTERRUPTED, Options, Session, open_session, run_until_interrupted
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
        Exit code: 0, or 1 if requests of the trace failed. Ctrl-C is how serving ends: 0.

    Raises:
        InputError: An option or the manifest is wrong.
        InfeasibleError: No plan can satisfy the manifest.
        CascadiaError: A process does not start.
    """
    shown_on = console or Console(highlight=False)
    settings = replace(options or Options(), replay=trace is not None)
    inputs = PlanningInputs(cascade=cascade, calibration=calibration, trace=trace)
    serving = False

    async def story() -> int:
        nonlocal serving
        abilities = abilities_of([model.name for model in cascade.spec.models], calibration)
        async with open_session(cascade, abilities, settings, shown_on) as session:
            if trace is not None:
                session.limit_replay(limit)
            plan = await session.plan(inputs)
            await session.start(plan)
            session.control(inputs)
            _say_how_to_ask(session)
            failed = await _replay(session) if trace is not None else 0
            if trace is None or stay:
                serving = True
                session.watcher.activity.begin("serving; Ctrl-C stops it")
                await session.serve()
            return FAILED_REQUESTS if failed else 0

    code = run_until_interrupted(story)
    return 0 if serving and code == INTERRUPTED else code


async def _replay(session: Session) -> int:
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
    plan = session.runtime.plan
    assert plan is not None
    measured = traffic.measurements.between(begun)
    notes = [
        overhead_words([measured], traffic.progress, session.clock.scale),
        session.honesty(),
        f"{measured.failed} of {measured.requests} requests failed.",
        *(f"  {answer.failure}" for answer in traffic.measurements.failures[:5]),
    ]
    session.console.print(comparison_view([Period("the trace", plan, measured)], notes), highlight=False)
    return measured.failed


def _say_how_to_ask(session: Session) -> None:
    console, endpoint, name = session.console, session.runtime.endpoint, session.cascade.metadata.name
    message = '{"role": "user", "content": "Why is the sky blue?"}'
    console.print()
    console.print(Text.assemble((name, "bold cyan"), " is served at ", (endpoint, "bold underline")))
    shell = f"""curl {endpoint}/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "{name}", "messages": [{message}]}}'"""
    python = f"""from openai import OpenAI
client = OpenAI(base_url="{endpoint}", api_key="not-needed")
answer = client.chat.completions.create(model="{name}", messages=[{message}])
print(answer.choices[0].message.content, answer.cascadia)"""
    for code, language in ((shell, "bash"), (python, "python")):
        console.print(Padding(Syntax(code, language, background_color="default", word_wrap=True), (1, 2, 0, 2)))
    console.print()
