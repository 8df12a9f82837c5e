"""What must hold, whatever is thrown at the router."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import h11

from cascadia_api.policy import Endpoint, RouterConfig, RouterPolicy, StagePolicy, encode_policy
from cascadia_router.client_port import ClientPort
from cascadia_router.http1_client import Call, Upstream
from cascadia_router.http1_request import Limits, Request, Room
from cascadia_router.http1_server import ServerConnection
from cascadia_router.node import Node
from cascadia_router.peer_port import PeerPort
from cascadia_router.response_sink import Fault
from cascadia_router.signing import PeerSecrets
from tests.fuzz.messages import cut
from tests.support.wire import Sink, Wire, serve

__all__ = ["GOOD_ANSWER", "check_answer", "check_body", "check_engine", "check_hop", "check_requests"]

_TURNS = 400
GOOD_ANSWER = (
    b'{"id":"1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"yes"},'
    b'"logprobs":{"content":[{"token":"yes","logprob":-0.01}],"tokens":["yes"],"token_logprobs":[-0.01]}}],'
    b'"usage":{"prompt_tokens":3,"completion_tokens":1}}'
)


def _h11_requests(data: bytes) -> list[tuple[bytes, bytes, bytes]] | None:
    """Requests as a strict reader sees them: method, target, body; None if it refuses what it is sent."""
    reader, found = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20), []
    reader.receive_data(data)
    request, body = None, b""
    try:
        while True:
            event = reader.next_event()
            if isinstance(event, h11.Request):
                request, body = event, b""
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                found.append((request.method, request.target, body))
                reader.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
                if reader.their_state is h11.MIGHT_SWITCH_PROTOCOL or request.method == b"CONNECT":
                    return found
                reader.send(h11.EndOfMessage())
                if reader.our_state is not h11.DONE:
                    return found
                reader.start_next_cycle()
            else:
                return found
    except h11.RemoteProtocolError:
        return None


def check_requests(data: bytes, places: list[int]) -> None:
    """Bytes are answered, refused or waited for; what is read is what a strict reader reads, however it is cut."""
    echo, wire = serve(cut(data, places))
    whole, _ = serve([data])
    seen = [(request.method, request.path, request.body) for request in echo.requests]
    assert seen == [(request.method, request.path, request.body) for request in whole.requests]
    if b"HEAD" not in data:
        for status in _statuses(wire.written):
            assert status == 200 or 400 <= status < 500
    strict = _h11_requests(data)
    if strict is not None:
        known = [(method, target.partition(b"?")[0], body) for method, target, body in strict]
        # Either may stop sooner: at a refusal, an upgrade, or a close that was asked for. What both read must agree.
        for ours, theirs in zip(seen, known, strict=False):
            parts = 2 if ours[0] == b"CONNECT" else 3  # which has no body, whatever its headers say
            assert ours[:parts] == theirs[:parts]


def _statuses(written: bytes) -> list[int]:
    return [status for status, _ in _responses(written, [b"POST"] * (written.count(b"HTTP/1.1 ") + 1)) if status != 100]


def _responses(written: bytes, methods: list[bytes]) -> list[tuple[int, bytes]]:
    """The answers that were written, as a strict client reads them."""
    found: list[tuple[int, bytes]] = []
    rest = written
    for method in methods:
        if not rest:
            break
        reader = h11.Connection(h11.CLIENT, max_incomplete_event_size=2**24)
        reader.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
        reader.send(h11.EndOfMessage())
        reader.receive_data(rest)
        status, body = 0, b""
        while True:
            event = reader.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            elif event is h11.NEED_DATA:
                reader.receive_data(b"")  # the end of the connection
        found.append((status, body))
        rest = reader.trailing_data[0]
    return found


def check_answer(data: bytes, places: list[int]) -> None:
    """An answer is taken or is a fault, once; what is taken is what a strict client reads."""

    async def hear(parts: list[bytes]) -> Sink:
        upstream, sink, wire = Upstream("127.0.0.1:1"), Sink(), Wire()
        call = Call(upstream, b"", sink)
        call.connection_made(wire)  # type: ignore[arg-type]
        for part in parts:
            if not wire.closed:
                call.data_received(part)
        call.connection_lost(None)
        assert not upstream.idle
        return sink

    sink = asyncio.run(hear(cut(data, places)))
    assert sink.heard
    assert sink.heard[-1] == "end" or isinstance(sink.heard[-1], Fault)
    assert len(sink.heard) <= 2
    whole = asyncio.run(hear([data]))
    if whole.heard[-1] == "end" and sink.heard[-1] == "end":
        assert (sink.heard, sink.body) == (whole.heard, whole.body)
        try:
            ((status, body),) = _responses(data, [b"POST"])
        except (h11.RemoteProtocolError, ValueError):
            return
        if status == sink.heard[0]:
            assert body == sink.body


class _Server:
    """Whoever the router connects to from now on, in the running loop: its answer is known beforehand."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.wires: list[Wire] = []
        asyncio.get_running_loop().create_connection = self._connect  # type: ignore[method-assign, assignment]

    @property
    def requests(self) -> list[bytes]:
        """What it was sent, by connection."""
        return [wire.written for wire in self.wires]

    async def _connect(self, factory: Callable[[], asyncio.Protocol], *_: object, **__: object) -> None:
        call, wire = factory(), Wire()
        self.wires.append(wire)
        call.connection_made(wire)  # type: ignore[arg-type]

        def answer() -> None:
            if not wire.closed:
                call.data_received(self.answer)
            call.connection_lost(None)

        asyncio.get_running_loop().call_soon(answer)


