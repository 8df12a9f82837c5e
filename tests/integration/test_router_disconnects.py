"""A client that leaves stops the engine's work within a second: wherever its request is, whatever is being held.

Every answer here would take minutes, so an engine that is idle again has been told. When the client leaves, all of
the routers' timers have been stopped: what stops the engine is the closing itself, passed on from connection to
connection. Service time is slow here, so that a second of it is long for the slowest machine.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.clock import ScaledClock
from cascadia_api.policy import OverloadPolicy, StreamingPolicy
from tests.support.engine_process import EngineProcess, engine_process
from tests.support.router_chain import Chain, StageOf, chain_of, eventually, http
from tests.support.scripted_engine import ScriptedEngine, answer

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
SCALE = 0.1
"""Service seconds per wall second."""
UNSURE = answer(logprob=-1.0)
BUFFER = StreamingPolicy()
LATE_GATE = StreamingPolicy(mode="Gate", gate_tokens=4096)
EARLY_GATE = StreamingPolicy(mode="Gate", gate_tokens=2)
LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tell me a very long story."}],
    "simulation": {"outputTokens": 30_000},
    "max_tokens": 30_000,
}
LONG_RESPONSE: dict[str, Any] = {
    "input": "Tell me a very long story.", "simulation": {"outputTokens": 30_000}, "max_output_tokens": 30_000,
}  # fmt: skip


@dataclass
class RunningEngine:
    """A simulated engine's process in the place of a scripted engine."""

    process: EngineProcess

    @property
    def address(self) -> str:
        return self.process.address

    async def start(self) -> None:
        """It runs."""

    async def stop(self) -> None:
        """Its context manager ends it."""

    async def becomes(self, metric: str, value: float) -> None:
        await asyncio.to_thread(self.process.wait_for_metric, metric, value)


@contextlib.asynccontextmanager
async def cascade(
    folder: Path, streaming: StreamingPolicy, *, engine_first: bool, threshold: float = 0.0, **policy: Any
) -> AsyncIterator[tuple[Chain, RunningEngine]]:
    """Two stages, a simulated engine at the first or at the last, and an entry router."""
    with engine_process(folder, clockScale=SCALE, servedModelName="served") as process:
        engine: Any = RunningEngine(process)
        stages = (
            StageOf("small", threshold if engine_first else 0.8, [engine if engine_first else ScriptedEngine("small")]),
            StageOf("large", None, [ScriptedEngine("large") if engine_first else engine]),
        )
        if not engine_first:
            stages[0].engines[0].behaviour = UNSURE
        async with chain_of(folder, *stages, clock_scale=SCALE, streaming=streaming, **policy) as chain:
            await chain.add_entry()
            yield chain, engine


