"""More requests than a router can hold: the queue, its end, and what the refused are told."""

import asyncio
import json
from pathlib import Path
from typing import Any

from cascadia_api.policy import OverloadPolicy
from tests.support.router_chain import Chain, Reply, StageOf, chain_of, eventually, http
from tests.support.scripted_engine import ScriptedEngine, Seen, answer, hang

CHAT = "/v1/chat/completions"


def chat(content: str = "hello") -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": content}]}


class Turnstile:
    """An engine's behaviour: each answer waits until it is let through."""

    def __init__(self) -> None:
        self._through = asyncio.Semaphore(0)

    async def __call__(self, engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        await self._through.acquire()
        await answer()(engine, seen, writer)

    def let(self, requests: int) -> None:
        for _ in range(requests):
            self._through.release()


async def ask(chain: Chain, count: int, **headers: str) -> list[asyncio.Task[Reply]]:
    """Ask so often, one after the other."""
    router = chain.router("only")
    tasks = []
    for index in range(count):
        before = len(router.node.exchanges) + len(router.node.room.waiting)  # type: ignore[union-attr]
        address = chain.client("only")
        tasks.append(asyncio.create_task(http(address, CHAT, chat(f"{index}"), headers=headers)))
        await eventually(
            lambda before=before: len(router.node.exchanges) + len(router.node.room.waiting) == before + 1,  # type: ignore[misc]
            "the request is taken",
        )
    return tasks


async def test_requests_wait_in_order_and_the_queue_has_an_end(tmp_path: Path) -> None:
    gate = Turnstile()
    engine = ScriptedEngine("only", gate)
    overload = OverloadPolicy(max_queued=2)
    async with chain_of(tmp_path, StageOf("only", None, [engine]), max_in_flight=1, overload=overload) as chain:
        tasks = await ask(chain, 3)
        assert len(engine.seen) == 1
        refused = await http(chain.client("only"), CHAT, chat())
        assert (refused.status, refused.json["error"]["code"]) == (429, "too_many_requests")
        assert int(refused.headers["retry-after"]) >= 1
        text = (await http(chain.admin("only"), "/metrics")).body.decode()
        assert "cascadia_router_waiting 2\n" in text
        assert "cascadia_router_queued_total 2\n" in text
        for _ in range(3):
            gate.let(1)
        replies = await asyncio.gather(*tasks)
        assert [reply.status for reply in replies] == [200, 200, 200]
        contents = [json.loads(seen.body)["messages"][0]["content"] for seen in engine.seen]
        assert contents == ["0", "1", "2"], "first come, first served"
        node = chain.router("only").node
        report = node.window.report(node.now(), 60, window_end=0, plan_id="", policy_revision=1)
        assert (report.arrivals, report.refused) == (4, 1)


async def test_who_waits_too_long_or_leaves_makes_room(tmp_path: Path) -> None:
    engine = ScriptedEngine("only", hang)
    overload = OverloadPolicy(max_queued=2, max_queue_seconds=5.0)
    stage = StageOf("only", None, [engine])
    async with chain_of(tmp_path, stage, clock_scale=10.0, max_in_flight=1, overload=overload) as chain:
        node = chain.router("only").node
        held, leaver = await ask(chain, 2)
        (hasty,) = await ask(chain, 1, **{"x-cascadia-deadline-ms": "500"})
        leaver.cancel()
        await eventually(lambda: len(node.room.waiting) == 1, "it has left")  # type: ignore[union-attr]
        reply = await hasty
        assert (reply.status, node.metrics.refused["queue_timeout"]) == (429, 1)
        (patient,) = await ask(chain, 1)
        reply = await patient
        assert reply.status == 429
        assert "in time" in reply.json["error"]["message"]
        assert len(engine.seen) == 1
        held.cancel()
        await eventually(lambda: not node.exchanges, "nothing is held")


async def test_a_policy_that_makes_room_lets_requests_in(tmp_path: Path) -> None:
    gate = Turnstile()
    engine = ScriptedEngine("only", gate)
    async with chain_of(tmp_path, StageOf("only", None, [engine]), max_in_flight=1) as chain:
        tasks = await ask(chain, 3)
        chain.put(chain.make_policy(2, max_in_flight=3))
        await eventually(lambda: len(engine.seen) == 3, "all are asked")
        gate.let(3)
        assert [reply.status for reply in await asyncio.gather(*tasks)] == [200, 200, 200]
