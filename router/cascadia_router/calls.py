"""The two calls that an exchange makes: to the engine beside this router, and to another router.

Each takes an answer as it arrives and tells its exchange what became of it.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

import msgspec

from cascadia_router.balancing import Replica
from cascadia_router.completion_body import CompletionRequest, Usage
from cascadia_router.decision import Spent
from cascadia_router.event_stream import KEEP_ALIVE, GatedStream, HeldStream, StraightStream
from cascadia_router.http1_client import Call, Fault
from cascadia_router.http1_head import header_fields
from cascadia_router.node import Node
from cascadia_router.openai_errors import DEADLINE_CODE, ERROR_EVENT
from cascadia_router.policy_store import Cascade
from cascadia_router.signing import Hop
from cascadia_router.stage import Stage
from cascadia_router.whole_answer import WholeAnswer

__all__ = ["Asker", "EngineCall", "PeerCall", "remaining_for_peer"]

MAX_HELD_BYTES: Final = 64 * 1024 * 1024
"""Largest answer that is held whole; a larger one is a fault of the engine."""

_RETURN_SECONDS: Final = 0.5
_RETURN_SHARE: Final = 0.1
"""What a router further along is given less: its best answer must be back when our deadline passes, service s."""

_RELAYED_HEADERS = (
    b"content-type",
    b"retry-after",
    b"x-cascadia-stage",
    b"x-cascadia-score",
    b"x-cascadia-path",
    b"x-cascadia-plan",
    b"x-cascadia-reason",
    b"x-cascadia-ladder",
    b"x-request-id",
)
_STAGE_LINE: Final = b"\r\nx-cascadia-stage: "
_STAGE_MARK = b'"cascadia":{"stage":"'


def remaining_for_peer(remaining: float) -> float:
    """Time that another router is given of what remains to our deadline, service s."""
    return remaining - min(_RETURN_SECONDS, remaining * _RETURN_SHARE)


class Asker(Protocol):
    """The request that a call is made for: an `Exchange`."""

    __slots__ = ()

    cascade: Cascade
    deadline: float
    end: int
    escalations_left: int
    lost: int
    node: Node
    path: tuple[str, ...]
    pinned: bool
    request: CompletionRequest
    request_id: str
    spent: tuple[Spent, ...]

    def traced_lines(self) -> bytes:
        """Header lines that go with the request."""

    def is_answered_by(self, stage: str) -> None:
        """A peer has told which stage's answer is coming."""

    def judge(self, answer: WholeAnswer | HeldStream) -> None:
        """The engine has answered."""

    def judge_beginning(self, stream: GatedStream) -> None:
        """The first tokens of the engine's stream are there: to be opened, or dropped."""

    def relay_events(self, data: bytes) -> None:
        """Events of the engine's stream are to go on."""

    def straight_stream_ended(self, stream: StraightStream | GatedStream) -> None:
        """The engine's stream is complete as far as HTTP goes."""

    def refused_by_engine(self, status: int, body: bytes) -> None:
        """The engine found the request wrong (4xx)."""

    def relay(self, status: int, head: bytes, length: int | None, data: bytes) -> None:
        """Bytes of a peer's answer are to go on."""

    def relay_whole(self, message: bytes, body: bytes, stage: bytes) -> None:
        """A peer's whole 200 answer of a stage is to go on."""

    def relay_end(self, status: int, head: bytes, length: int | None, data: bytes) -> None:
        """A peer's answer is complete."""

    def call_failed(self, fault: Fault, *, status: int = 0, lost: int = 0) -> None:
        """The call failed."""


class _UpstreamCall:
    """What both calls have in common: the connection that carries them."""

    __slots__ = ("_call", "_exchange", "_parts", "_status")

    def __init__(self, exchange: Asker) -> None:
        self._exchange = exchange
        self._call: Call | None = None

    @property
    def reused(self) -> bool:
        """Whether it went over a kept connection, which the other side may have been closing."""
        return self._call is not None and self._call.reused

    def abort(self) -> None:
        """Close the connection: the other side then stops its work."""
        if self._call is not None:
            self._call.abort()

    def pause(self) -> None:
        """Read no further."""
        if self._call is not None:
            self._call.pause()

    def resume(self) -> None:
        """Read on."""
        if self._call is not None:
            self._call.resume()

    def response_fault(self, fault: Fault) -> None:
        """See `ResponseSink`."""
        self._exchange.call_failed(fault)