async def ask(chain: Chain, path: str, *, stream: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Ask at the entry, on a connection of its own."""
    host, _, port = chain.entries[0].addresses["client"].rpartition(":")
    body = json.dumps({"model": "chat", "stream": stream, **(LONG_RESPONSE if path == RESPONSES else LONG)}).encode()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST %s HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n%s" % (path.encode(), len(body), body))
    return reader, writer


async def leave_when(
    chain: Chain, engine: RunningEngine, *, stream: bool, after: bytes = b"", path: str = CHAT
) -> None:
    """Ask at the entry, leave once the engine works (and so much has come), and see the engine idle."""
    cancelled = engine.process.metrics()["cascadia_sim_cancelled_requests_total"]
    reader, writer = await ask(chain, path, stream=stream)
    await engine.becomes("sglang:num_running_reqs", 1)
    async with asyncio.timeout(60):
        seen = b""
        while after not in seen:
            seen += await reader.read(4096)
    chain.stop_timers()
    clock = ScaledClock(scale=SCALE)
    left = clock.monotonic()
    writer.close()
    await engine.becomes("sglang:num_running_reqs", 0)
    assert clock.monotonic() - left < 1.0
    assert engine.process.metrics()["cascadia_sim_cancelled_requests_total"] == cancelled + 1
    await eventually(lambda: not any(router.node.exchanges for router in chain.all()), "no router holds anything")
    (outcome,) = {outcome for _, _, outcome in chain.entries[0].node.metrics.requests}
    assert outcome == "disconnected"


@pytest.mark.parametrize(
    ("streaming", "stream", "after"),
    [
        pytest.param(BUFFER, False, b"", id="whole-answer"),
        pytest.param(BUFFER, True, b"", id="held-stream"),
        pytest.param(LATE_GATE, True, b"", id="held-beginning"),
        pytest.param(EARLY_GATE, True, b"simulated", id="opened-stream"),
    ],
)
async def test_at_a_stage_that_may_reject(
    tmp_path: Path, streaming: StreamingPolicy, stream: bool, after: bytes
) -> None:
    async with cascade(tmp_path, streaming, engine_first=True) as (chain, engine):
        await leave_when(chain, engine, stream=stream, after=after)


@pytest.mark.parametrize(
    ("path", "stream", "after"),
    [
        pytest.param(CHAT, False, b"", id="whole"),
        pytest.param(CHAT, True, b"simulated", id="stream"),
        pytest.param(RESPONSES, False, b"", id="response"),
        pytest.param(RESPONSES, True, b"simulated", id="response-stream"),
    ],
)
async def test_at_the_last_stage_after_an_escalation(tmp_path: Path, path: str, stream: bool, after: bytes) -> None:
    async with cascade(tmp_path, BUFFER, engine_first=False) as (chain, engine):
        await leave_when(chain, engine, stream=stream, after=after, path=path)


async def test_while_it_waits_for_room(tmp_path: Path) -> None:
    queue = OverloadPolicy(max_queued=2)
    async with cascade(tmp_path, BUFFER, engine_first=True, max_in_flight=1, overload=queue) as (chain, engine):
        room = chain.entries[0].node.room
        assert room is not None
        _, working = await ask(chain, CHAT, stream=False)
        await engine.becomes("sglang:num_running_reqs", 1)
        _, waiting = await ask(chain, CHAT, stream=False)
        await eventually(lambda: len(room.waiting) == 1, "the second request waits")
        chain.stop_timers()
        waiting.close()
        await eventually(lambda: not room.waiting, "its place is free")
        working.close()
        await engine.becomes("sglang:num_running_reqs", 0)
        assert engine.process.metrics()["cascadia_sim_cancelled_requests_total"] == 1, "the second was never asked"


async def test_a_rejected_beginning_frees_the_engines_place(tmp_path: Path) -> None:
    """No client leaves: the answer's first tokens were not good enough, and the rest is never generated."""
    async with cascade(tmp_path, EARLY_GATE, engine_first=True, threshold=1.0) as (chain, engine):
        reply = await http(chain.entries[0].addresses["client"], CHAT, {"model": "chat", "stream": True, **LONG})
        assert reply.headers["x-cascadia-path"] == "small>large"
        await engine.becomes("sglang:num_running_reqs", 0)
        metrics = engine.process.metrics()
        assert metrics["cascadia_sim_cancelled_requests_total"] == 1
        assert metrics["sglang:generation_tokens_total"] == 0, "tokens of finished answers"


async def test_who_has_sent_the_next_request_already_is_noticed(tmp_path: Path) -> None:
    """Nothing is read from it meanwhile, so no event tells: the sweep looks for it."""
    async with cascade(tmp_path, BUFFER, engine_first=True) as (chain, engine):
        (entry,) = chain.entries
        _, writer = await ask(chain, CHAT, stream=False)
        await engine.becomes("sglang:num_running_reqs", 1)
        writer.write(b"GET /v1/models HTTP/1.1\r\nhost: t\r\n\r\n")
        await eventually(
            lambda: any(held._paused for held in entry._serving[0].connections), "the next request has arrived"
        )
        writer.close()
        await engine.becomes("sglang:num_running_reqs", 0)
        assert {outcome for _, _, outcome in entry.node.metrics.requests} == {"disconnected"}
