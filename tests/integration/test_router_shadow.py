"""Shadow sampling: the next stage is asked after the client has its answer, and never in anybody's way."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.policy import ShadowPolicy, StreamingPolicy
from cascadia_api.report import CalibrationSample
from tests.support.router_chain import Chain, StageOf, chain_of, eventually, http
from tests.support.scripted_engine import Behaviour, ScriptedEngine, Seen, answer, hang, reset

CHAT = "/v1/chat/completions"
ALL = ShadowPolicy(share=1.0)


def chat(**extra: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": "hello"}], **extra}


def stages(second: Behaviour | None = None, threshold: float = 0.8) -> tuple[StageOf, StageOf]:
    return (
        StageOf("small", threshold, [ScriptedEngine("word")]),
        StageOf("large", None, [ScriptedEngine("word", second or answer(logprob=-0.2, tokens=4))]),
    )


def outcomes(chain: Chain) -> dict[str, int]:
    return {outcome: count for (_, outcome), count in chain.router("small").node.metrics.shadows.items()}


def samples(chain: Chain) -> list[CalibrationSample]:
    node = chain.router("small").node
    report = node.window.report(node.now(), 60, window_end=0, plan_id="", policy_revision=1)
    return [sample for sample in report.samples if sample.next is not None]


@pytest.mark.parametrize("path", ["short way", "whole answer", "held stream", "opened stream"])
async def test_an_accepted_answer_is_compared_with_the_next_stages(tmp_path: Path, path: str) -> None:
    streaming = StreamingPolicy(mode="Gate", gate_tokens=2) if path == "opened stream" else StreamingPolicy()
    body = chat(stream="stream" in path, tools=[{"type": "function"}] if path == "whole answer" else None)
    async with chain_of(tmp_path, *stages(), shadow=ALL, streaming=streaming, sample_rate=0.0) as chain:
        reply = await http(chain.client("small"), CHAT, body)
        assert reply.headers["x-cascadia-path"] == "small"
        await eventually(lambda: outcomes(chain) == {"compared": 1}, "it is compared")
        (sample,) = samples(chain)
        assert (sample.stage, sample.input_tokens, sample.output_tokens) == ("small", 7, 3)
        assert sample.inclusion_probability == 1.0
        assert sample.next is not None
        assert (sample.next.stage, sample.next.output_tokens) == ("large", 4)
        assert sample.score == pytest.approx(0.951229, abs=1e-6)
        assert sample.next.score == pytest.approx(0.818731, abs=1e-6)
        assert sample.next.agreement == pytest.approx(2 * 3 / 7)  # word0 word1 word2 of word0 … word3
        asked = chain.engine("large").seen[0].json
        assert "stream" not in asked
        assert asked["logprobs"] is True


async def test_nobody_else_sees_it(tmp_path: Path) -> None:
    """Neither the client, nor its waiting time, nor the workload report; the next stage counts it apart."""
    gate = asyncio.Event()

    async def slow(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer()(engine, seen, writer)

    async with chain_of(tmp_path, *stages(slow), shadow=ALL) as chain:
        reply = await http(chain.client("small"), CHAT, chat())
        assert reply.json["cascadia"]["path"] == "small"
        await eventually(lambda: chain.engine("large").seen, "the next stage is asked")
        small, large = chain.router("small").node, chain.router("large").node
        assert not small.exchanges, "the request is over"
        gate.set()
        await eventually(lambda: outcomes(chain) == {"compared": 1}, "it is compared")
        small.settlement.settle()
        large.settlement.settle()
        assert dict(small.metrics.requests) == {("client", "small", "answered"): 1}
        assert dict(large.metrics.requests) == {("shadow", "large", "answered"): 1}
        assert not small.metrics.escalations
        report = large.window.report(large.now(), 60, window_end=0, plan_id="", policy_revision=1, stage="large")
        assert report.stage is not None
        assert (report.arrivals, report.stage.accepted, report.stage.output_tokens.count()) == (0, 0, 0)
        assert all(replica.outstanding == 0 for _, replica in small.replicas.all())


async def test_few_run_at_once_and_none_is_queued(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *stages(hang), shadow=ShadowPolicy(share=1.0, max_concurrent=2)) as chain:
        for _ in range(5):
            assert (await http(chain.client("small"), CHAT, chat())).status == 200
        assert outcomes(chain) == {"dropped": 3}
        assert chain.router("small").node.shadows.running == 2


async def test_a_drain_does_not_wait_for_it(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *stages(hang), shadow=ALL) as chain:
        await http(chain.client("small"), CHAT, chat())
        await eventually(lambda: chain.engine("large").seen, "the next stage is asked")
        assert (await http(chain.admin("small"), "/drain")).status == 200
        await eventually(lambda: chain.engine("large").disconnects, "it is dropped")
        assert outcomes(chain) == {"dropped": 1}


async def test_a_busy_next_stage_refuses_it(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *stages(), shadow=ALL) as chain:
        chain.put(chain.make_policy(2, shadow=ALL, max_in_flight=1), only=[chain.router("large")])
        chain.put(chain.make_policy(2, shadow=ALL), only=[chain.router("small")])
        chain.engine("large").behaviour = hang
        busy = asyncio.create_task(http(chain.client("large"), CHAT, chat(model="large")))
        await eventually(lambda: chain.engine("large").seen, "the next stage is busy")
        assert (await http(chain.client("small"), CHAT, chat())).status == 200
        await eventually(lambda: outcomes(chain) == {"dropped": 1}, "it is refused")
        assert not samples(chain)
        busy.cancel()


async def test_a_failure_is_counted_and_costs_nothing(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *stages(reset), shadow=ALL) as chain:
        assert (await http(chain.client("small"), CHAT, chat())).status == 200
        await eventually(lambda: sum(outcomes(chain).values()) == 1, "it has failed")
        assert not samples(chain)
        assert chain.router("small").node.metrics.requests.total() <= 1


async def test_rejected_pinned_and_bounded_requests_are_not_compared(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *stages(threshold=0.99), shadow=ALL) as chain:
        assert (await http(chain.client("small"), CHAT, chat())).headers["x-cascadia-path"] == "small>large"
        await http(chain.client("small"), CHAT, chat(model="small"))
        await http(chain.client("small"), CHAT, chat(), headers={"x-cascadia-max-stage": "small"})
        assert not outcomes(chain)


async def test_only_the_share_is_drawn(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *stages(), shadow=ShadowPolicy(share=0.3, max_concurrent=100)) as chain:
        for _ in range(60):
            await http(chain.client("small"), CHAT, chat())
        count = chain.router("small").node.metrics.shadows.total()
        assert 5 <= count <= 35  # within 4 standard deviations of 18
        await eventually(lambda: not chain.router("small").node.shadows.running, "all are over")
        assert {sample.inclusion_probability for sample in samples(chain)} == {0.3}
