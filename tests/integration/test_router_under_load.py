"""What becomes of requests under load when engines and routers end, by plan or not, and when policies change.

Real processes. No request may fail before its first byte where another replica or stage could answer it; a
stream that is cut later ends with an error event; what is done by plan cuts none.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cascadia_api.policy import StreamingPolicy
from tests.support.router_chain import http
from tests.support.router_processes import Load, Processes, cascade_of_processes


async def engine_killed(running: Processes) -> None:
    running.replicas["small-0"].engine.signal(signal.SIGKILL)


async def router_killed(running: Processes) -> None:
    running.replicas["small-0"].router.signal(signal.SIGKILL)


async def last_stage_killed(running: Processes) -> None:
    running.replicas["large-0"].engine.signal(signal.SIGKILL)


GATE = StreamingPolicy(mode="Gate", gate_tokens=8)


@pytest.mark.parametrize(
    ("action", "streaming"),
    [
        (engine_killed, StreamingPolicy()),
        (engine_killed, GATE),
        (router_killed, StreamingPolicy()),
        (router_killed, GATE),
        (last_stage_killed, StreamingPolicy()),
    ],
)
async def test_a_kill_fails_no_request_that_another_can_answer(
    tmp_path: Path, action: Callable[[Processes], Awaitable[None]], streaming: StreamingPolicy
) -> None:
    async with cascade_of_processes(tmp_path, small=2, large=2 if action is last_stage_killed else 1) as running:
        running.put(0.8, streaming=streaming)
        load = Load(running.client)
        await load.until(40)
        await action(running)
        await load.until(80)
        await load.stop()
        assert load.failures == []
        assert load.outcomes["broken"] == 0, "a stream that is cut ends with an error event"
        assert load.outcomes["interrupted"] <= 6, "those under way at the kill, at most"
        assert {decision["stage"] for decision in load.decisions} == {"small", "large"}


async def test_a_pods_end_cuts_nothing(tmp_path: Path) -> None:
    """In kubelet's order: the engine's preStop, SIGTERM to the engine, then to the router."""
    async with cascade_of_processes(tmp_path) as running:
        load = Load(running.client)
        await load.until(30)
        pod = running.replicas["small-0"]
        drain = asyncio.create_task(http(pod.admin, "/drain", seconds=60))
        async with asyncio.timeout(30):
            while (await http(pod.admin, "/readyz")).status != 503:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.01)
        running.put(0.8, without=("small-0",))  # what the endpoints say a moment later
        assert (await drain).status == 200
        pod.engine.signal(signal.SIGTERM)
        assert await pod.engine.ended() == 0
        pod.router.signal(signal.SIGTERM)
        assert await pod.router.ended() == 0
        await load.until(40)
        await load.stop()
        assert load.failures == []
        assert set(load.outcomes) == {"answered"}


async def test_a_routers_sigterm_without_a_drain_cuts_nothing(tmp_path: Path) -> None:
    """As when a node is shut down in a hurry: it finishes what it holds, and is passed by at once."""
    async with cascade_of_processes(tmp_path) as running:
        load = Load(running.client)
        await load.until(30)
        router = running.replicas["small-0"].router
        router.signal(signal.SIGTERM)
        assert await router.ended() == 0
        await load.until(40)
        await load.stop()
        assert load.failures == []
        assert set(load.outcomes) == {"answered"}


async def test_thresholds_and_stage_tables_change_under_load(tmp_path: Path) -> None:
    """Every request follows one policy from its entry to its answer, whatever changes meanwhile."""
    async with cascade_of_processes(tmp_path) as running:
        load = Load(running.client)
        await load.until(10)
        for change in range(30):
            threshold = (0.0, 0.7, 0.8, 0.9, 1.0)[change % 5]
            running.put(threshold, without=(("small-0",), ("small-1",), ())[change % 3])
            await load.until(3)
        await load.stop()
        assert load.failures == []
        assert set(load.outcomes) == {"answered"}
        for decision in load.decisions:
            threshold = float(decision["plan"].removeprefix("at-"))
            if decision["stage"] == "small":
                assert decision["threshold"] == threshold
                assert decision["score"] >= threshold
            else:
                assert decision["path"] == "small>large"
        assert len({decision["plan"] for decision in load.decisions}) >= 3, "several were in force"
