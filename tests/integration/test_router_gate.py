"""Streams decided on by their first tokens: passed on, or dropped and escalated, or asked for again."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cascadia_api.policy import StreamingPolicy
from cascadia_router.balancing import Targets
from tests.support.router_chain import Chain, Reply, StageOf, chain_of, eventually, http
from tests.support.scripted_engine import ScriptedEngine, answer, reset, status, stream_then
from tests.support.streams import CHAT, chat, text, two_stages

GATE = StreamingPolicy(mode="Gate", gate_tokens=3)


def outcomes(chain: Chain, stage: str = "small") -> dict[tuple[str, str, str], int]:
    node = chain.router(stage).node
    node.settlement.settle()
    return dict(node.metrics.requests)


async def test_an_accepted_beginning_reaches_the_client_while_the_engine_goes_on(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with chain_of(
        tmp_path, *two_stages(stream_then("end", pieces=3, gate=gate)), streaming=GATE, sample_rate=1.0
    ) as chain:
        host, _, port = chain.client("small").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"model": "chat", "stream": true, "messages": []}'
        writer.write(b"POST %s HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body))
        async with asyncio.timeout(10):
            seen = b""
            while b"small2" not in seen:
                seen += await reader.read(4096)
            assert b"x-cascadia-stage: small" in seen
            assert b"x-cascadia-score: 0.95" in seen
            gate.set()
            while b"[DONE]" not in seen:
                seen += await reader.read(4096)
        writer.close()
        await writer.wait_closed()
        assert b"small3" in seen
        assert b'"logprob"' not in seen, "the client asked for none"
        assert b'"cascadia":{"stage":"small","score":0.95' in seen
        assert b'"prompt_tokens"' not in seen
        await eventually(lambda: not chain.router("small").node.exchanges, "it is over")
        assert outcomes(chain) == {("client", "small", "answered"): 1}
        piece = chain.router("small").node.window.newest
        assert (piece.accepted, sum(piece.scores.counts), piece.output_tokens.sum) == (1, 1, 4)


async def test_usage_and_log_probabilities_that_the_client_asked_for_come(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(answer(tokens=5)), streaming=GATE) as chain:
        reply = await http(chain.client("small"), CHAT, chat(stream_options={"include_usage": True}, logprobs=True))
        *chunks, last, done = reply.events
        assert done == "[DONE]"
        assert last["usage"]["completion_tokens"] == 5
        assert last["cascadia"]["stage"] == "small"
        assert all(event["choices"][0]["logprobs"]["content"] for event in chunks)


async def test_a_rejected_beginning_stops_the_engine_and_escalates(tmp_path: Path) -> None:
    unsure = stream_then("hang", pieces=3, logprob=-1.0)
    async with chain_of(tmp_path, *two_stages(unsure), streaming=GATE, sample_rate=1.0) as chain:
        reply = await http(chain.client("small"), CHAT, chat())
        assert text(reply) == "large0 large1 large2 "
        assert reply.headers["x-cascadia-path"] == "small>large"
        small = chain.engine("small")
        await eventually(lambda: small.disconnects, "the engine's connection is closed")
        node = chain.router("small").node
        assert node.metrics.escalations["small", "large", "score"] == 1
        report = node.window.report(node.now(), 60, window_end=0, plan_id="", policy_revision=1, stage="small")
        assert report.stage is not None
        assert (report.stage.escalated, report.stage.scores.count()) == (1, 1)
        assert [round(sample.score, 3) for sample in report.samples] == [0.368]


@pytest.mark.parametrize(("logprob", "stage"), [(-0.05, "small"), (-1.0, "large")])
@pytest.mark.parametrize("stream", [True, False])
async def test_short_answers_and_answers_that_come_whole(
    tmp_path: Path, logprob: float, stage: str, stream: bool
) -> None:
    """Decided at their end, by the first tokens' score: thresholds are of that score."""
    async with chain_of(tmp_path, *two_stages(answer(logprob, tokens=2)), streaming=GATE) as chain:
        reply = await http(chain.client("small"), CHAT, chat(stream=stream))
        assert reply.headers["x-cascadia-stage"] == stage


async def test_whole_answers_are_scored_by_their_first_tokens(tmp_path: Path) -> None:
    """So that one threshold holds for both: the rest of this answer is unsure."""

    async def sure_then_unsure(engine: ScriptedEngine, seen: Any, writer: asyncio.StreamWriter) -> None:
        content = [{"token": "t", "logprob": value} for value in (-0.1, -0.1, -0.1, -9.0, -9.0)]
        body = {"choices": [{"index": 0, "message": {"content": "t"}, "logprobs": {"content": content}}]}
        payload = msgspec.json.encode(body)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(payload), payload))

    async with chain_of(tmp_path, *two_stages(sure_then_unsure), streaming=GATE) as chain:
        reply = await http(chain.client("small"), CHAT, chat(stream=False))
        assert reply.headers["x-cascadia-stage"] == "small"
        assert float(reply.headers["x-cascadia-score"]) == pytest.approx(0.904837, abs=1e-6)


