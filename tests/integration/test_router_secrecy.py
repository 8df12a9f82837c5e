"""No prompt, answer, key or secret comes into logs, metrics or reports, whatever goes wrong, at the finest level."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.policy import RateLimit, RateLimits
from cascadia_router import json_log
from tests.support.router_chain import SECRET, StageOf, chain_of, eventually, http
from tests.support.scripted_engine import (
    Behaviour,
    ScriptedEngine,
    Seen,
    answer,
    hang,
    http_response,
    status,
    stream_then,
)

CHAT = "/v1/chat/completions"
PROMPT, SAID = "the-marker-of-a-prompt", "the-marker-of-an-answer"
KEY, WRONG, SHORT = "sk-marker-of-a-good-key", "sk-marker-of-a-wrong-key", "sk-marker-bad"
MARKERS = (PROMPT, SAID, KEY, WRONG, SHORT, SECRET.decode(), "sk-marker")


@pytest.fixture
def told() -> Iterator[io.StringIO]:
    """All that the process logs, as the router would write it."""
    root, text = logging.getLogger(), io.StringIO()
    handlers, level = root.handlers[:], root.level
    json_log.configure()
    (handler,) = root.handlers
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(text)
    root.setLevel(logging.DEBUG)
    yield text
    root.handlers[:] = handlers
    root.setLevel(level)


def echoing(code: int, content_type: str = "application/json") -> Behaviour:
    """An engine that says the prompt again where it should not."""

    async def behave(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(http_response(code, SAID.encode() + seen.body, content_type))

    return behave


def garbage(data: bytes) -> Behaviour:
    async def behave(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        writer.transport.close()

    return behave


BEHAVIOURS: list[Behaviour] = [
    answer(),
    answer(logprob=-3.0),
    answer(scored=False),
    status(400, SAID.encode()),
    echoing(200),
    echoing(200, "text/event-stream"),
    echoing(422),
    echoing(500),
    stream_then("reset"),
    garbage(SAID.encode()),
    garbage(b"HTTP/1.1 200 OK\r\n" + SAID.encode() + b"\r\n\r\n"),
    garbage(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {" + SAID.encode() + b"\n\n"),
]


def bodies() -> list[Any]:
    message = [{"role": "user", "content": PROMPT}]
    good = {"model": "chat", "messages": message}
    return [
        good,
        good | {"stream": True},
        good | {"model": PROMPT},
        good | {"model": "large"},
        good | {"stream": PROMPT},
        good | {"messages": PROMPT, "max_tokens": PROMPT},
        json.dumps(good).encode()[:-3],
        PROMPT.encode() + b"\xff",
        {"prompt": PROMPT},
    ]


async def test_nothing_of_a_client_is_told(tmp_path: Path, told: io.StringIO) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n{SHORT}\nsha256:{WRONG}\n")
    stages = (
        StageOf("small", 0.9, [ScriptedEngine("small")]),
        StageOf("large", None, [ScriptedEngine("large")]),
    )
    config = {"api_keys": [str(keys)]}
    async with chain_of(tmp_path, *stages, config=config, clock_scale=20.0, request_timeout_seconds=20.0) as chain:
        client, good = chain.client("small"), {"authorization": f"Bearer {KEY}"}
        small, large = chain.engine("small"), chain.engine("large")
        for behaviour in BEHAVIOURS:
            small.behaviour = behaviour
            for large.behaviour in (answer(), behaviour):
                for body in bodies():
                    await _ask(client, body, good)
        for headers in (
            {},
            {"authorization": f"Bearer {WRONG}"},
            {"authorization": f"Basic {KEY}"},
            good | {"x": PROMPT + "\x00"},
        ):
            await _ask(client, bodies()[0], headers)
        await _ask(client, bodies()[0], good, path=f"/v1/{PROMPT}")
        await _ask(chain.router("large").addresses["peers"], bodies()[0], good | {"x-cascadia-hop": PROMPT})
        small.behaviour = large.behaviour = hang
        assert (await http(client, CHAT, bodies()[0], headers=good)).status == 504
        chain.put(chain.make_policy(2, rate_limits=RateLimits(default=RateLimit(requests_per_minute=1))))
        small.behaviour = answer()
        await eventually(lambda: not chain.router("small").node.exchanges, "all is answered")
        for _ in range(3):
            await _ask(client, bodies()[0], good)
        keys.write_text("")
        clients = chain.router("small").node.clients
        assert clients is not None
        await eventually(lambda: not clients.keys.ids, "the keys are gone")
        await _ask(client, bodies()[0], good)
        shown = ""
        for stage in ("small", "large"):
            for path in ("/metrics", "/cascade/report", "/cascade/policy", "/readyz"):
                shown += (await http(chain.admin(stage), path)).body.decode()
    text = told.getvalue()
    assert "API key refused" in text
    assert "cascadia_router_requests_total" in shown
    for marker in MARKERS:
        for where in (text, shown):
            at = where.find(marker)
            assert at < 0, where[max(0, at - 300) : at + 100]


async def _ask(address: str, body: Any, headers: dict[str, str], path: str = CHAT) -> None:
    try:
        reply = await http(address, path, body, headers=headers)
    except (ConnectionError, asyncio.IncompleteReadError):
        return
    assert reply.status < 500 or reply.status in {502, 503, 504}