def _node(answer: bytes) -> tuple[Node, _Server]:
    """A router of the first of two stages, all of whose calls get the same answer."""
    node = Node(
        RouterConfig(stage="small", replica="s", engine="127.0.0.1:1", admin="127.0.0.1:1"), PeerSecrets([b"x" * 16])
    )
    stages = [
        StagePolicy(
            name=name, served_model_name=f"m-{name}", threshold=threshold,
            capabilities=["tools", "images", "json-schema"],
            endpoints=[Endpoint(replica=name[0], address="127.0.0.1:1")],
        )
        for name, threshold in (("small", 0.5), ("large", None))
    ]  # fmt: skip
    node.policies.take(
        encode_policy(RouterPolicy(cascade="chat", policy_revision=1, plan_id="p", stages=stages)), "fuzz"
    )
    assert node.own is not None
    node.own.ready = True
    return node, _Server(answer)


async def _ask(port: ClientPort | PeerPort, request: Request) -> bytes:
    wire = Wire()
    connection = ServerConnection(port, Limits(), set(), Room())
    connection.connection_made(wire)  # type: ignore[arg-type]
    connection._take(request)
    for turn in range(_TURNS):
        await asyncio.sleep(0)
        if not connection._busy:
            break
        if turn == _TURNS - 2:
            port.node.tick()
    assert not connection._busy or wire.closed, "every request is answered"
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not port.node.exchanges
    connection.connection_lost(None)
    return wire.written


def _whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def _request(path: bytes, body: bytes, headers: dict[bytes, bytes] | None = None) -> Request:
    return Request.parsed(b"POST", path, dict(headers or {}), body, 0.0, keep_alive=True)


def check_body(path: bytes, body: bytes) -> None:
    """Any body gets an answer or a 4xx in OpenAI's shape; what engines are sent is clean HTTP with clean JSON."""

    async def run() -> None:
        node, server = _node(_whole(GOOD_ANSWER))
        request = _request(path, body, {b"authorization": b"Bearer secret-of-a-client"})
        request.arrived = asyncio.get_running_loop().time()
        written = await _ask(ClientPort(node), request)
        ((status, said),) = _responses(written, [b"POST"])
        assert status == 200 or 400 <= status < 500, (status, said)
        if status != 200:
            assert set(json.loads(said)["error"]) == {"message", "type", "param", "code"}
            said.decode()
        for sent in server.requests:
            assert b"secret-of-a-client" not in sent
            read = _h11_requests(sent)
            assert read is not None
            ((method, target, inner),) = read
            assert method == b"POST"
            assert target in {b"/v1/chat/completions", b"/v1/completions"}
            json.loads(inner)

    asyncio.run(run())


def check_engine(body: bytes, answer: bytes) -> None:
    """Whatever an engine or a router answers, the client gets clean HTTP."""

    async def run() -> None:
        node, _ = _node(answer)
        request = _request(b"/v1/chat/completions", body)
        request.arrived = asyncio.get_running_loop().time()
        written = await _ask(ClientPort(node), request)
        ((status, _),) = _responses(written, [b"POST"])
        assert status == 200 or 400 <= status < 500 or status in {502, 503, 504}

    asyncio.run(run())


def check_hop(headers: dict[bytes, bytes], body: bytes) -> None:
    """Nothing unsigned enters at the stage port."""

    async def run() -> None:
        node, server = _node(_whole(GOOD_ANSWER))
        written = await _ask(PeerPort(node), _request(b"/v1/chat/completions", body, headers))
        ((status, _),) = _responses(written, [b"POST"])
        assert status == 401
        assert not server.requests

    asyncio.run(run())
