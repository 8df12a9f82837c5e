"""The access log: one line for each request, with the decision, and nothing of what was asked or answered."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.policy import AccessLogPolicy, RateLimit, RateLimits, StreamingPolicy
from cascadia_router.line_writer import LineWriter
from cascadia_router.server import Router
from tests.support.router_chain import Chain, Reply, StageOf, chain_of, eventually, http, read_reply
from tests.support.scripted_engine import Behaviour, ScriptedEngine, answer, hang, reset

CHAT = "/v1/chat/completions"
SECRET_PROMPT = "what nobody may read in a log"
ALL = AccessLogPolicy(share=1.0)
NO_GOOD = AccessLogPolicy(share=0.0)
BEARER = {"authorization": "Bearer sk-a-key-that-nobody-logs"}


def chat(**extra: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": SECRET_PROMPT}], **extra}


def stages(first: Behaviour | None = None, threshold: float = 0.8) -> tuple[StageOf, StageOf]:
    return (
        StageOf("small", threshold, [ScriptedEngine("word", first or answer())]),
        StageOf("large", None, [ScriptedEngine("word")]),
    )


class Lines:
    """The access log of one router, from a pipe in the place of standard output."""

    def __init__(self, router: Router) -> None:
        self._reader, self._end = os.pipe()
        self._log = router.node.access_log
        self._log.writer = LineWriter(self._end)

    async def all(self) -> list[dict[str, Any]]:
        writer = self._log.writer
        await asyncio.to_thread(writer.close, 10.0)
        os.close(self._end)
        with os.fdopen(self._reader, "rb") as lines:
            text = lines.read()
        assert SECRET_PROMPT.encode() not in text
        assert b"word0" not in text, "no answer may be in a log"
        assert writer.dropped == 0
        return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("way", ["short way", "exchange", "held stream", "opened stream"])
async def test_what_was_decided_is_in_the_line(tmp_path: Path, way: str) -> None:
    streaming = StreamingPolicy(mode="Gate", gate_tokens=2) if way == "opened stream" else StreamingPolicy()
    body = chat(stream="stream" in way, tools=[{"type": "function"}] if way == "exchange" else None)
    async with chain_of(tmp_path, *stages(), access_log=ALL, streaming=streaming) as chain:
        lines = Lines(chain.router("small"))
        reply = await http(
            chain.client("small"), CHAT, body, headers={"x-request-id": "r-1"} if way != "short way" else {}
        )
        (line,) = await lines.all()
        said = reply.events[-2]["cascadia"] if "stream" in way else reply.json["cascadia"]
        assert (line["port"], line["path"], line["status"], line["outcome"]) == ("client", CHAT, 200, "answered")
        assert line["requestId"] == reply.headers["x-request-id"]
        assert (line["model"], line["stream"]) == ("chat", "stream" in way)
        assert 0 < line["firstByteSeconds"] <= line["seconds"] < 20
        assert line["decision"] == said
        assert (said["stage"], said["threshold"], said["policyRevision"]) == ("small", 0.8, 1)
        assert said["score"] == pytest.approx(0.951229, abs=1e-6)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_escalated_request_has_a_line_at_each_router(tmp_path: Path, stream: bool) -> None:
    async with chain_of(tmp_path, *stages(threshold=0.99), access_log=ALL) as chain:
        first, second = Lines(chain.router("small")), Lines(chain.router("large"))
        await http(chain.client("small"), CHAT, chat(stream=stream))
        (entered,), (peer,) = await first.all(), await second.all()
        assert (entered["port"], peer["port"]) == ("client", "peer")
        assert entered["requestId"] == peer["requestId"]
        assert entered["decision"] == peer["decision"]
        assert (entered["decision"]["stage"], entered["decision"]["path"]) == ("large", "small>large")
        assert entered["decision"]["usage"]["promptTokens"] == 14


async def refused_body(chain: Chain) -> None:
    await http(chain.client("small"), CHAT, b"{")


async def unknown_model(chain: Chain) -> None:
    await http(chain.client("small"), CHAT, chat(model="none"))


async def too_large(chain: Chain) -> None:
    await http(chain.client("small"), CHAT, b"", headers={"x-long": "x" * 100_000})


async def broken(chain: Chain) -> None:
    chain.engine("small").behaviour = chain.engine("large").behaviour = reset
    await http(chain.client("small"), CHAT, chat())


async def late(chain: Chain) -> None:
    chain.engine("small").behaviour = chain.engine("large").behaviour = hang
    await http(chain.client("small"), CHAT, chat(), headers={"x-cascadia-deadline-ms": "100"})


@pytest.mark.parametrize(
    ("act", "status", "outcome"),
    [
        (refused_body, 400, "refused"),
        (unknown_model, 404, "refused"),
        (too_large, 431, "refused"),
        (broken, 502, "failed"),
        (late, 504, "deadline"),
    ],
)
async def test_errors_are_logged_whatever_the_share(tmp_path: Path, act: Any, status: int, outcome: str) -> None:
    async with chain_of(tmp_path, *stages(), access_log=NO_GOOD) as chain:
        lines = Lines(chain.router("small"))
        assert (await http(chain.client("small"), CHAT, chat())).status == 200
        await act(chain)
        (line,) = await lines.all()
        assert (line["status"], line["outcome"]) == (status, outcome)


async def bad_key(chain: Chain, headers: dict[str, str]) -> Reply:
    return await http(chain.client("small"), CHAT, chat(), headers=headers | {"authorization": "Bearer sk-another"})


async def stranger_who_waits(chain: Chain, headers: dict[str, str]) -> Reply:
    return await announced(chain, headers | {"expect": "100-continue"}, 10)


async def over_its_rate(chain: Chain, headers: dict[str, str]) -> Reply:
    for _ in range(2):
        reply = await http(chain.client("small"), CHAT, chat(), headers=headers | BEARER)
    return reply


async def bad_body(chain: Chain, headers: dict[str, str]) -> Reply:
    return await http(chain.client("small"), CHAT, b"{", headers=headers | BEARER)


async def large_body(chain: Chain, headers: dict[str, str]) -> Reply:
    return await announced(chain, headers | BEARER, 2**40)


async def large_head(chain: Chain, headers: dict[str, str]) -> Reply:
    return await http(chain.client("small"), CHAT, b"", headers=headers | BEARER | {"x-long": "x" * 100_000})


async def announced(chain: Chain, headers: dict[str, str], length: int) -> Reply:
    """Send a head that announces a body, and no body."""
    host, _, port = chain.client("small").rpartition(":")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {CHAT} HTTP/1.1\r\nhost: t\r\ncontent-length: {length}\r\n{lines}\r\n".encode())
        reply = await read_reply(reader)
        writer.close()
    return reply


@pytest.mark.parametrize("given", ["trace-me-7", "", "x" * 129])
@pytest.mark.parametrize(
    ("act", "status", "reason"),
    [
        (bad_key, 401, "invalid_api_key"),
        (stranger_who_waits, 401, "invalid_api_key"),
        (over_its_rate, 429, "rate_limit_exceeded"),
        (bad_body, 400, "invalid_body"),
        (large_body, 413, "request_too_large"),
        (large_head, 431, "headers_too_large"),
    ],
)
async def test_a_refusals_line_has_the_id_of_its_answer(
    tmp_path: Path, act: Any, status: int, reason: str, given: str
) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "team-a").write_text("sk-a-key-that-nobody-logs\n")
    config, limits = {"api_keys": [str(keys)]}, RateLimits(default=RateLimit(requests_per_minute=1))
    async with chain_of(tmp_path, *stages(), config=config, access_log=NO_GOOD, rate_limits=limits) as chain:
        lines = Lines(chain.router("small"))
        reply = await act(chain, {"x-request-id": given} if given else {})
        assert reply.status == status
        (line,) = await lines.all()
        assert (line["status"], line["reason"]) == (status, reason)
        assert line["requestId"] == reply.headers["x-request-id"]
        assert line["requestId"] == given if given == "trace-me-7" else line["requestId"].startswith("req-")


async def test_clients_that_leave_and_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "team-a").write_text("sk-a-key-that-nobody-logs\n")
    config = {"api_keys": [str(keys)]}
    async with chain_of(tmp_path, *stages(hang), access_log=ALL, config=config) as chain:
        lines, node = Lines(chain.router("small")), chain.router("small").node
        bearer = {"authorization": "Bearer sk-a-key-that-nobody-logs"}
        waiting = asyncio.create_task(http(chain.client("small"), CHAT, chat(), headers=bearer))
        await eventually(lambda: node.exchanges, "it is begun")
        waiting.cancel()
        await eventually(lambda: not node.exchanges, "it is over")
        await http(chain.client("small"), CHAT, chat(), headers={"authorization": "Bearer sk-another"})
        left, stranger = await lines.all()
        assert (left["status"], left["outcome"], left["key"]) == (499, "disconnected", "team-a")
        assert (stranger["status"], stranger["reason"]) == (401, "invalid_api_key")
        assert "sk-" not in json.dumps([left, stranger])


async def test_policies_turn_it_on_and_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with chain_of(tmp_path, *stages()) as chain:
        await http(chain.client("small"), CHAT, chat())
        chain.put(chain.make_policy(2, access_log=ALL))
        await http(chain.client("small"), CHAT, chat())
        chain.put(chain.make_policy(3))
        await http(chain.client("small"), CHAT, chat())
    out = [line for line in capfd.readouterr().out.splitlines() if line.startswith('{"time"')]
    assert [json.loads(line)["decision"]["policyRevision"] for line in out] == [2]
