"""A call to the engine beside this router: its answer is judged, or goes on as it comes."""

from __future__ import annotations

from typing import Final

import msgspec

from cascadia_router.balancing import Replica
from cascadia_router.calls import Asker, UpstreamCall
from cascadia_router.completion_body import CompletionRequest, Usage
from cascadia_router.event_stream import GatedStream, HeldStream, StraightStream
from cascadia_router.http1_client import Call
from cascadia_router.http1_head import header_fields
from cascadia_router.response_sink import Fault
from cascadia_router.stage import Stage
from cascadia_router.whole_answer import WholeAnswer

__all__ = ["EngineCall"]

MAX_HELD_BYTES: Final = 64 * 1024 * 1024
"""Largest answer that is held whole; a larger one is a fault of the engine."""


class EngineCall(UpstreamCall):
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