class EngineCall(_UpstreamCall):
    """A call to the engine beside this router.

    Args:
        exchange: The request.
        stage: The router's own stage, by the policy that governs the request.
        final: Whether the answer is accepted whatever it is: it then needs no score, and a stream
            goes straight through.
    """

    __slots__ = ("_final", "_size", "_stage", "_stream")

    def __init__(self, exchange: Asker, stage: Stage, *, final: bool) -> None:
        self._exchange = exchange
        self._call = None
        self._stage = stage
        self._final = final

    def carry_on(self, call: Call) -> None:
        """Take what is still to come of the answer to a request that was sent already."""
        self._call = call
        call.hand_to(self)

    def start(self, replica: Replica, *, fresh: bool = False) -> None:
        """Send the request."""
        exchange, upstream = self._exchange, replica.upstream
        request = exchange.request
        needed = 0 if self._final else exchange.cascade.scorer.logprobs
        body = request.for_engine(self._stage.served_model, score=needed > 0, candidates=needed if needed > 1 else 0)
        message = b"POST %s HTTP/1.1\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n%s" % (
            request.path,
            upstream.host_line,
            len(body),
            exchange.traced_lines(),
            body,
        )
        self._call = upstream.send(message, self, fresh=fresh)

    def response_whole(self, message: bytes, body: bytes) -> None:
        """See `ResponseSink`."""
        if self._exchange.request.stream:
            self.response_head(200, header_fields(message), len(body))
            self.response_body(body)
            self.response_end()
            return
        self._judge(body)

    def _candidates(self) -> int | None:
        """How many candidates a token the client asked for, if the engine was asked for more."""
        request, needed = self._exchange.request, self._exchange.cascade.scorer.logprobs
        if self._final or needed < 2 or not request.wants_logprobs:
            return None
        return asked if (asked := request.candidates) < needed else None

    def _judge(self, body: bytes) -> None:
        exchange = self._exchange
        try:
            answer = WholeAnswer(
                body,
                exchange.request.wants_logprobs,
                exchange.cascade.gate_tokens,
                candidates=self._candidates(),
            )
        except (msgspec.DecodeError, UnicodeDecodeError):
            exchange.call_failed(Fault.MALFORMED)
            return
        exchange.judge(answer)

    def response_head(self, status: int, headers: dict[bytes, bytes], length: int | None) -> None:  # noqa: ARG002
        """See `ResponseSink`."""
        self._status = status
        self._parts: list[bytes] = []
        self._size = 0
        self._stream: HeldStream | StraightStream | None = None
        request = self._exchange.request
        if status == 200 and request.stream and headers.get(b"content-type", b"").startswith(b"text/event-stream"):
            if self._final:
                self._stream = StraightStream(wants_usage=request.wants_usage, decide=self._decide)
            else:
                self._stream = self._held(request)

    def _held(self, request: CompletionRequest) -> HeldStream:
        usage, logprobs = request.wants_usage, request.wants_logprobs
        cascade, candidates = self._exchange.cascade, self._candidates()
        first, margins = cascade.gate_tokens, cascade.scorer.logprobs > 1
        if first is None:
            return HeldStream(wants_usage=usage, wants_logprobs=logprobs, margins=margins, candidates=candidates)
        return GatedStream(
            wants_usage=usage,
            wants_logprobs=logprobs,
            first=first,
            choices=request.choices,
            margins=margins,
            candidates=candidates,
        )

    def _decide(self, usage: Usage | None) -> bytes:
        """The `cascadia` object of an answer that is accepted whatever it is."""
        exchange = self._exchange
        return self._stage.decision(exchange.path).document(None, usage, exchange.spent)

    def response_body(self, data: bytes) -> None:
        """See `ResponseSink`."""
        stream = self._stream
        if isinstance(stream, StraightStream):
            self._parts.append(data)
        elif stream is None:
            self._parts.append(data)
            self._size += len(data)
        else:
            stream.feed(data)
            self._size = stream.size

    def response_pump(self) -> None:
        """See `ResponseSink`."""
        stream = self._stream
        if isinstance(stream, StraightStream):
            self._relay(stream)
        elif isinstance(stream, GatedStream) and (stream.opened or stream.decidable):
            if not stream.opened:
                self._exchange.judge_beginning(stream)
            self._release(stream)
        elif self._size > MAX_HELD_BYTES:
            self.abort()
            self._exchange.call_failed(Fault.MALFORMED)

    def _relay(self, stream: StraightStream) -> None:
        parts = self._parts
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        out = stream.feed(data)
        if out:
            self._exchange.relay_events(out)

    def _release(self, stream: GatedStream) -> None:
        out = stream.released() if stream.opened else b""
        if out:
            self._exchange.relay_events(out)

    def response_end(self) -> None:
        """See `ResponseSink`."""
        exchange, stream = self._exchange, self._stream
        if isinstance(stream, StraightStream):
            self._relay(stream)
            exchange.straight_stream_ended(stream)
        elif isinstance(stream, GatedStream) and stream.opened:
            self._release(stream)
            exchange.straight_stream_ended(stream)
        elif stream is not None:
            self._held_stream_ended(stream)
        elif self._status == 200:
            self._judge(b"".join(self._parts))
        elif 400 <= self._status < 500:
            exchange.refused_by_engine(self._status, b"".join(self._parts))
        else:  # 204 and redirects, too, are no answer to a completion
            exchange.call_failed(Fault.STATUS, status=self._status)

    def _held_stream_ended(self, stream: HeldStream) -> None:
        if stream.failed:
            self._exchange.call_failed(Fault.STATUS)
        elif stream.unreadable:
            self._exchange.call_failed(Fault.MALFORMED)
        elif not stream.done:
            self._exchange.call_failed(Fault.BROKEN)
        else:
            self._exchange.judge(stream)


