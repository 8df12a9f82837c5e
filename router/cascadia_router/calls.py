"""The two calls that an exchange makes: to the engine beside this router, and to another router.

Each takes an answer as it arrives and tells its exchange what became of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import msgspec

from cascadia_router.balancing import Replica
from cascadia_router.completion_body import Answer, Usage, read_answer, strip_logprobs, with_field
from cascadia_router.event_stream import HeldStream, StraightStream
from cascadia_router.http1_client import Call, Fault
from cascadia_router.policy_store import Stage
from cascadia_router.scoring import TokenTally, score_of
from cascadia_router.signing import Hop, sign

if TYPE_CHECKING:
    from cascadia_router.exchange import Exchange

__all__ = ["EngineCall", "PeerCall", "WholeAnswer"]

MAX_HELD_BYTES = 64 * 1024 * 1024
"""Largest answer that is held whole; a larger one is a fault of the engine."""

_RELAYED_HEADERS = (
    b"content-type",
    b"retry-after",
    b"x-cascadia-stage",
    b"x-cascadia-score",
    b"x-cascadia-path",
    b"x-cascadia-plan",
    b"x-request-id",
)
_STAGE_MARK = b'"cascadia":{"stage":"'


class WholeAnswer:
    """An answer that came in one piece, held until it is judged.

    Attributes:
        usage: The engine's count of tokens.
    """

    __slots__ = ("_answer", "_document", "_wants_logprobs", "usage")

    def __init__(self, document: bytes, *, wants_logprobs: bool) -> None:
        """Read the answer.

        Raises:
            msgspec.DecodeError: It is not an answer.
        """
        self._document = document
        self._answer: Answer = read_answer(document)
        self._wants_logprobs = wants_logprobs
        if not self._answer.choices:
            raise msgspec.ValidationError("the answer has no choices")
        self.usage: Usage | None = self._answer.usage

    def score(self, statistic: Literal["Mean", "Minimum"]) -> float | None:
        """Score of the answer; None if it cannot be scored."""
        tallies = []
        for choice in self._answer.choices:
            tally = TokenTally()
            try:
                tally.add(choice.logprobs)
            except msgspec.DecodeError:
                return None
            tallies.append(tally)
        return score_of(tallies, statistic)

    def replay(self, decision: bytes) -> bytes:
        """The body to send, decision included."""
        document = self._document if self._wants_logprobs else strip_logprobs(self._document, self._answer)
        return with_field(document, b"cascadia", decision)


class EngineCall:
    """A call to the engine beside this router.

    Args:
        exchange: The request.
        stage: The router's own stage, by the policy that governs the request.
        final: Whether the answer is accepted whatever it is: it then needs no score, and a stream
            goes straight through.
    """

    __slots__ = (
        "_body",
        "_call",
        "_content_type",
        "_decision",
        "_exchange",
        "_final",
        "_parts",
        "_size",
        "_status",
        "_stream",
    )

    def __init__(self, exchange: Exchange, stage: Stage, *, final: bool) -> None:
        self._exchange = exchange
        self._final = final
        self._body = exchange.request.for_engine(stage.served_model, score=not final)
        self._call: Call | None = None
        self._restart()

    def _restart(self) -> None:
        self._status = 0
        self._content_type = b""
        self._parts: list[bytes] = []
        self._size = 0
        self._stream: HeldStream | StraightStream | None = None
        self._decision = b""

    def start(self, replica: Replica, *, fresh: bool = False) -> None:
        """Send the request."""
        self._restart()
        exchange = self._exchange
        head = b"POST %s HTTP/1.1\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n" % (
            exchange.request.path,
            replica.upstream.host_line,
            len(self._body),
            exchange.traced_lines(),
        )
        self._call = replica.upstream.send(head + self._body, self, fresh=fresh)

    @property
    def reused(self) -> bool:
        """Whether it went over a kept connection, which the engine may have been closing."""
        return self._call is not None and self._call.reused

    def abort(self) -> None:
        """Close the connection: the engine then stops its work."""
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

    def response_head(self, status: int, headers: dict[bytes, bytes], length: int | None) -> None:  # noqa: ARG002
        """See `ResponseSink`."""
        self._status = status
        self._content_type = headers.get(b"content-type", b"application/json")
        request = self._exchange.request
        if status == 200 and request.stream and self._content_type.startswith(b"text/event-stream"):
            if self._final:
                self._stream = StraightStream(wants_usage=request.wants_usage)
                self._decision = self._exchange.decision()
            else:
                self._stream = HeldStream(wants_usage=request.wants_usage, wants_logprobs=request.wants_logprobs)

    def response_body(self, data: bytes) -> None:
        """See `ResponseSink`."""
        stream = self._stream
        if stream is None or isinstance(stream, StraightStream):
            self._parts.append(data)
            self._size += len(data)
        else:
            stream.feed(data)
            self._size = stream.size

    def response_pump(self) -> None:
        """See `ResponseSink`."""
        if isinstance(self._stream, StraightStream):
            self._relay(self._stream)
        elif self._size > MAX_HELD_BYTES:
            self.abort()
            self._exchange.call_failed(Fault.MALFORMED)

    def _relay(self, stream: StraightStream) -> None:
        data, self._parts = b"".join(self._parts), []
        out = stream.feed(data, self._decision)
        if out:
            self._exchange.relay_events(out)

    def response_end(self) -> None:
        """See `ResponseSink`."""
        exchange, stream = self._exchange, self._stream
        if isinstance(stream, StraightStream):
            self._relay(stream)
            exchange.straight_stream_ended(stream)
        elif stream is not None:
            self._held_stream_ended(stream)
        elif self._status >= 500:
            exchange.call_failed(Fault.STATUS, status=self._status)
        elif self._status != 200:
            exchange.refused_by_engine(self._status, self._content_type, b"".join(self._parts))
        else:
            try:
                answer = WholeAnswer(b"".join(self._parts), wants_logprobs=exchange.request.wants_logprobs)
            except (msgspec.DecodeError, UnicodeDecodeError):
                exchange.call_failed(Fault.MALFORMED)
                return
            exchange.judge(answer)

    def _held_stream_ended(self, stream: HeldStream) -> None:
        if stream.failed:
            self._exchange.call_failed(Fault.STATUS)
        elif stream.unreadable:
            self._exchange.call_failed(Fault.MALFORMED)
        elif not stream.done:
            self._exchange.call_failed(Fault.BROKEN)
        else:
            self._exchange.judge(stream)

    def response_fault(self, fault: Fault) -> None:
        """See `ResponseSink`."""
        self._exchange.call_failed(fault)


class PeerCall:
    """A call to another router, whose answer is relayed byte for byte."""

    __slots__ = ("_call", "_exchange", "_head", "_length", "_lost", "_parts", "_stage", "_status", "_tail", "_usable")

    def __init__(self, exchange: Exchange, stage: Stage) -> None:
        self._exchange = exchange
        self._stage = stage
        self._call: Call | None = None
        self._restart()

    def _restart(self) -> None:
        self._status = 0
        self._head = b""
        self._length: int | None = None
        self._parts: list[bytes] = []
        self._usable = False
        self._lost = 0
        self._tail: bytes | None = None

    def start(self, replica: Replica, *, fresh: bool = False) -> None:
        """Send the original body with a signed hop."""
        self._restart()
        exchange = self._exchange
        request = exchange.request
        hop = Hop(
            request_id=exchange.request_id,
            revision=exchange.cascade.revision,
            plan_id=exchange.cascade.policy.plan_id,
            stage=self._stage.name,
            path=exchange.path,
            escalations_left=exchange.escalations_left,
            remaining=exchange.deadline - exchange.node.now(),
            signed_at=time.time(),
            pinned=exchange.pinned,
            lost=exchange.lost,
        )
        head = b"POST %s HTTP/1.1\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n%s%s\r\n" % (
            request.path,
            replica.upstream.host_line,
            len(request.body),
            sign(hop, request.body, exchange.node.secret),
            exchange.traced_lines(),
        )
        self._call = replica.upstream.send(head + request.body, self, fresh=fresh)

    @property
    def reused(self) -> bool:
        """Whether it went over a kept connection, which the peer may have been closing."""
        return self._call is not None and self._call.reused

    def abort(self) -> None:
        """Close the connection: the peer then stops its work."""
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

    def response_head(self, status: int, headers: dict[bytes, bytes], length: int | None) -> None:
        """See `ResponseSink`."""
        self._status = status
        stage = headers.get(b"x-cascadia-stage")
        # A 4xx that no engine gave is between routers (a wrong secret, a limit): not the client's.
        self._usable = status < 500 and status != 429 and (status < 400 or stage is not None)
        if not self._usable:
            lost = headers.get(b"x-cascadia-lost", b"0")
            self._lost = int(lost) if lost.isdigit() else 0
            return
        self._head = b"".join(b"%s: %s\r\n" % (name, headers[name]) for name in _RELAYED_HEADERS if name in headers)
        self._length = length
        if stage is not None:
            self._exchange.answered_by = stage.decode("ascii", "replace")
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
            self._keep_tail(data)
            self._exchange.relay(self._status, self._head, self._length, data)

    def response_end(self) -> None:
        """See `ResponseSink`."""
        exchange = self._exchange
        if not self._usable:
            exchange.call_failed(Fault.STATUS, status=self._status, lost=self._lost)
            return
        data = b"".join(self._parts)
        self._keep_tail(data)
        if self._tail is not None:
            mark = self._tail.rfind(_STAGE_MARK)
            if mark >= 0:
                name = self._tail[mark + len(_STAGE_MARK) :].partition(b'"')[0]
                exchange.answered_by = name.decode("utf-8", "replace")
        exchange.relay_end(self._status, self._head, self._length, data)

    def _keep_tail(self, data: bytes) -> None:
        """Keep the end of a stream whose headers left before its decision, to learn who answered."""
        if self._tail is not None:
            self._tail = (self._tail + data)[-1024:]

    def response_fault(self, fault: Fault) -> None:
        """See `ResponseSink`."""
        self._exchange.call_failed(fault)
