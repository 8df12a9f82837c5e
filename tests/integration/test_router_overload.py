"""More requests than a router can hold: the queue, its end, and what the refused are told."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.policy import OverloadPolicy
from cascadia_router.ladder_watch import LadderWatch
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


async def test_a_router_steps_down_the_ladder_and_its_requests_keep_their_rung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is overloaded; what it lets in goes by its rung at every stage, what others let in does not."""
    monkeypatch.setattr(LadderWatch, "look", lambda *_: None)  # the test steps itself
    engines = {"small": answer(logprob=-0.5), "medium": answer(logprob=-0.7), "large": answer()}
    stages = [
        StageOf(name, at, [ScriptedEngine(name, engines[name])])
        for name, at in (("small", 0.9), ("medium", 0.8), ("large", None))
    ]
    ladder: list[list[float | None]] = [[0.9, 0.8, None], [0.7, 0.4, None]]
    async with chain_of(tmp_path, *stages, ladder=ladder) as chain:
        entry = chain.router("small").node
        for stream in (False, True):
            body = chat() | {"stream": stream}
            reply = await http(chain.client("small"), CHAT, body)
            assert reply.headers["x-cascadia-path"] == "small>medium>large"
            assert "x-cascadia-ladder" not in reply.headers
        entry.policies.step(1)
        for stream in (False, True):
            body = chat() | {"stream": stream}
            reply = await http(chain.client("small"), CHAT, body)
            assert reply.headers["x-cascadia-path"] == "small>medium", "0.50 < 0.7, 0.497 ≥ 0.4"
            assert reply.headers["x-cascadia-ladder"] == "1"
            said = (reply.events[-2] if stream else reply.json)["cascadia"]
            assert (said["ladder"], said["threshold"], said["policyRevision"]) == (1, 0.4, 1)
            reply = await http(chain.client("medium"), CHAT, body)
            assert reply.headers["x-cascadia-path"] == "small>medium>large", "that router is not overloaded"
        text = (await http(chain.admin("small"), "/metrics")).body.decode()
        assert "cascadia_router_ladder_position 1\n" in text
        report = (await http(chain.admin("small"), "/cascade/report")).json
        assert (report["ladderSteps"], report["policyRevision"]) == (1, 1)


async def test_late_requests_make_a_router_step_down_and_back_up(tmp_path: Path) -> None:
    large = ScriptedEngine("large", hang)
    stages = [StageOf("small", 0.9, [ScriptedEngine("small", answer(logprob=-0.5))]), StageOf("large", None, [large])]
    settings: dict[str, Any] = {
        "ladder": [[0.9, None], [0.5, None]],
        "overload": OverloadPolicy(latency_seconds=20.0),
        "request_timeout_seconds": 10_000,
    }
    async with chain_of(tmp_path, *stages, clock_scale=100.0, **settings) as chain:
        node = chain.router("small").node
        late = [asyncio.create_task(http(chain.client("small"), CHAT, chat())) for _ in range(4)]
        await eventually(lambda: node.policies.steps == 1, "late requests are seen before they end")
        reply = await http(chain.client("small"), CHAT, chat())
        assert (reply.headers["x-cascadia-path"], reply.headers["x-cascadia-ladder"]) == ("small", "1")
        for request in late:
            request.cancel()
        await eventually(lambda: node.policies.steps == 0, "the load is gone", 20)
        assert node.metrics.ladder_steps == {"down": 1, "up": 1}