class PeerCall(_UpstreamCall):
    """A call to another router, whose answer is relayed byte for byte."""

    __slots__ = ("_begun", "_head", "_length", "_lost", "_stage", "_tail", "_usable")

    def __init__(self, exchange: Asker, stage: Stage) -> None:
        super().__init__(exchange)
        self._stage = stage

    def start(self, replica: Replica, *, fresh: bool = False) -> None:
        """Send the original body with a signed hop."""
        exchange = self._exchange
        request, stages = exchange.request, exchange.cascade.stages
        hop = Hop(
            exchange.request_id,
            exchange.cascade.revision,
            exchange.cascade.policy.plan_id,
            self._stage.name,
            exchange.path,
            exchange.escalations_left,
            remaining_for_peer(exchange.deadline - exchange.node.now()),
            time.time(),
            exchange.pinned,
            exchange.lost,
            "" if exchange.end == len(stages) else stages[exchange.end - 1].name,
            exchange.spent,
            rung=exchange.cascade.rung,
        )
        message = b"POST %s HTTP/1.1\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n%s%s\r\n%s" % (
            request.path,
            replica.upstream.host_line,
            len(request.body),
            exchange.node.secrets.sign(hop, request.path, request.body),
            exchange.traced_lines(),
            request.body,
        )
        self._call = replica.upstream.send(message, self, fresh=fresh)

    def response_whole(self, message: bytes, body: bytes) -> None:
        """See `ResponseSink`."""
        line = message.find(_STAGE_LINE, 0, len(message) - len(body))
        if line >= 0 and not self._exchange.request.stream:
            name = line + len(_STAGE_LINE)
            self._exchange.relay_whole(message, body, message[name : message.index(b"\r", name)])
            return
        self.response_head(200, header_fields(message), len(body))
        self._parts.append(body)
        self.response_end()

    def response_head(self, status: int, headers: dict[bytes, bytes], length: int | None) -> None:
        """See `ResponseSink`."""
        self._status = status
        self._head = b""
        self._length: int | None = None
        self._parts: list[bytes] = []
        self._lost = 0
        self._begun = False
        self._tail: bytes | None = None
        stage = headers.get(b"x-cascadia-stage")
        # A 4xx that no engine gave is between routers (a wrong secret, a limit): not the client's. Nor is a redirect.
        self._usable = status == 200 or (400 <= status < 500 and status != 429 and stage is not None)
        if not self._usable:
            lost = headers.get(b"x-cascadia-lost", b"0")
            self._lost = int(lost) if lost.isdigit() else 0
            return
        self._head = b"".join(b"%s: %s\r\n" % (name, headers[name]) for name in _RELAYED_HEADERS if name in headers)
        self._length = length
        if stage is not None:
            self._exchange.is_answered_by(stage.decode("ascii", "replace"))
        else:
            self._tail = b""

    def response_body(self, data: bytes) -> None:
        """See `ResponseSink`."""
        if self._usable:
            self._parts.append(data)

    def response_pump(self) -> None:
        """See `ResponseSink`."""
        if self._parts:
            data, self._parts = b"".join(self._parts), []
            data = self._after_comments(data)
            if self._failed(data):
                return
            if data:
                self._begun = True
                self._keep_tail(data)
                self._exchange.relay(self._status, self._head, self._length, data)

    def _after_comments(self, data: bytes) -> bytes:
        """Relay the comments before a stream's answer; return what follows them."""
        while not self._begun and data.startswith(KEEP_ALIVE):
            self._exchange.relay(self._status, self._head, self._length, KEEP_ALIVE)
            data = data[len(KEEP_ALIVE) :]
        return data

    def _failed(self, data: bytes) -> bool:
        """Whether nothing but comments came before these bytes, and they say that no answer will."""
        if self._begun or self._status != 200 or not data.startswith(ERROR_EVENT):
            return False
        self.abort()
        late = DEADLINE_CODE in data
        self._exchange.call_failed(Fault.STATUS, status=504 if late else 502)
        return True

    def response_end(self) -> None:
        """See `ResponseSink`."""
        exchange = self._exchange
        if not self._usable:
            exchange.call_failed(Fault.STATUS, status=self._status, lost=self._lost)
            return
        data = self._after_comments(b"".join(self._parts))
        if self._failed(data):
            return
        self._keep_tail(data)
        if self._tail is not None:
            mark = self._tail.rfind(_STAGE_MARK)
            if mark >= 0:
                name = self._tail[mark + len(_STAGE_MARK) :].partition(b'"')[0]
                exchange.is_answered_by(name.decode("utf-8", "replace"))
        exchange.relay_end(self._status, self._head, self._length, data)

    def _keep_tail(self, data: bytes) -> None:
        """Keep the end of a stream whose headers left before its decision, to learn who answered."""
        if self._tail is not None:
            self._tail = (self._tail + data)[-4096:]
