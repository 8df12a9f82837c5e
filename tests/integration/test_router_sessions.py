"""Conversations on real routers: to the replica that knows them, and to the stage that they escalated to."""

from pathlib import Path
from typing import Any

from cascadia_api.policy import BalancingPolicy
from tests.support.router_chain import StageOf, chain_of, http
from tests.support.scripted_engine import ScriptedEngine, answer, status

CHAT = "/v1/chat/completions"


def chat(*turns: str, **extra: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return {"model": "chat", "messages": messages, **extra}


async def test_a_conversation_keeps_its_replica_whichever_router_it_comes_to(tmp_path: Path) -> None:
    engines = [ScriptedEngine(name) for name in "abc"]
    affine = BalancingPolicy(policy="PrefixAffinity")
    async with chain_of(tmp_path, StageOf("only", None, engines), balancing=affine) as chain:
        homes = {}
        for number in range(12):
            for turns in ((f"question {number}",), (f"question {number}", "answer", "more")):
                for entry in range(3):
                    reply = await http(chain.client("only", entry), CHAT, chat(*turns))
                    home = reply.json["choices"][0]["message"]["content"][0]
                    assert homes.setdefault(number, home) == home
        assert len(set(homes.values())) == 3
        seen = (await http(chain.admin("only", 1), "/cascade/endpoints")).json
        assert [each["replica"] for each in seen] == ["only-0", "only-1", "only-2"]
        assert seen[0]["address"] == chain.router("only", 0).addresses["peers"]
        assert all(each["ready"] and each["outstanding"] == 0 and each["stage"] == "only" for each in seen)


async def test_a_conversation_that_escalated_stays_with_the_stage(tmp_path: Path) -> None:
    small = ScriptedEngine("small", answer(logprob=-1.0))
    stages = StageOf("small", 0.8, [small]), StageOf("large", None, [ScriptedEngine("large")])
    latch = BalancingPolicy(session_latch_seconds=600)
    async with chain_of(tmp_path, *stages, balancing=latch) as chain:

        async def path(entry: str, *turns: str, **headers: str) -> str:
            reply = await http(chain.client(entry), CHAT, chat(*turns), headers=headers)
            assert reply.status == 200
            return reply.headers["x-cascadia-path"]

        for entry in ("small", "large"):  # one has rejected the answer itself, the other hears of it
            assert await path(entry, "one") == "small>large"
            assert await path(entry, "one", "answer", "and more") == "large"
            assert await path(entry, "two") == "small>large"
            named = {"x-cascadia-session": "s-1"}
            assert await path(entry, "three", **named) == "small>large"
            assert await path(entry, "quite another beginning", **named) == "large"
            assert await path(entry, "three", **named, **{"x-cascadia-max-stage": "small"}) == "small"
            assert chain.router(entry).node.metrics.latched == {"large": 2}
        await chain.router("large").close()
        assert await path("small", "one", "answer", "and more") == "small", "the stage is dead: another answers"


async def test_a_stage_that_answers_for_a_dead_one_keeps_no_conversation(tmp_path: Path) -> None:
    small = ScriptedEngine("small", status(500))
    stages = StageOf("small", 0.8, [small]), StageOf("large", None, [ScriptedEngine("large")])
    latch = BalancingPolicy(session_latch_seconds=600)
    async with chain_of(tmp_path, *stages, balancing=latch) as chain:
        for entry in ("small", "large"):
            assert (await http(chain.client(entry), CHAT, chat("one"))).headers["x-cascadia-path"] == "large"
            assert len(chain.router(entry).node.latch) == 0
