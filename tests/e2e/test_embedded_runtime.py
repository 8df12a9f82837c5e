"""Real engines and routers as processes: transitions, crashes and stops under load lose no request."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cascadia_local.processes import Command, ProcessFailedError
from cascadia_solver.transition import ReplicaState
from tests.support.embedded import Embedded, embedded, plan_of, processes_of, until


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Embedded]:
    async with embedded(tmp_path) as started:
        yield started
    assert processes_of(tmp_path) == [], "processes are left"


def answered(run: Embedded) -> int:
    assert run.traffic is not None
    return len(run.traffic.measurements.answers)


async def test_a_transition_under_load_fails_no_request(run: Embedded) -> None:
    before = plan_of([(1, 2)], [(4, 1)], number=1)
    after = plan_of([(1, 4)], [(2, 1)], threshold=0.7, number=2)
    await run.runtime.start(before)
    kept = {name: r.engine.pid for name, r in run.runtime.replicas.items() if r.desired.stage == "small"}
    held: list[int] = []
    run.events.listen(lambda _: held.append(sum(r.desired.gpus for r in run.runtime.replicas.values())))

    traffic = await run.start_traffic(3.0, stream_share=0.2)
    await until(lambda: answered(run) > 40, "answers under the first plan")
    moved_at = run.clock.now()
    await run.runtime.apply(after)
    reached = answered(run)
    await until(lambda: answered(run) > reached + 60, "answers under the second plan")
    await traffic.stop()

    assert [answer.failure for answer in traffic.measurements.failures] == []
    assert run.runtime.plan == after
    assert {name: run.runtime.replicas[name].engine.pid for name in kept} == kept, "kept replicas were restarted"
    assert (
        sorted(r.desired.kind[0::2][:2] for r in run.runtime.replicas.values()) == [("large", 2)] + [("small", 1)] * 4
    )
    assert held
    assert max(held) <= 8, "more GPUs were held than there are"
    second = traffic.measurements.between(moved_at)
    assert second.reach["small"] == 1.0
    assert 0 < second.reach["large"] < 1
    reports = await run.runtime.reports(60)
    assert {report.plan_id for report in reports} == {after.plan_id}
    assert sum(report.arrivals for report in reports) == reports[0].arrivals > 0, "requests enter at the entry router"


async def test_killed_engines_and_routers_come_back_and_no_request_is_lost(run: Embedded) -> None:
    await run.runtime.start(plan_of([(1, 2)], [(4, 1)]))
    victim, other = sorted(
        (r for r in run.runtime.replicas.values() if r.desired.stage == "small"), key=lambda r: r.name
    )
    for replica, process in ((victim, victim.engine), (other, other.router.process)):
        traffic = await run.start_traffic(3.0)
        await until(lambda: answered(run) > 20, "answers before the crash")
        pid = process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await until(lambda p=process: p.restarts == 1, f"{process.name} is started again")
        await until(lambda r=replica: r.state is ReplicaState.Ready, f"{replica.name} is ready again")
        assert process.pid not in (None, pid)
        reached = answered(run)
        await until(lambda n=reached: answered(run) > n + 40, "answers after the crash")
        # Every answer is in before the next crash: a request that meets two of them is given up by design.
        await traffic.stop()
        assert [answer.failure for answer in traffic.measurements.failures] == []
    crashes = [event.text for event in run.events.events if event.kind == "Crash"]
    assert len(crashes) == 2
    assert all("SIGKILL" in text for text in crashes)


async def test_an_entry_that_cannot_run_is_named_with_its_log(run: Embedded) -> None:
    run.runtime._entry.process.command = Command("cascadia_router", ("--no-such-flag",))
    with pytest.raises(ProcessFailedError, match=r"(?s)entry-router exited with code 2.*--config"):
        await run.runtime.start(plan_of([(1, 1)], []))


async def test_an_engine_that_cannot_run_is_named_with_its_log(run: Embedded) -> None:
    run.runtime._engines = lambda *_: Command("cascadia_local.simulated_engine", ("--config", "/nowhere.json"))
    with pytest.raises(ProcessFailedError, match=r"(?s)small-1-engine exited with code 2.*/nowhere.json"):
        await run.runtime.start(plan_of([(1, 1)], []))
