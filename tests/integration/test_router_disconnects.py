"""A client that leaves stops real engines: wherever its request is in the chain, whatever is being held.

Every answer here would take minutes, so an engine that is idle again has been told.
"""

import asyncio
import contextlib
import json
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.policy import StreamingPolicy
from tests.support.engine_process import EngineProcess, engine_process
from tests.support.router_chain import Chain, StageOf, chain_of, eventually, http
from tests.support.scripted_engine import ScriptedEngine, answer

CHAT = "/v1/chat/completions"
UNSURE = answer(logprob=-1.0)
BUFFER = StreamingPolicy()
LATE_GATE = StreamingPolicy(mode="Gate", gate_tokens=4096)
EARLY_GATE = StreamingPolicy(mode="Gate", gate_tokens=2)
LONG: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tell me a very long story."}],
    "simulation": {"outputTokens": 30_000},
    "max_tokens": 30_000,
}


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
    folder: Path, streaming: StreamingPolicy, *, engine_first: bool, threshold: float = 0.0
) -> AsyncIterator[tuple[Chain, RunningEngine]]:
    """Two stages, a simulated engine of real speed at the first or at the last, and an entry router."""
    with engine_process(folder, clockScale=1.0, servedModelName="served") as process:
        engine: Any = RunningEngine(process)
        stages = (
            StageOf("small", threshold if engine_first else 0.8, [engine if engine_first else ScriptedEngine("small")]),
            StageOf("large", None, [ScriptedEngine("large") if engine_first else engine]),
        )
        if not engine_first:
            stages[0].engines[0].behaviour = UNSURE
        async with chain_of(folder, *stages, streaming=streaming) as chain:
            await chain.add_entry()
            yield chain, engine


async def leave_when(chain: Chain, engine: RunningEngine, *, stream: bool, after: bytes = b"") -> None:
    """Ask at the entry, leave once the engine works (and so much has come), and see the engine idle."""
    host, _, port = chain.entries[0].addresses["client"].rpartition(":")
    body = json.dumps({"model": "chat", "stream": stream, **LONG}).encode()
    cancelled = engine.process.metrics()["cascadia_sim_cancelled_requests_total"]
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST %s HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body))
    await engine.becomes("sglang:num_running_reqs", 1)
    async with asyncio.timeout(30):
        seen = b""
        while after not in seen:
            seen += await reader.read(4096)
    writer.close()
    await engine.becomes("sglang:num_running_reqs", 0)
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
    ("stream", "after"), [pytest.param(False, b"", id="whole"), pytest.param(True, b"simulated", id="stream")]
)
async def test_at_the_last_stage_after_an_escalation(tmp_path: Path, stream: bool, after: bytes) -> None:
    async with cascade(tmp_path, BUFFER, engine_first=False) as (chain, engine):
        await leave_when(chain, engine, stream=stream, after=after)


async def test_a_rejected_beginning_frees_the_engines_place(tmp_path: Path) -> None:
    """No client leaves: the answer's first tokens were not good enough, and the rest is never generated."""
    async with cascade(tmp_path, EARLY_GATE, engine_first=True, threshold=1.0) as (chain, engine):
        reply = await http(chain.entries[0].addresses["client"], CHAT, {"model": "chat", "stream": True, **LONG})
        assert reply.headers["x-cascadia-path"] == "small>large"
        await engine.becomes("sglang:num_running_reqs", 0)
        metrics = engine.process.metrics()
        assert metrics["cascadia_sim_cancelled_requests_total"] == 1
        assert metrics["sglang:generation_tokens_total"] == 0, "tokens of finished answers"


def llamacpp_metric(address: str, name: str) -> float:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as got:
        lines = got.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"llamacpp:{name} ")).split()[1])


async def processing(address: str, count: int) -> None:
    """Wait until llama.cpp works on so many requests."""
    async with asyncio.timeout(60):
        while await asyncio.to_thread(llamacpp_metric, address, "requests_processing") != count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@dataclass
class Real:
    """A llama.cpp process in the place of a scripted engine."""

    address: str

    async def start(self) -> None:
        """It runs."""

    async def stop(self) -> None:
        """Its context manager ends it."""


@contextlib.asynccontextmanager
async def real_model(folder: Path, threshold: float, **policy: Any) -> AsyncIterator[tuple[Chain, str]]:
    """A router beside llama.cpp with SmolLM2, a scripted engine behind it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = {"listen": address, "servedModelName": "served-small", "stage": "small"}
    (folder / "engine.json").write_text(json.dumps(config))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cascadia_local.llamacpp_engine", "--config", str(folder / "engine.json")
    )
    real: Any = Real(address)
    stages = StageOf("small", threshold, [real]), StageOf("large", None, [ScriptedEngine("large")])
    try:
        async with chain_of(folder, *stages, wait=False, **policy) as chain:
            own = chain.router("small").node.own
            assert own is not None
            await eventually(lambda: own.ready or process.returncode is not None, "the model is loaded", seconds=120)
            assert process.returncode is None
            yield chain, address
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def story(tokens: int) -> dict[str, Any]:
    return {
        "model": "chat", "stream": True, "max_tokens": tokens, "ignore_eos": True,
        "messages": [{"role": "user", "content": "Tell me a very long story."}],
    }  # fmt: skip


async def test_a_real_model_stops_too(tmp_path: Path) -> None:
    """llama.cpp behind a router that holds the stream. (Its server does not notice who has left while it works on
    an answer that is to come whole, whoever asks.)"""
    async with real_model(tmp_path, 0.5) as (chain, address):
        request = asyncio.create_task(http(chain.client("small"), CHAT, story(1900), seconds=300))
        await processing(address, 1)
        request.cancel()
        await processing(address, 0)
        assert await asyncio.to_thread(llamacpp_metric, address, "tokens_predicted_total") < 1900


async def test_a_real_models_beginning_is_decided_on(tmp_path: Path) -> None:
    gate = StreamingPolicy(mode="Gate", gate_tokens=8)
    async with real_model(tmp_path, 0.0, streaming=gate) as (chain, address):
        reply = await http(chain.client("small"), CHAT, story(24), seconds=120)
        assert reply.events[-1] == "[DONE]"
        told = reply.events[-2]["cascadia"]  # the headers may have left with a keep-alive comment
        assert told["stage"] == "small"
        assert 0 < told["score"] < 1
        pieces = [event["choices"][0] for event in reply.events[:-2] if event["choices"]]
        assert len(pieces) >= 20
        assert not any(piece.get("logprobs") for piece in pieces)

        chain.stages[0].threshold = 1.0
        chain.put(chain.make_policy(2, streaming=gate))
        reply = await http(chain.client("small"), CHAT, story(1900), seconds=120)
        assert reply.events[-2]["cascadia"]["path"] == "small>large"
        await processing(address, 0)
        assert await asyncio.to_thread(llamacpp_metric, address, "tokens_predicted_total") < 1900
