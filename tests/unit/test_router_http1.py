"""No bytes make the server do anything but answer, refuse, or close."""

import asyncio
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_router.http1_client import Call, Upstream
from cascadia_router.response_sink import Fault
from tests.support.wire import LIMITS, Sink, Wire, serve, statuses_of

GOOD = b"POST /x?y=1 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"POST /x HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2;ext=1\r\nlo\r\n0\r\nx-t: 1\r\n\r\n"
fragments = st.sampled_from(
    [
        GOOD,
        CHUNKED,
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"POST / HTTP/1.1\r\n",
        b"content-length: 3\r\n",
        b"content-length: 99999999\r\n",
        b"transfer-encoding: chunked\r\n",
        b"expect: 100-continue\r\n",
        b"upgrade: h2c\r\nconnection: upgrade\r\n",
        b"connection: close\r\n",
        b"x: " + b"a" * 500 + b"\r\n",
        b"y: 1\r\n" * 12,
        b"0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"abc",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"HEAD / HTTP/1.1\r\n\r\n",
        b"z" * 700,
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(fragments | st.binary(max_size=40), max_size=8))
def test_any_bytes_are_answered_refused_or_waited_for(pieces: list[bytes]) -> None:
    echo, wire = serve(pieces)
    statuses = (
        [status for status in statuses_of(wire.written) if status != 100] if b"HEAD" not in b"".join(pieces) else []
    )
    assert all(status == 200 or 400 <= status < 500 for status in statuses)
    assert all(status == 200 for status in statuses[:-1]), "nothing is served after a refusal"
    for request in echo.requests:
        assert len(request.body) <= LIMITS.body_bytes
        assert len(request.headers) <= LIMITS.headers


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([GOOD, CHUNKED]), min_size=1, max_size=4), st.lists(st.integers(0, 600), max_size=6))
def test_requests_are_the_same_however_they_are_cut(messages: list[bytes], places: list[int]) -> None:
    data = b"".join(messages)
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    echo, wire = serve([data[start:end] for start, end in itertools.pairwise(edges) if end > start])
    assert [request.body for request in echo.requests] == [b"hello"] * len(messages)
    assert statuses_of(wire.written) == [200] * len(messages)
    assert not wire.closed
    assert not wire.paused


answers = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 204 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 101 Switch\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n",
        b"x",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"h: " + b"a" * 70_000,
        b"\r\n",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(answers | st.binary(max_size=30), max_size=5))
def test_any_answer_ends_once(pieces: list[bytes]) -> None:
    """A sink hears one head at most, then the end or one fault, and nothing after that."""

    async def run() -> None:
        upstream, sink, wire = Upstream("127.0.0.1:1"), Sink(), Wire()
        call = Call(upstream, b"", sink)
        call.connection_made(wire)  # type: ignore[arg-type]
        for piece in pieces:
            if not wire.closed:
                call.data_received(piece)
        call.connection_lost(None)
        last = sink.heard[-1]
        assert last == "end" or isinstance(last, Fault)
        assert len(sink.heard) <= 2
        if len(sink.heard) == 2:
            assert isinstance(sink.heard[0], int)
        if last == "end":
            assert len(sink.body) in {0, 5} or sink.heard[0] == 200
        assert not upstream.idle

    asyncio.run(run())


def test_a_clean_answer_keeps_the_connection() -> None:
    async def run() -> None:
        upstream, wire = Upstream("127.0.0.1:1"), Wire()
        first, second = Sink(), Sink()
        call = Call(upstream, b"request", first)
        call.connection_made(wire)  # type: ignore[arg-type]
        assert wire.written == b"request"
        call.data_received(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert first.heard == [200, "end"]
        assert upstream.send(b"again", second) is call
        call.pause()
        call.data_received(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert (second.heard, second.body) == ([200, "end"], b"ok")
        assert not wire.paused, "an idle connection must see its end"
        call.data_received(b"HTTP/1.1 200 OK\r\n")
        assert wire.closed, "nobody asked"

    asyncio.run(run())
