"""A call to another router: a signed hop, whose answer goes on byte for byte."""

from __future__ import annotations

import time
from typing import Final

from cascadia_router.balancing import Replica
from cascadia_router.calls import Asker, UpstreamCall
from cascadia_router.event_stream import KEEP_ALIVE
from cascadia_router.http1_head import header_fields
from cascadia_router.openai_errors import DEADLINE_CODE, ERROR_EVENT
from cascadia_router.response_sink import Fault
from cascadia_router.signing import Hop
from cascadia_router.stage import Stage

__all__ = ["PeerCall", "remaining_for_peer"]

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


class PeerCall(UpstreamCall):
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
