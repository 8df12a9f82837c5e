"""Messages that two readers could read in two ways: each is refused, or read as a strict reader would.

Both directions: what clients send, and what engines answer. Each message is tried in one piece, which may
take the short way, and byte by byte, which never does: the two must agree.
"""

import asyncio
from typing import Any

import pytest

from cascadia_router.http1_client import Call, Upstream
from cascadia_router.response_sink import Fault
from tests.support.wire import Sink, Wire, serve, statuses_of

POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n"
EVIL = b"GET /evil HTTP/1.1\r\nhost: a\r\n\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n"
UPGRADE = b"upgrade: h2c\r\nconnection: upgrade\r\n"

REFUSED = {
    "CL.TE": POST + b"content-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nG",
    "TE.CL": CHUNKED + b"content-length: 3\r\n\r\n1\r\na\r\n0\r\n\r\n",
    "TE: space before the colon": POST + b"transfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    "TE: vertical tab": POST + b"transfer-encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "TE: unknown": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "TE: longer word": POST + b"transfer-encoding: chunkedx\r\n\r\n0\r\n\r\n",
    "TE: chunked is not the last": POST + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "TE: identity first": POST + b"transfer-encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "TE: gzip first": POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "TE: identity": POST + b"transfer-encoding: identity\r\ncontent-length: 0\r\n\r\n",
    "TE: empty": POST + b"transfer-encoding:\r\n\r\n" + EVIL,
    "TE: twice": CHUNKED + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE: chunked, chunked": POST + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "TE: another before": POST + b"transfer-encoding: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE: another after": CHUNKED + b"transfer-encoding: x\r\n\r\n0\r\n\r\n",
    "TE: quoted": POST + b'transfer-encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "TE: parameter": POST + b"transfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "TE: folded": POST + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "TE: over HTTP/1.0": b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE: with an upgrade": CHUNKED + UPGRADE + b"\r\n0\r\n\r\n" + EVIL,
    "CL: twice the same": POST + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello",
    "CL: twice": POST + b"content-length: 5\r\ncontent-length: 0\r\n\r\nhello",
    "CL: list": POST + b"content-length: 5, 5\r\n\r\nhello",
    "CL: plus": POST + b"content-length: +5\r\n\r\nhello",
    "CL: minus": POST + b"content-length: -5\r\n\r\nhello",
    "CL: space within": POST + b"content-length: 5 5\r\n\r\nhello",
    "CL: hexadecimal": POST + b"content-length: 0x5\r\n\r\nhello",
    "CL: underscore": POST + b"content-length: 0_5\r\n\r\nhello",
    "CL: empty": POST + b"content-length:\r\n\r\n",
    "CL: over 64 bits": POST + b"content-length: 18446744073709551621\r\n\r\nhello",
    "CL: space before the colon": POST + b"content-length : 5\r\n\r\nhello",
    "CL: folded": POST + b"content-length:\r\n 5\r\n\r\nhello",
    "CL: other digits": POST + b"content-length: \xd9\xa5\r\n\r\nhello",
    "line feeds only": b"POST / HTTP/1.1\nhost: a\ncontent-length: 0\n\n",
    "one bare line feed": POST + b"x: 1\ncontent-length: 5\r\n\r\nhello",
    "bare carriage return": POST + b"x: 1\rcontent-length: 5\r\n\r\nhello",
    "head ends in a bare line feed": POST + b"content-length: 5\r\n\nhello",
    "folded line": POST + b"x: 1\r\n y: 2\r\ncontent-length: 0\r\n\r\n",
    "folded first line": b"GET / HTTP/1.1\r\n host: a\r\n\r\n",
    "NUL in a name": POST + b"x\0: 1\r\ncontent-length: 0\r\n\r\n",
    "NUL in a value": POST + b"x: \0\r\ncontent-length: 0\r\n\r\n",
    "NUL in the target": b"GET /\0 HTTP/1.1\r\nhost: a\r\n\r\n",
    "no name": POST + b": x\r\n\r\n",
    "no colon": POST + b"xyz\r\n\r\n",
    "space in the target": b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
    "tabs in the first line": b"GET\t/a\tHTTP/1.1\r\nhost: a\r\n\r\n",
    "HTTP/0.9": b"GET /a\r\n\r\n",
    "HTTP/1.2": b"GET /a HTTP/1.2\r\n\r\n",
    "HTTP/2.0": b"GET /a HTTP/2.0\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "lower-case method": b"get / HTTP/1.1\r\nhost: a\r\n\r\n",
    "chunk: 0x": CHUNKED + b"\r\n0x1\r\na\r\n0\r\n\r\n",
    "chunk: plus": CHUNKED + b"\r\n+1\r\na\r\n0\r\n\r\n",
    "chunk: minus": CHUNKED + b"\r\n-1\r\na\r\n0\r\n\r\n",
    "chunk: space before": CHUNKED + b"\r\n 1\r\na\r\n0\r\n\r\n",
    "chunk: space after": CHUNKED + b"\r\n1 \r\na\r\n0\r\n\r\n",
    "chunk: line feeds": CHUNKED + b"\r\n1\na\n0\n\n",
    "chunk: data ends in a line feed": CHUNKED + b"\r\n1\r\na\n0\r\n\r\n",
    "chunk: too short": CHUNKED + b"\r\n5\r\na\r\n0\r\n\r\n",
    "chunk: too long": CHUNKED + b"\r\n1\r\nab\r\n0\r\n\r\n",
    "chunk: line feed in an extension": CHUNKED + b"\r\n1;x\ny\r\na\r\n0\r\n\r\n",
    "chunk: carriage return in an extension": CHUNKED + b"\r\n1;x\ry\r\na\r\n0\r\n\r\n",
    "chunk: quoted line end": CHUNKED + b'\r\n1;x="y\r\nz"\r\na\r\n0\r\n\r\n',
    "chunk: over 64 bits": CHUNKED + b"\r\n10000000000000001\r\na\r\n0\r\n\r\n",
    "chunk: no size": CHUNKED + b"\r\n\r\na\r\n0\r\n\r\n",
    "trailer: content-length": CHUNKED + b"\r\n0\r\ncontent-length: 50\r\n\r\n" + EVIL,
    "trailer: transfer-encoding": CHUNKED + b"\r\n0\r\ntransfer-encoding: chunked\r\n\r\n" + EVIL,
    "trailer: no header": CHUNKED + b"\r\n0\r\nbad name: 50\r\n\r\n",
    "trailer: line feed": CHUNKED + b"\r\n0\r\n\n",
    "name beyond ASCII": POST + b"x\xe9: 1\r\ncontent-length: 0\r\n\r\n",
    "DEL in a value": POST + b"x: \x7f\r\ncontent-length: 0\r\n\r\n",
}

