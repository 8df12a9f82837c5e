"""Wrong, oversized and hostile HTTP at the client port: a 4xx in OpenAI's shape, or a closed connection."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cascadia_router.http1_request import Limits
from cascadia_router.server import Router
from tests.support.router_chain import Chain, Reply, StageOf, chain_of, eventually, http, read_reply
from tests.support.scripted_engine import ScriptedEngine, hang, http_response

CHAT = "/v1/chat/completions"
BODY = json.dumps({"model": "chat", "messages": []}).encode()


@pytest.fixture
async def chain(tmp_path: Path) -> AsyncIterator[Chain]:
    async with chain_of(tmp_path, StageOf("only", None, [ScriptedEngine("only")])) as running:
        yield running


@contextlib.asynccontextmanager
async def connection(address: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def exchange(address: str, data: bytes) -> Reply:
    async with connection(address) as (reader, writer):
        writer.write(data)
        return await read_reply(reader)


def post(body: bytes, *headers: str, path: str = CHAT) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: test", *headers]
    if not any(header.startswith("transfer-encoding") for header in headers):
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/", "GET", 404, "not_found"),
        ("/v1/nothing", "POST", 404, "not_found"),
        ("/v1/models/nope", "GET", 404, "model_not_found"),
        (CHAT, "GET", 405, "method_not_allowed"),
        (CHAT, "DELETE", 405, "method_not_allowed"),
        ("/v1/models", "POST", 405, "method_not_allowed"),
        ("/cascade/report", "GET", 404, "not_found"),
        ("/metrics", "GET", 404, "not_found"),
    ],
)
async def test_paths_and_methods(chain: Chain, path: str, method: str, status: int, code: str) -> None:
    reply = await http(chain.client("only"), path, method=method)
    assert (reply.status, reply.json["error"]["code"]) == (status, code)
    assert set(reply.json["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'"chat"', None),
        (b'{"model": "chat"}', "messages"),
        (b'{"messages": []}', None),
        (b'{"model": 3, "messages": []}', "model"),
        (b'{"model": "chat", "messages": [], "stream": "yes"}', "stream"),
        (b'{"model": "chat", "messages": [], "max_tokens": "many"}', "max_tokens"),
        (b'{"model": "chat", "messages": []} {}', None),
        (b'{"model": "ch\xff\xfeat", "messages": []}', None),
        (b'{"model": "chat", "messages": [], "\x80": ""}', None),
        (b'{"model": "chat", "messages": ["\xed\xa0\x80"], "stream": true}', None),
        (b'{"model": "chat", "messages": ' + b"[" * 100_000 + b"}", None),
        (bytes(range(256)), None),
    ],
)
async def test_bodies_that_are_no_request(chain: Chain, body: bytes, param: str | None) -> None:
    reply = await http(chain.client("only"), CHAT, body)
    assert reply.status == 400
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert reply.json["error"]["param"] == param
    assert not chain.engine("only").seen


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        post(BODY, "transfer-encoding: chunked", "content-length: 5"),
        post(BODY, "content-length: 5"),
        post(BODY, "content-length: -1"),
        post(BODY, "transfer-encoding: chunked, identity"),
        post(b"zz\r\nabc\r\n0\r\n\r\n", "transfer-encoding: chunked"),
        post(BODY, "bad header: x"),
        post(BODY, "x: a\x00b"),
        post(BODY, "x: a\nb"),
    ],
)
async def test_messages_that_are_not_http_or_could_smuggle(chain: Chain, data: bytes) -> None:
    reply = await exchange(chain.client("only"), data)
    assert reply.status == 400
    assert reply.json["error"]["code"] == "malformed_request"
    assert reply.headers["connection"] == "close"
    assert not chain.engine("only").seen


async def test_limits_of_headers_and_bodies(chain: Chain) -> None:
    client = chain.client("only")
    limit = 8 * 1024 * 1024
    assert (await exchange(client, post(BODY, "x: " + "a" * 70_000))).status == 431
    assert (await exchange(client, post(BODY, *(f"x-{index}: 1" for index in range(200))))).status == 431
    assert (await exchange(client, b"GET /" + b"a" * 70_000)).status == 431
    announced = await exchange(
        client, post(b"", f"content-length: {limit + 1}")[: -len("content-length: 0\r\n\r\n")] + b"\r\n"
    )
    assert (announced.status, announced.json["error"]["code"]) == (413, "request_too_large")
    waiting = await exchange(
        client, post(b"", "expect: 100-continue", f"content-length: {limit + 1}").replace(b"content-length: 0\r\n", b"")
    )
    assert waiting.status == 413

    async with connection(client) as (reader, writer):  # chunked, so that no length is announced
        writer.write(post(b"", "transfer-encoding: chunked"))
        piece = b"10000\r\n" + b"a" * 65536 + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(limit // 65536 + 2):
                writer.write(piece)
                await writer.drain()
        assert (await read_reply(reader)).status == 413

    async with connection(client) as (reader, writer):  # trailers that never end
        writer.write(post(b"", "transfer-encoding: chunked") + b"0\r\nx: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(300):
                writer.write(b"a" * 65536)
                await writer.drain()
        assert (await read_reply(reader)).status == 413
    assert not chain.engine("only").seen
    assert (await http(client, CHAT, BODY)).status == 200


async def test_bodies_that_come_in_pieces(chain: Chain) -> None:
    client = chain.client("only")
    pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\nx-trailer: 1\r\n\r\n"
    assert (await exchange(client, post(pieces, "transfer-encoding: chunked"))).status == 200
    async with connection(client) as (reader, writer):
        for byte in post(BODY):
            writer.write(bytes([byte]))
            await writer.drain()
        assert (await read_reply(reader)).status == 200
    async with connection(client) as (reader, writer):
        head = post(BODY, "expect: 100-continue")[: -len(BODY)]
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert (await read_reply(reader)).status == 200


async def test_pipelined_requests_are_answered_in_order(chain: Chain) -> None:
    get = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    missing = b"GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n"
    data = post(BODY) + get + missing + post(BODY) + get * 200 + missing + post(BODY, "connection: close") + get
    async with connection(chain.client("only")) as (reader, writer):
        writer.write(data)
        expected = [200, 200, 404, 200, *[200] * 200, 404, 200]
        assert [(await read_reply(reader)).status for _ in expected] == expected
        assert await reader.read() == b""
    assert len(chain.engine("only").seen) == 3


async def test_a_bad_request_behind_a_good_one_waits_its_turn(chain: Chain) -> None:
    async with connection(chain.client("only")) as (reader, writer):
        writer.write(post(BODY) + b"nonsense\r\n\r\n")
        assert (await read_reply(reader)).status == 200
        assert (await read_reply(reader)).status == 400
        assert await reader.read() == b""


async def test_old_and_upgrading_clients(chain: Chain) -> None:
    client = chain.client("only")
    async with connection(client) as (reader, writer):
        writer.write(post(BODY).replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (await read_reply(reader)).status == 200
        assert await reader.read() == b""
    stream = b'{"model": "chat", "stream": true, "messages": []}'
    reply = await exchange(client, post(stream).replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert "transfer-encoding" not in reply.headers
    assert reply.events[-1] == "[DONE]"
    offer = (
        "connection: Upgrade, HTTP2-Settings",
        "upgrade: h2c",
        "http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    )
    async with connection(client) as (reader, writer):  # Java's client, in two reads
        data = post(BODY, *offer)
        writer.write(data[:-10])
        await writer.drain()
        await asyncio.sleep(0)
        writer.write(data[-10:])
        assert (await read_reply(reader)).status == 200
        assert await reader.read() == b""
    assert (await exchange(client, b"GET /healthz HTTP/1.1\r\n" + "\r\n".join((*offer, "", "")).encode())).status == 200
    async with connection(client) as (reader, writer):
        writer.write(b"HEAD /healthz HTTP/1.0\r\n\r\n")
        answered = await reader.read()
        assert answered.startswith(b"HTTP/1.1 200 ")
        assert answered.endswith(b"\r\n\r\n")


async def test_slow_and_idle_connections_are_closed(tmp_path: Path) -> None:
    async with chain_of(tmp_path, StageOf("only", None, [ScriptedEngine("only", hang)])) as chain:
        limits = Limits(receive_seconds=0.5, idle_seconds=0.5)
        router = Router(chain.config(None, None, None), limits)
        await router.start()
        chain.entries.append(router)
        chain.put(chain.make_policy(2))
        client = router.addresses["client"]
        async with connection(client) as (reader, writer):
            assert await reader.read() == b""
        async with connection(client) as (reader, writer):
            writer.write(post(BODY)[:-5])
            reply = await read_reply(reader)
            assert (reply.status, reply.json["error"]["code"]) == (408, "timeout")
            assert await reader.read() == b""
        async with connection(client) as (reader, writer):  # one that waits for its answer is neither
            writer.write(post(BODY))
            await eventually(lambda: chain.engine("only").seen, "the engine is asked")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.6):
                    await reader.read(1)


async def test_what_a_client_sends_as_request_id_is_checked(chain: Chain) -> None:
    good = await http(chain.client("only"), CHAT, BODY, headers={"x-request-id": "abc-123", "traceparent": "00-1-2-01"})
    assert good.headers["x-request-id"] == "abc-123"
    assert chain.engine("only").seen[0].headers["traceparent"] == "00-1-2-01"
    for bad in ("a b", "é", "x" * 200):
        reply = await http(chain.client("only"), CHAT, BODY, headers={"x-request-id": bad})
        assert reply.headers["x-request-id"].startswith("req-")


async def test_an_engine_that_answers_with_two_responses_is_not_believed(chain: Chain) -> None:
    """Response splitting: what follows a complete answer must not become the next request's."""

    async def twice(engine: ScriptedEngine, seen: Any, writer: asyncio.StreamWriter) -> None:
        body = b'{"choices": [{"index": 0}]}'
        writer.write(http_response(200, body) + http_response(200, b"bad"))

    engine = chain.engine("only")
    engine.behaviour = twice
    for _ in range(2):
        reply = await http(chain.client("only"), CHAT, BODY)
        assert reply.status == 200
        assert reply.json["choices"] == [{"index": 0}]
