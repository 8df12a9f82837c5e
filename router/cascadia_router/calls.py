"""What the two calls that an exchange makes have in common: who makes them, and the connection that carries them."""

from __future__ import annotations

from typing import Protocol

from cascadia_router.completion_body import CompletionRequest
from cascadia_router.decision import Spent
from cascadia_router.event_stream import GatedStream, HeldStream, StraightStream
from cascadia_router.http1_client import Call
from cascadia_router.node import Node
from cascadia_router.policy_store import Cascade
from cascadia_router.response_sink import Fault
from cascadia_router.whole_answer import WholeAnswer

__all__ = ["Asker", "UpstreamCall"]


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


class UpstreamCall:
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