@pytest.mark.parametrize("fault", [status(500), reset])
async def test_a_dropped_answer_is_asked_for_again_if_no_later_stage_can_answer(tmp_path: Path, fault: Any) -> None:
    """Fail open: an answer under its threshold is better than none, but it is not at hand any more."""
    async with chain_of(tmp_path, *two_stages(answer(-1.0, tokens=5), fault), streaming=GATE) as chain:
        for engine in chain.stages[1].engines:
            engine.behaviour = fault
        reply = await http(chain.client("small"), CHAT, chat())
        assert reply.status == 200
        assert text(reply) == "small0 small1 small2 small3 small4 "
        assert reply.headers["x-cascadia-path"] == "small"
        assert len(chain.engine("small").seen) == 2
        assert outcomes(chain) == {("client", "small", "fallback"): 1}


async def test_without_a_later_replica_nothing_is_dropped(tmp_path: Path) -> None:
    """The last replica goes while the beginning is held: the rest goes on, under its threshold as it is."""
    gate = asyncio.Event()

    async def wait(engine: ScriptedEngine, seen: Any, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer(-1.0, tokens=5)(engine, seen, writer)

    async with chain_of(tmp_path, *two_stages(wait), streaming=GATE) as chain:
        request = asyncio.create_task(http(chain.client("small"), CHAT, chat()))
        await eventually(lambda: chain.engine("small").seen, "the engine is asked")
        for stage in chain.router("small").node.policies.current.stages[1:]:  # type: ignore[union-attr]
            stage.live = Targets()
        gate.set()
        reply = await request
        assert text(reply).startswith("small0")
        assert len(chain.engine("small").seen) == 1
        assert outcomes(chain) == {("client", "small", "fallback"): 1}


async def test_an_answer_that_breaks_off_ends_with_an_error_event(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(stream_then("reset", pieces=4)), streaming=GATE) as chain:
        reply = await http(chain.client("small"), CHAT, chat())
        assert reply.status == 200
        assert text_so_far(reply) == "small0 small1 small2 small3 "
        assert reply.events[-1]["error"]["code"] == "interrupted"
        assert outcomes(chain) == {("client", "", "interrupted"): 1}


async def test_a_beginning_that_breaks_is_asked_elsewhere(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(stream_then("reset", pieces=2)), streaming=GATE) as chain:
        reply = await http(chain.client("small"), CHAT, chat())
        assert text(reply) == "large0 large1 large2 "


def text_so_far(reply: Reply) -> str:
    return "".join(event["choices"][0]["delta"]["content"] for event in reply.events if event.get("choices"))


async def test_gates_along_a_chain(tmp_path: Path) -> None:
    """Dropped at the first stage, opened at the second: its client, two routers away, reads along."""
    gate = asyncio.Event()
    middle = stream_then("end", pieces=3, gate=gate)
    stages = (
        StageOf("small", 0.8, [ScriptedEngine("small", stream_then("hang", pieces=3, logprob=-1.0))]),
        StageOf("medium", 0.8, [ScriptedEngine("medium", middle)]),
        StageOf("large", None, [ScriptedEngine("large")]),
    )
    async with chain_of(tmp_path, *stages, streaming=GATE) as chain:
        host, _, port = (await chain.add_entry()).addresses["client"].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"model": "chat", "stream": true, "messages": []}'
        writer.write(b"POST %s HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body))
        async with asyncio.timeout(10):
            seen = b""
            while b"medium2" not in seen:
                seen += await reader.read(4096)
            assert b"x-cascadia-path: small>medium" in seen
            assert not gate.is_set()
            gate.set()
            while b"[DONE]" not in seen:
                seen += await reader.read(4096)
        writer.close()
        await writer.wait_closed()
        assert b'"path":"small>medium"' in seen
        assert not chain.engine("large").seen
        await eventually(lambda: chain.engine("small").disconnects == 1, "the first engine is stopped")


@pytest.mark.parametrize(("logprob", "stage"), [(-0.05, "small"), (-1.0, "large")])
async def test_streams_of_the_responses_api_are_gated_too(tmp_path: Path, logprob: float, stage: str) -> None:
    async with chain_of(tmp_path, *two_stages(answer(logprob, tokens=6)), streaming=GATE) as chain:
        reply = await http(chain.client("small"), "/v1/responses", {"model": "chat", "stream": True, "input": "hello"})
        said = "".join(event["delta"] for event in reply.events if event["type"] == "response.output_text.delta")
        assert said.startswith(f"{stage}0 {stage}1 ")
        assert reply.events[-1]["type"] == "response.completed"