READ: dict[str, tuple[bytes, list[tuple[bytes, bytes]]]] = {
    "TE: tab": (POST + b"transfer-encoding:\tchunked\r\n\r\n0\r\n\r\n" + EVIL, [(b"POST", b""), (b"GET", b"")]),
    "TE: another name": (POST + b"transfer_encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n", [(b"POST", b"0\r\n")]),
    "CL: space after": (POST + b"content-length: 5 \r\n\r\nhello", [(b"POST", b"hello")]),
    "CL: zeros before": (POST + b"content-length: 0005\r\n\r\nhello", [(b"POST", b"hello")]),
    "CL: named by connection": (
        POST + b"connection: content-length\r\ncontent-length: 2\r\n\r\nhi",
        [(b"POST", b"hi")],
    ),
    "chunk: extension": (CHUNKED + b'\r\n1;x="y"\r\na\r\n0\r\n\r\n' + EVIL, [(b"POST", b"a"), (b"GET", b"")]),
    "chunk: zeros": (CHUNKED + b"\r\n000\r\n\r\n" + EVIL, [(b"POST", b""), (b"GET", b"")]),
    "trailer": (CHUNKED + b"\r\n0\r\nauthorization: x\r\n\r\n" + EVIL, [(b"POST", b""), (b"GET", b"")]),
    "body of a GET": (EVIL[:-2] + b"content-length: 2\r\n\r\nhi" + EVIL, [(b"GET", b"hi"), (b"GET", b"")]),
    "empty lines before": (b"\r\n\r\n" + EVIL, [(b"GET", b"")]),
    "nothing after an upgrade": (POST + UPGRADE + b"content-length: 2\r\n\r\nhi" + EVIL, [(b"POST", b"hi")]),
    "nothing after CONNECT": (b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n" + EVIL, [(b"CONNECT", b"")]),
}


def ways(data: bytes) -> list[list[bytes]]:
    return [[data], [data[place : place + 1] for place in range(len(data))]]


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_be_read_in_two_ways_is_refused(name: str) -> None:
    for pieces in ways(REFUSED[name]):
        echo, wire = serve(pieces)
        assert statuses_of(wire.written) == [400]
        assert b"connection: close\r\n" in wire.written
        assert not echo.requests


@pytest.mark.parametrize("name", READ)
def test_what_can_be_read_in_one_way_only_is_read_so(name: str) -> None:
    data, requests = READ[name]
    for pieces in ways(data):
        echo, wire = serve(pieces)
        assert [(request.method, request.body) for request in echo.requests] == requests
        assert statuses_of(wire.written) == [200] * len(requests)


def test_a_trailer_is_no_header() -> None:
    echo, _ = serve([CHUNKED + b"\r\n0\r\nauthorization: Bearer x\r\n\r\n"])
    assert echo.requests[0].authorization == b""
    assert b"authorization" not in echo.requests[0].headers


OK = b"HTTP/1.1 200 OK\r\n"
FIVE = b"content-length: 5\r\n\r\nhello"
BODY = b"5\r\nhello\r\n0\r\n\r\n"

ANSWERS: dict[str, tuple[bytes, list[Any], bytes, bool]] = {
    # name: bytes, what the caller hears, the body, whether the connection may carry another call
    "plain": (OK + FIVE, [200, "end"], b"hello", True),
    "CL and TE": (
        OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + BODY,
        [Fault.MALFORMED],
        b"",
        False,
    ),
    "TE and CL": (
        OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n" + BODY,
        [Fault.MALFORMED],
        b"",
        False,
    ),
    "CL twice": (OK + b"content-length: 5\r\n" + FIVE, [Fault.MALFORMED], b"", False),
    "CL plus": (OK + b"content-length: +5\r\n\r\nhello", [Fault.MALFORMED], b"", False),
    "CL list": (OK + b"content-length: 5, 5\r\n\r\nhello", [Fault.MALFORMED], b"", False),
    "TE identity": (OK + b"transfer-encoding: identity\r\n\r\nhello", [200, Fault.BROKEN], b"hello", False),
    "line feeds": (b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello", [Fault.MALFORMED], b"", False),
    "folded line": (OK + b"x: 1\r\n y: 2\r\n" + FIVE, [Fault.MALFORMED], b"", False),
    "NUL": (OK + b"x: \0\r\n" + FIVE, [Fault.MALFORMED], b"", False),
    "split reason": (b"HTTP/1.1 200 O\rK\r\n" + FIVE, [Fault.MALFORMED], b"", False),
    "split header": (OK + b"x: 1\rset-cookie: a\r\n" + FIVE, [Fault.MALFORMED], b"", False),
    "hints before": (b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + OK + FIVE, [200, "end"], b"hello", True),
    "hints with a body": (b"HTTP/1.1 103 Early\r\n" + FIVE + OK + FIVE, [Fault.MALFORMED], b"", False),
    "204 with a body": (b"HTTP/1.1 204 No\r\n" + FIVE, [204, "end"], b"", False),
    "204 with chunks": (b"HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n" + BODY, [204, "end"], b"", False),
    "304 with a body": (b"HTTP/1.1 304 No\r\n" + FIVE, [304, "end"], b"", False),
    "switching": (b"HTTP/1.1 101 S\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nhello", [Fault.MALFORMED], b"", False),
    "two answers": (OK + FIVE + OK + b"content-length: 3\r\n\r\nbad", [200, "end"], b"hello", False),
    "more after it": (OK + FIVE + b"junk", [200, "end"], b"hello", False),
    "until it closes": (OK + b"\r\nhello", [200, "end"], b"hello", False),
    "HTTP/0.9": (b"hello", [Fault.MALFORMED], b"", False),
    "HTTP/1.2": (b"HTTP/1.2 200 OK\r\n" + FIVE, [Fault.MALFORMED], b"", False),
    "status 099": (b"HTTP/1.1 099 OK\r\n" + FIVE, [502, "end"], b"hello", True),
    "status 600": (b"HTTP/1.1 600 OK\r\n" + FIVE, [502, "end"], b"hello", True),
    "status 1000": (b"HTTP/1.1 1000 OK\r\n" + FIVE, [Fault.MALFORMED], b"", False),
    "chunk: no size": (OK + b"transfer-encoding: chunked\r\n\r\nzz\r\n", [200, Fault.MALFORMED], b"", False),
    "chunk: line feeds": (OK + b"transfer-encoding: chunked\r\n\r\n5\nhello\n", [200, Fault.MALFORMED], b"", False),
    "chunk: cut": (OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhel", [200, Fault.BROKEN], b"hel", False),
    "a request": (EVIL, [Fault.MALFORMED], b"", False),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_engines_answer(name: str) -> None:
    data, heard, body, kept = ANSWERS[name]

    async def hear(pieces: list[bytes]) -> tuple[Sink, bool]:
        upstream, sink, wire = Upstream("127.0.0.1:1"), Sink(), Wire()
        call = Call(upstream, b"", sink)
        call.connection_made(wire)  # type: ignore[arg-type]
        for piece in pieces:
            if not wire.closed:
                call.data_received(piece)
        again = bool(upstream.idle) and not wire.closed
        call.connection_lost(None)
        return sink, again

    for pieces in ways(data):
        sink, again = asyncio.run(hear(pieces))
        assert (sink.heard, sink.body, again) == (heard, body, kept)
