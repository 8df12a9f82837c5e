"""Peers that accept connections and never answer: stopped processes, lost nodes, partitions."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cascadia_api.policy import encode_policy
from cascadia_router.peer_watch import PeerWatch
from tests.support.router_chain import Chain, StageOf, chain_of, eventually, http
from tests.support.scripted_engine import ScriptedEngine, answer, hang

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in operation, but sooner."""
    monkeypatch.setattr(PeerWatch, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(PeerWatch, "SILENCE_SECONDS", 0.2)
    monkeypatch.setattr(PeerWatch, "PROBE_SECONDS", 1.0)


@contextlib.asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """An address that accepts connections and says nothing."""
    held: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in held:
            writer.transport.abort()


def point(chain: Chain, revision: int, stage: int, address: str, replica: int = 0) -> None:
    """Let every router look for a replica elsewhere."""
    policy = chain.make_policy(revision)
    endpoints = policy.stages[stage].endpoints
    endpoints[replica] = msgspec.structs.replace(endpoints[replica], address=address)
    chain.put(policy)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("stream", [False, True])
async def test_another_replica_answers_for_a_silent_one_which_is_left_alone(tmp_path: Path, stream: bool) -> None:
    small = StageOf("small", None, [ScriptedEngine("small-a"), ScriptedEngine("small-b")], weights=[1e9, 1.0])
    async with chain_of(tmp_path, small) as chain, black_hole() as address:
        entry = await chain.add_entry()
        client = entry.addresses["client"]
        policy = chain.make_policy(2)
        policy.stages[0].endpoints[0] = msgspec.structs.replace(policy.stages[0].endpoints[0], address=address)
        chain.put(policy)
        reply = await http(client, CHAT, BODY | {"stream": stream})
        assert reply.status == 200
        assert b"small-b" in reply.body
        metrics = entry.node.metrics
        assert metrics.faults["small", "silent"] == 1
        silent = next(replica for _, replica in entry.node.replicas.all() if replica.upstream.address == address)
        assert silent.breaker.silent
        for _ in range(3):  # nobody waits for it again
            assert (await http(client, CHAT, BODY)).status == 200
        assert metrics.faults["small", "silent"] == 1


@pytest.mark.usefixtures("impatient")
async def test_the_next_stage_answers_for_a_silent_one(tmp_path: Path) -> None:
    stages = StageOf("small", 0.8, [ScriptedEngine("small")]), StageOf("large", None, [ScriptedEngine("large")])
    async with chain_of(tmp_path, *stages) as chain, black_hole() as address:
        point(chain, 2, 0, address)
        reply = await http(chain.client("large"), CHAT, BODY)
        assert (reply.status, reply.headers["x-cascadia-path"]) == (200, "large")


@pytest.mark.usefixtures("impatient")
async def test_a_slow_answer_is_no_silence(tmp_path: Path) -> None:
    """The engine takes its time; its router says that it lives."""
    gate = asyncio.Event()

    async def wait(engine: ScriptedEngine, seen: Any, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await answer()(engine, seen, writer)

    async with chain_of(tmp_path, StageOf("small", None, [ScriptedEngine("small", wait)])) as chain:
        entry = await chain.add_entry()
        request = asyncio.create_task(http(entry.addresses["client"], CHAT, BODY))
        (replica,) = [replica for _, replica in entry.node.replicas.all()]
        await eventually(lambda: replica.outstanding, "it is asked")
        heard = replica.upstream.heard
        await eventually(lambda: replica.upstream.heard >= heard + 3, "it has said three times that it lives")
        gate.set()
        assert (await request).status == 200
        assert not entry.node.metrics.faults


async def test_a_stopped_router_is_passed_by_and_comes_back(tmp_path: Path) -> None:
    """SIGSTOP: the kernel still accepts connections for it. With the real time-outs."""
    small = StageOf("small", None, [ScriptedEngine("small-a"), ScriptedEngine("small-b")])
    async with chain_of(tmp_path, small) as chain:
        (tmp_path / "policy.json").write_bytes(encode_policy(chain.make_policy(1)))
        config = msgspec.json.encode(chain.config("small", "small-0", chain.engine("small").address))
        (tmp_path / "config.json").write_bytes(config)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cascadia_router", "--config", str(tmp_path / "config.json"),
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            async with asyncio.timeout(30):
                line: dict[str, Any] = {}
                while line.get("event") != "listening":
                    line = msgspec.json.decode(await process.stderr.readline())
            entry = await chain.add_entry()
            point(chain, 2, 0, line["peers"])
            os.kill(process.pid, signal.SIGSTOP)
            replies = await asyncio.gather(*(http(entry.addresses["client"], CHAT, BODY) for _ in range(8)))
            assert {reply.status for reply in replies} == {200}
            stopped = next(r for _, r in entry.node.replicas.all() if r.upstream.address == line["peers"])
            await eventually(lambda: stopped.breaker.silent, "it is known to be silent")
            os.kill(process.pid, signal.SIGCONT)
            await eventually(lambda: not stopped.breaker.silent, "it is known to live")
        finally:
            process.kill()
            await process.communicate()


async def test_a_request_that_hangs_at_its_own_engine_is_not_repeated(tmp_path: Path) -> None:
    """A router is watched, not what it waits for: an engine may think as long as the deadline lets it."""
    async with chain_of(
        tmp_path, StageOf("small", None, [ScriptedEngine("small", hang)]), clock_scale=20.0, request_timeout_seconds=20
    ) as chain:
        assert (await http(chain.client("small"), CHAT, BODY)).status == 504
        assert len(chain.engine("small").seen) == 1
