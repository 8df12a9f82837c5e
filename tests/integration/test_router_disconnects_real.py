"""A client that leaves stops a real model, behind two routers: llama.cpp with SmolLM2, and a given SGLang.

llama.cpp's server does not notice who has left while it works on an answer that is to come whole, whoever asks, so
all that it is asked for are streams. As in `test_router_disconnects`, the routers' timers are stopped when the client
leaves. `CASCADIA_TEST_ENGINE=host:port` adds an SGLang that runs already (`make sglang`).
"""

import asyncio
import contextlib
import json
import os
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.policy import StreamingPolicy
from tests.support.llamacpp_process import llamacpp_process
from tests.support.router_chain import Chain, StageOf, chain_of, eventually, http
from tests.support.scripted_engine import RunningEngine, ScriptedEngine, answer

CHAT = "/v1/chat/completions"
UNSURE = answer(logprob=-1.0)
BUFFER = StreamingPolicy()
LATE_GATE = StreamingPolicy(mode="Gate", gate_tokens=1024)
EARLY_GATE = StreamingPolicy(mode="Gate", gate_tokens=8)
LENGTH = 1900
"""Tokens of an answer that nobody stops: minutes of work."""
PATIENCE_SECONDS = 240.0
pytestmark = pytest.mark.timeout(600)


ENGINES = ["llamacpp", *(["given"] if "CASCADIA_TEST_ENGINE" in os.environ else [])]
WHOLE = [
    pytest.param("given", BUFFER, first, False, b"", id=f"given-whole-{'first' if first else 'last'}-stage")
    for first in (True, False)
    if "given" in ENGINES
]


@pytest.fixture(scope="module")
def llamacpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with llamacpp_process(tmp_path_factory.mktemp("llamacpp")) as (address, _):
        yield address


@pytest.fixture(scope="module")
def given() -> str:
    return os.environ["CASCADIA_TEST_ENGINE"]


def running(engine: str, address: str) -> float:
    """Requests that the engine works on, by its own count."""
    if engine == "llamacpp":
        return metric(address, "requests_processing")
    with urllib.request.urlopen(f"http://{address}/v1/loads", timeout=30) as got:
        return float(sum(load["num_running_reqs"] for load in json.load(got)["loads"]))


def metric(address: str, name: str) -> float:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as got:
        lines = got.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"llamacpp:{name} ")).split()[1])


async def becomes(engine: str, address: str, count: int) -> None:
    """Wait until the engine works on so many requests."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await asyncio.to_thread(running, engine, address) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def story(tokens: int, *, stream: bool = True) -> dict[str, Any]:
    return {
        "model": "chat", "stream": stream, "max_tokens": tokens, "ignore_eos": True,
        "messages": [{"role": "user", "content": "Tell me a very long story."}],
    }  # fmt: skip


@contextlib.asynccontextmanager
async def cascade(
    folder: Path, address: str, streaming: StreamingPolicy, *, first: bool = True, threshold: float = 0.0
) -> AsyncIterator[Chain]:
    """Two stages, llama.cpp's at the first or at the last, and an entry router."""
    real, scripted = RunningEngine("real", address=address), ScriptedEngine("scripted", UNSURE)
    stages = (
        StageOf("small", threshold if first else 0.8, [real if first else scripted]),
        StageOf("large", None, [scripted if first else real]),
    )
    async with chain_of(folder, *stages, streaming=streaming, request_timeout_seconds=PATIENCE_SECONDS) as chain:
        await chain.add_entry()
        yield chain


@pytest.mark.parametrize(
    ("engine", "streaming", "first", "stream", "after"),
    [
        *(
            pytest.param(engine, streaming, first, True, after, id=f"{engine}-{name}")
            for engine in ENGINES
            for name, streaming, first, after in (
                ("held-stream", BUFFER, True, b""),
                ("held-beginning", LATE_GATE, True, b""),
                ("opened-stream", EARLY_GATE, True, b'"content":'),
                ("last-stage", BUFFER, False, b'"content":'),
            )
        ),
        *WHOLE,
    ],
)
async def test_a_real_model_stops(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    engine: str,
    streaming: StreamingPolicy,
    first: bool,
    stream: bool,
    after: bytes,
) -> None:
    address = request.getfixturevalue(engine)
    await becomes(engine, address, 0)
    async with cascade(tmp_path, address, streaming, first=first) as chain:
        host, _, port = chain.entries[0].addresses["client"].rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = json.dumps(story(LENGTH, stream=stream)).encode()
        head = b"POST %s HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n" % (CHAT.encode(), len(body))
        writer.write(head + body)
        await becomes(engine, address, 1)
        async with asyncio.timeout(PATIENCE_SECONDS):
            seen = b""
            while after not in seen:
                seen += await reader.read(4096)
        chain.stop_timers()
        writer.close()
        await becomes(engine, address, 0)
        await eventually(lambda: not any(router.node.exchanges for router in chain.all()), "no router holds anything")
        (outcome,) = {outcome for _, _, outcome in chain.entries[0].node.metrics.requests}
        assert outcome == "disconnected", "the engine had not finished by itself"


async def test_a_real_models_beginning_is_decided_on(tmp_path: Path, llamacpp: str) -> None:
    async with cascade(tmp_path, llamacpp, EARLY_GATE) as chain:
        reply = await http(chain.entries[0].addresses["client"], CHAT, story(24), seconds=PATIENCE_SECONDS)
        assert reply.events[-1] == "[DONE]"
        told = reply.events[-2]["cascadia"]  # the headers may have left with a keep-alive comment
        assert told["stage"] == "small"
        assert 0 < told["score"] < 1
        pieces = [event["choices"][0] for event in reply.events[:-2] if event["choices"]]
        assert len(pieces) >= 20
        assert not any(piece.get("logprobs") for piece in pieces)

        chain.stages[0].threshold = 1.0
        chain.put(chain.make_policy(2, streaming=EARLY_GATE))
        made = await asyncio.to_thread(metric, llamacpp, "tokens_predicted_total")
        reply = await http(chain.entries[0].addresses["client"], CHAT, story(LENGTH), seconds=PATIENCE_SECONDS)
        assert reply.events[-2]["cascadia"]["path"] == "small>large"
        await becomes("llamacpp", llamacpp, 0)
        assert await asyncio.to_thread(metric, llamacpp, "tokens_predicted_total") < made + LENGTH
