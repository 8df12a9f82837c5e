"""Streamed answers: held, replayed, straight through, interrupted; and what the official client makes of them."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import openai
import pytest

from cascadia_api.policy import StreamingPolicy
from tests.support.router_chain import chain_of, eventually, http
from tests.support.scripted_engine import ScriptedEngine, answer, hang, reset, status, stream_then
from tests.support.streams import CHAT, chat, text, two_stages

UNSURE = answer(logprob=-1.0)
SURE = answer(logprob=-0.05)


async def test_a_held_stream_is_replayed_with_its_decision(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages()) as chain:
        reply = await http(chain.client("small"), CHAT, chat())
        assert reply.headers["content-type"] == "text/event-stream"
        assert reply.headers["x-cascadia-stage"] == "small"
        assert float(reply.headers["x-cascadia-score"]) > 0.9
        assert text(reply) == "small0 small1 small2 "
        assert reply.events[-1] == "[DONE]"
        last = reply.events[-2]
        assert (last["id"], last["object"], last["choices"]) == ("cmpl-1", "chat.completion.chunk", [])
        assert last["cascadia"]["stage"] == "small"
        assert "usage" not in last
        assert all(event["choices"][0]["logprobs"] is None for event in reply.events[:-2])
        asked = chain.engine("small").seen[0].json
        assert asked["logprobs"] is True
        assert asked["stream_options"] == {"include_usage": True}
        node = chain.router("small").node
        node.settlement.settle()
        assert node.window.newest.output_tokens.sum == 3


@pytest.mark.parametrize("first", [SURE, UNSURE])
async def test_usage_that_the_client_asked_for_carries_the_decision(tmp_path: Path, first: Any) -> None:
    async with chain_of(tmp_path, *two_stages(first)) as chain:
        reply = await http(chain.client("small"), CHAT, chat(stream_options={"include_usage": True}, logprobs=True))
        last = reply.events[-2]
        assert last["usage"]["completion_tokens"] == 3
        assert last["cascadia"]["stage"] == ("small" if first is SURE else "large")
        assert sum(1 for event in reply.events[:-1] if not event["choices"]) == 1
        if first is SURE:
            assert all(event["choices"][0]["logprobs"]["content"] for event in reply.events[:-2])


async def test_the_last_stage_streams_chunk_by_chunk(tmp_path: Path) -> None:
    """The first events reach the client while the engine still holds back the rest."""
    gate = asyncio.Event()
    async with chain_of(tmp_path, *two_stages(UNSURE, stream_then("reset", gate=gate))) as chain:
        host, _, port = chain.client("small").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"model": "chat", "stream": true, "messages": []}'
        writer.write(b"POST %s HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body))
        async with asyncio.timeout(10):
            seen = b""
            while b"large1" not in seen:
                seen += await reader.read(4096)
            assert not gate.is_set()
            gate.set()
            rest = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert b'"code":"interrupted"' in rest
        assert b"[DONE]" not in rest
        assert chain.router("small").node.window.slice(0).interrupted == 1
        assert chain.router("large").node.metrics.requests["peer", "", "interrupted"] == 1


async def test_a_straight_stream_that_ends_without_done_is_an_error(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(UNSURE, stream_then("stop"))) as chain:
        reply = await http(chain.client("small"), CHAT, chat())
        assert reply.status == 200
        assert reply.events[-1]["error"]["code"] == "interrupted"


@pytest.mark.parametrize("fault", [stream_then("stop"), stream_then("reset"), reset, status(500)])
async def test_a_held_stream_that_breaks_is_asked_elsewhere(tmp_path: Path, fault: Any) -> None:
    """Nothing of it has reached the client yet: fail open."""
    async with chain_of(tmp_path, *two_stages(fault)) as chain:
        reply = await http(chain.client("small"), CHAT, chat())
        assert text(reply) == "large0 large1 large2 "
        assert reply.headers["x-cascadia-path"] == "large"


async def test_keep_alive_comments_and_the_decision_in_the_last_chunk(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def slow(engine: ScriptedEngine, seen: Any, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await UNSURE(engine, seen, writer)

    streaming = StreamingPolicy(keep_alive_seconds=1.0)
    async with chain_of(tmp_path, *two_stages(slow), clock_scale=20.0, streaming=streaming) as chain:
        for address in (chain.client("small"), chain.client("large")):
            gate.clear()
            request = asyncio.create_task(http(address, CHAT, chat()))
            small = chain.router("small").node
            await eventually(lambda: any(each._reply.committed for each in small.exchanges), "a comment is sent")  # noqa: B023
            gate.set()
            reply = await request
            assert b": keep-alive\n\n" in reply.body
            assert "x-cascadia-stage" not in reply.headers
            assert text(reply) == "large0 large1 large2 "
            assert reply.events[-2]["cascadia"]["path"] == "small>large"
        large = chain.router("large").node
        assert large.window.report(large.now(), 60, window_end=0, plan_id="", policy_revision=1).answered_by == {
            "large": 1
        }


async def test_errors_after_a_comment_are_events(tmp_path: Path) -> None:
    streaming = StreamingPolicy(keep_alive_seconds=1.0)
    stages = two_stages(hang)
    async with chain_of(tmp_path, *stages, clock_scale=20.0, streaming=streaming, request_timeout_seconds=6) as chain:
        reply = await http(chain.client("small"), CHAT, chat())
        assert reply.status == 200
        assert reply.events[-1]["error"]["code"] == "deadline_exceeded"


async def test_a_slow_reader_slows_the_engine(tmp_path: Path) -> None:
    """A client that does not read must not make the router hold a whole answer in memory."""
    sent = 0
    piece = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"' + b"x" * 60_000 + b'"}}]}\n\n'

    async def flood(engine: ScriptedEngine, seen: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(2000):
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            sent += len(piece)
        done = b"data: [DONE]\n\n"
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(done), done))

    async with chain_of(tmp_path, *two_stages(UNSURE, flood)) as chain:
        host, _, port = chain.client("small").rpartition(":")
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # the kernel would grow it to many megabytes
        slow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(slow, (host, int(port)))
        reader, writer = await asyncio.open_connection(sock=slow, limit=65536)
        body = b'{"model": "chat", "stream": true, "messages": []}'
        writer.write(b"POST %s HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body))
        await eventually(
            lambda: all(each._reply.slow for each in chain.router("small").node.exchanges) and sent, "pause"
        )
        before = -1
        while before != sent:  # what the sockets' buffers still take
            before = sent
            await asyncio.sleep(0.1)
        held = [
            each._connection._transport.get_write_buffer_size()
            for stage in ("small", "large")
            for each in chain.router(stage).node.exchanges
        ]
        assert len(held) == 2
        assert max(held) < 16_000_000
        # The kernel's buffers between engine, routers and client may take some 36 MB a hop.
        assert sent < 110_000_000
        async with asyncio.timeout(60):
            received, tail = 0, b""
            while not tail.endswith(b"0\r\n\r\n"):
                data = await reader.read(1 << 20)
                received, tail = received + len(data), (tail + data)[-600:]
        assert received > 120_000_000
        assert b'"path":"small>large"' in tail
        writer.close()
        await writer.wait_closed()


async def test_the_official_client_streams(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(UNSURE)) as chain:
        base = f"http://{chain.client('small')}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
            for behaviour, stage in ((UNSURE, "large"), (SURE, "small")):
                chain.engine("small").behaviour = behaviour
                stream = await client.chat.completions.create(
                    model="chat", messages=[{"role": "user", "content": "hi"}], stream=True
                )
                chunks = [chunk async for chunk in stream]
                said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
                assert said == f"{stage}0 {stage}1 {stage}2 "
                assert chunks[-1].model_extra is not None
                assert chunks[-1].model_extra["cascadia"]["stage"] == stage
            completions = await client.completions.create(model="chat", prompt="once", stream=True)
            pieces = [chunk.choices[0].text async for chunk in completions if chunk.choices]
            assert "".join(pieces) == "small0 small1 small2 "

        def synchronous() -> str:
            with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client:
                chunks = client.chat.completions.create(
                    model="chat", messages=[{"role": "user", "content": "hi"}], stream=True,
                    stream_options={"include_usage": True},
                )  # fmt: skip
                usage = None
                said = ""
                for chunk in chunks:
                    usage = chunk.usage
                    said += (chunk.choices[0].delta.content or "") if chunk.choices else ""
                assert usage is not None
                assert usage.completion_tokens == 3
                return said

        assert await asyncio.to_thread(synchronous) == "small0 small1 small2 "
