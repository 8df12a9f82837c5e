"""Clients that mean harm, on real sockets: slow, huge, many, or deaf. Memory stays bounded, others are served."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from cascadia_api.policy import RouterPolicy, StagePolicy, encode_policy
from cascadia_router.http1_request import Limits
from cascadia_router.server import Router
from tests.support.router_chain import Chain, StageOf, chain_of, eventually, http, read_reply
from tests.support.scripted_engine import ScriptedEngine, answer, status

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "chat", "messages": []}).encode()
HEAD = f"POST {CHAT} HTTP/1.1\r\nhost: test\r\n".encode()
HUNDRED_MB = 100 * 1024 * 1024


@contextlib.asynccontextmanager
async def connection(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield reader, writer
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def limited(
    folder: Path, limits: Limits, engine: ScriptedEngine | None = None
) -> AsyncIterator[tuple[Chain, Router]]:
    """A cascade of one stage, and an entry router with these limits."""
    async with chain_of(folder, StageOf("only", None, [engine or ScriptedEngine("only", answer())])) as chain:
        router = Router(chain.config(None, None, None), limits)
        await router.start()
        chain.entries.append(router)
        chain.put(chain.make_policy(2))
        yield chain, router


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /",
        HEAD + b"x: ",
        HEAD + b"content-length: 1000\r\n\r\n12",
        HEAD + b"transfer-encoding: chunked\r\n\r\n1388\r\nhe",
    ],
)
async def test_slow_loris(tmp_path: Path, sent: bytes) -> None:
    """A byte now and then keeps no connection: the whole request has one deadline, its head a shorter one."""
    limits = Limits(head_seconds=0.5, receive_seconds=1.0, idle_seconds=0.5, linger_seconds=0.2)
    async with limited(tmp_path, limits) as (_, router), connection(router.addresses["client"]) as (reader, writer):
        writer.write(sent)

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while sent and not writer.is_closing():
                    await asyncio.sleep(0.1)
                    writer.write(b"0")

        dripping = asyncio.create_task(drip())
        try:
            said = await reader.read()
        except ConnectionResetError:  # the last drips met a closed socket
            said = b" 408 "
        dripping.cancel()
        assert (b" 408 " in said) == bool(sent)
        assert (await http(router.addresses["client"], CHAT, BODY)).status == 200


async def test_a_client_that_never_reads_is_dropped(tmp_path: Path) -> None:
    """Neither a large answer nor the answers to many requests pile up for long, or beyond a bound."""

    async def large(engine: ScriptedEngine, seen: object, writer: asyncio.StreamWriter) -> None:
        body = json.dumps({"choices": [{"index": 0, "text": "x" * 6_000_000}]}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))

    engine = ScriptedEngine("only", large)
    async with limited(tmp_path, Limits(send_seconds=0.5, idle_seconds=0.5), engine) as (_, router):
        listener = router._serving[0]
        async with connection(router.addresses["client"]) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(HEAD + b"content-length: %d\r\n\r\n%s" % (len(BODY), BODY))
            await eventually(lambda: engine.seen, "the engine is asked")
            await eventually(lambda: not listener.connections, "the deaf client is dropped", 20)

        async with connection(router.addresses["client"]) as (_, writer):
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await eventually(lambda: listener.connections, "the client is there")
            served = next(iter(listener.connections))
            most = 0
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(30):
                    while listener.connections:
                        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n" * 30)
                        await asyncio.wait({asyncio.ensure_future(writer.drain())}, timeout=0.05)
                        most = max(most, served._transport.get_write_buffer_size())
            assert most < 2_000_000
        assert (await http(router.addresses["client"], "/v1/models")).status == 200


async def test_more_requests_in_a_row_than_may_wait(tmp_path: Path) -> None:
    limits = Limits(pipelined=4, linger_seconds=0.2)
    async with limited(tmp_path, limits) as (_, router), connection(router.addresses["client"]) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n" * 500)
        statuses = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                statuses.append((await read_reply(reader)).status)
        assert statuses == [200] * 4 + [429]


async def test_more_connections_than_may_be(tmp_path: Path) -> None:
    async with limited(tmp_path, Limits(connections=3)) as (_, router):
        address = router.addresses["client"]
        async with connection(address), connection(address), connection(address):
            await eventually(lambda: len(router._serving[0].connections) == 3, "three connections")
            async with connection(address) as (reader, _):
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read() == b""
        await eventually(lambda: not router._serving[0].connections, "they are gone")
        assert (await http(address, CHAT, BODY)).status == 200


async def test_ten_thousand_headers(tmp_path: Path) -> None:
    async with limited(tmp_path, Limits()) as (_, router):
        for line in (b"x: 1\r\n", b"x-%d: 1\r\n"):
            async with connection(router.addresses["client"]) as (reader, writer):
                lines = b"".join(line % number if b"%" in line else line for number in range(10_000))
                writer.write(HEAD + lines + b"content-length: 0\r\n\r\n")
                assert (await read_reply(reader)).status == 431
        async with connection(router.addresses["client"]) as (reader, writer):  # as trailers
            writer.write(HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: 1\r\n" * 10_000 + b"\r\n")
            assert (await read_reply(reader)).status == 431


@pytest.mark.parametrize("code", [204, 304, 307, 418, 499, 599, 600, 999])
async def test_statuses_that_no_answer_to_a_completion_has(tmp_path: Path, code: int) -> None:
    """An engine's 4xx is the client's; anything else that is not 200 is the engine's failure."""
    engine = ScriptedEngine("only", status(code, b"" if code in {204, 304} else b'{"error": {}}'))
    async with chain_of(tmp_path, StageOf("only", None, [engine])) as chain:
        reply = await http(chain.client("only"), CHAT, BODY)
        assert reply.status == (code if 400 <= code < 500 else 502)


async def test_hundred_megabytes_at_once_and_in_pieces(tmp_path: Path) -> None:
    """Eight clients send 100 MB each, announced or in chunks: all are refused, and the process stays small."""
    stage = StagePolicy(name="only", served_model_name="m")
    (tmp_path / "policy.json").write_bytes(
        encode_policy(RouterPolicy(cascade="chat", policy_revision=1, plan_id="p", stages=[stage]))
    )
    (tmp_path / "secret").write_text("a secret between routers")
    config = {
        "client": "127.0.0.1:0",
        "admin": "127.0.0.1:0",
        "policyFile": str(tmp_path / "policy.json"),
        "peerSecretFile": str(tmp_path / "secret"),
    }
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cascadia_router", "--config", str(tmp_path / "config.json")),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stderr is not None
        client = ""
        while not client:
            client = json.loads(await asyncio.wait_for(process.stderr.readline(), 30)).get("client", "")
        before = _peak_mb(process.pid)

        async def flood(*, chunked: bool) -> int:
            async with connection(client) as (reader, writer):
                framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % HUNDRED_MB
                writer.write(HEAD + framing + b"\r\n\r\n")
                piece = b"a" * 262144

                async def send() -> None:
                    with contextlib.suppress(ConnectionError):
                        for _ in range(HUNDRED_MB // len(piece)):
                            writer.write(b"40000\r\n" + piece + b"\r\n" if chunked else piece)
                            await writer.drain()

                sending = asyncio.create_task(send())
                try:
                    return (await read_reply(reader)).status
                finally:
                    sending.cancel()

        statuses = await asyncio.gather(*(flood(chunked=bool(number % 2)) for number in range(8)))
        assert set(statuses) <= {413, 429}
        assert _peak_mb(process.pid) - before < 120, "eight bodies of 8 MB may be on their way"
        assert (await http(client, "/healthz")).status == 200
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
