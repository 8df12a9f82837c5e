"""The engine's HTTP protocol: framing, pipelining, limits, disconnects, and any bytes at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadia_local.simulated_engine import http_server
from cascadia_local.simulated_engine.http_server import Connection, OpenConnections


class Wire:
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = self.reading_paused = False

    def write(self, data: bytes) -> None:
        assert not self.closed, "written after close"
        self.written += data

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reading_paused = True

    def resume_reading(self) -> None:
        self.reading_paused = False


class Later:
    """A handler that answers `/now` at once, and anything else when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[bytes, bytes, bytes]] = []
        self.abandoned = 0

    def handle(self, connection: Connection, method: bytes, path: bytes, body: bytes) -> Callable[[], None] | None:
        self.asked.append((method, path, body))
        if path == b"/now":
            connection.respond(200, b'"now"')
            return None
        return self._abandon

    def _abandon(self) -> None:
        self.abandoned += 1


def connect() -> tuple[Connection, Wire, Later]:
    handler, wire = Later(), Wire()
    connection = Connection(handler, OpenConnections())
    connection.connection_made(wire)  # type: ignore[arg-type]
    return connection, wire, handler


def post(path: str, body: bytes = b"", version: str = "1.1") -> bytes:
    return b"POST %s HTTP/%s\r\nhost: h\r\ncontent-length: %d\r\n\r\n%s" % (
        path.encode(),
        version.encode(),
        len(body),
        body,
    )


@given(cut=st.integers(1, 200))
def test_requests_may_arrive_in_any_pieces(cut: int) -> None:
    connection, wire, handler = connect()
    data = post("/later?x=1", b'{"a":1}') + post("/now")
    for start in range(0, len(data), cut):
        connection.data_received(data[start : start + cut])
    assert handler.asked == [(b"POST", b"/later", b'{"a":1}')]  # the second one waits for the first's answer
    connection.respond(404, b"{}")
    assert handler.asked[1:] == [(b"POST", b"/now", b"")]
    first, second = wire.written.split(b"HTTP/1.1 ")[1:]
    assert first == b"404 Not Found\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    assert second.startswith(b"200 OK")
    assert second.endswith(b'"now"')
    assert not wire.closed


def test_chunked_bodies_are_put_together() -> None:
    connection, _, handler = connect()
    connection.data_received(b"POST /now HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
    assert handler.asked == [(b"POST", b"/now", b"abc")]


@pytest.mark.parametrize(("version", "framed"), [("1.1", True), ("1.0", False)])
def test_streams_are_chunked_or_end_with_the_connection(version: str, framed: bool) -> None:
    connection, wire, _ = connect()
    connection.data_received(post("/later", version=version))
    connection.start_stream(b"data: a\n\n")
    connection.send(b"data: b\n\n")
    connection.end_stream(b"data: [DONE]\n\n")
    head, _, body = wire.written.partition(b"\r\n\r\n")
    assert b"content-type: text/event-stream" in head
    assert (b"transfer-encoding: chunked" in head) == framed
    if framed:
        assert body == b"9\r\ndata: a\n\n\r\n9\r\ndata: b\n\n\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
    else:
        assert body == b"data: a\n\ndata: b\n\ndata: [DONE]\n\n"
    assert wire.closed is not framed


def test_connection_close_is_honoured() -> None:
    connection, wire, _ = connect()
    connection.data_received(b"GET /now HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert b"connection: close\r\n" in wire.written
    assert wire.closed


def test_a_waiting_client_is_told_to_continue() -> None:
    connection, wire, _ = connect()
    connection.data_received(b"POST /now HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\n")
    assert wire.written == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.data_received(b"x")
    assert wire.written.endswith(b'"now"')


def test_a_lost_connection_abandons_the_request_in_progress_only() -> None:
    connection, wire, handler = connect()
    connection.data_received(post("/later") + post("/later"))
    connection.connection_lost(None)
    assert (len(handler.asked), handler.abandoned) == (1, 1)
    connection.respond(200, b"too late")
    assert wire.written == b""


def test_an_answered_request_is_not_abandoned() -> None:
    connection, _, handler = connect()
    connection.data_received(post("/later"))
    connection.respond(200, b"")
    connection.connection_lost(None)
    assert handler.abandoned == 0


def test_pipelining_is_bounded() -> None:
    connection, wire, handler = connect()
    connection.data_received(post("/later") + post("/now") * http_server.MAX_PIPELINED)
    assert wire.reading_paused
    connection.respond(200, b"")
    assert not wire.reading_paused
    assert len(handler.asked) == 1 + http_server.MAX_PIPELINED


def test_oversized_bodies_and_headers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "MAX_BODY_BYTES", 10)
    monkeypatch.setattr(http_server, "MAX_HEADER_BYTES", 100)
    for data, status in (
        (post("/now", b"x" * 11), b"413"),
        (b"GET /now HTTP/1.1\r\na: " + b"x" * 101 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * 101 + b" HTTP/1.1\r\n\r\n", b"431"),
    ):
        connection, wire, handler = connect()
        connection.data_received(data)
        assert wire.written.startswith(b"HTTP/1.1 " + status)
        assert b'"object":"error"' in wire.written
        assert wire.closed
        assert not handler.asked
        connection.data_received(b"more of it")


@given(data=st.binary(max_size=200))
def test_bytes_that_are_not_http_are_refused(data: bytes) -> None:
    connection, wire, handler = connect()
    connection.data_received(b"\x00" + data)
    assert wire.written.startswith(b"HTTP/1.1 400 Bad Request")
    assert wire.closed
    assert not handler.asked


@given(data=st.binary(max_size=300), prefix=st.sampled_from([b"", b"GET /", b"POST /now HTTP/1.1\r\n", post("/later")]))
def test_no_bytes_break_a_connection(data: bytes, prefix: bytes) -> None:
    connection, wire, _ = connect()
    connection.data_received(prefix)
    for byte in data:
        if not wire.closed:
            connection.data_received(bytes([byte]))
    connection.connection_lost(None)


def test_garbage_after_a_request_in_progress_closes_without_an_answer_of_its_own() -> None:
    connection, wire, handler = connect()
    connection.data_received(post("/later") + b"\x00garbage")
    assert wire.closed
    assert wire.written == b""
    connection.connection_lost(None)
    assert handler.abandoned == 1


def test_upgrades_are_refused() -> None:
    connection, wire, _ = connect()
    connection.data_received(b"GET /later HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
    assert wire.closed


async def test_the_end_waits_for_slow_readers() -> None:
    connections = OpenConnections()
    await connections.close()  # nothing to wait for
    wire = Wire()
    connection = Connection(Later(), connections)
    connection.connection_made(wire)  # type: ignore[arg-type]
    closing = asyncio.create_task(connections.close())
    await asyncio.sleep(0)
    assert wire.closed
    assert not closing.done()
    connection.connection_lost(None)
    await asyncio.wait_for(closing, 10)
