"""The client's half of an exchange: what has been sent so far decides what can still be sent.

Three states: nothing has left; the head of a stream and comments have (`committed`), so that an error can
only be an event, but any stage may still answer; some of the answer has (`begun`), so that a failure can
only interrupt it.
"""

from __future__ import annotations

from cascadia_router.event_stream import KEEP_ALIVE
from cascadia_router.http1_request import JSON, Answering
from cascadia_router.node import Node
from cascadia_router.openai_errors import error_body, error_event

__all__ = ["Reply"]

_EVENT_STREAM = b"content-type: text/event-stream\r\ncache-control: no-cache\r\n"


class Reply:
    """The answer to one request.

    Args:
        node: The router.
        connection: Where the request came from.
        traced: Header lines that every answer to it carries.
        stream: Whether a stream was asked for.
        to_peer: Whether a router asked, not a client.
        arrived: Service time of its first byte (monotonic), s.

    Attributes:
        committed: See this module.
        begun: See this module.
        first_byte: Service time at which the answer began, s; 0 before.
        slow: Whether the client reads more slowly than is written.
    """

    __slots__ = (
        "_connection",
        "_heard_at",
        "_mid_event",
        "_node",
        "_to_peer",
        "_traced",
        "begun",
        "committed",
        "first_byte",
        "slow",
        "stream",
    )

    def __init__(
        self,
        node: Node,
        connection: Answering,
        traced: bytes,
        *,
        stream: bool,
        to_peer: bool,
        arrived: float,
    ) -> None:
        self._node = node
        self._connection = connection
        self._to_peer = to_peer
        self._traced = traced
        self._heard_at = arrived  # when the client last heard of us
        self._mid_event = False  # a relayed event is cut where the last bytes ended
        self.stream = stream
        self.committed = False
        self.begun = False
        self.first_byte = 0.0
        self.slow = False

    def whole(self, body: bytes, head: bytes) -> None:
        """Send an answer that came in one piece."""
        self._note_first_byte()
        if self.committed:  # a stream was asked for and announced, but the engine does not stream
            self._connection.end(b"data: %s\n\ndata: [DONE]\n\n" % body)
        else:
            self._connection.respond(200, body, head=self._traced + head)

    def replay(self, events: bytes, head: bytes) -> None:
        """Send a stream that was held."""
        self._note_first_byte()
        if not self.committed:
            self._connection.begin(200, _EVENT_STREAM + self._traced + head, None)
        self._connection.end(events)

    def begin_events(self, data: bytes, head: bytes) -> None:
        """Send the first events of a stream that goes on as it comes; the connection takes the others."""
        self._note_first_byte()
        self.begun = True
        if not self.committed:
            self._connection.begin(200, _EVENT_STREAM + self._traced + head, None)
        self._connection.send(data)

    def events_end(self) -> None:
        """The stream is complete."""
        self._connection.end()

    def relay(self, status: int, head: bytes, length: int | None, data: bytes) -> None:
        """Send bytes of a peer's answer as they come."""
        if not self.begun:
            if self.committed and status != 200:
                return  # an error's body, which `relay_end` turns into an event
            if not self.committed:
                self._connection.begin(status, head, length)
            if data == KEEP_ALIVE:  # nothing of an answer: another peer may still give one
                self.committed = True
            else:
                self._note_first_byte()
                self.begun = True
        self._mid_event = not data.endswith(b"\n\n")
        self._connection.send(data)

    def relay_end(self, status: int, head: bytes, length: int | None, data: bytes) -> None:
        """A peer's answer is complete with these bytes."""
        if self.committed and not self.begun and status != 200:
            self._connection.end(error_event(data))
            return
        self._note_first_byte()
        if not (self.begun or self.committed):
            self._connection.begin(status, head, len(data) if length is None else length)
        self._connection.end(data)

    def refuse(self, status: int, body: bytes, head: bytes) -> None:
        """Pass on what the engine says of a wrong request."""
        if self.committed:
            self._connection.end(error_event(body))
        else:
            self._connection.respond(status, body, head=self._traced + head)

    def fail(self, status: int, message: str, code: str, *, lost: int) -> None:
        """Say that there is no answer.

        Args:
            status: HTTP status.
            message: For people.
            code: For programs.
            lost: Engines and routers lost over the request here and further on, for a peer to count.
        """
        body = error_body(status, message, code=code)
        if self.committed:
            self._connection.end(error_event(body))
            return
        head = self._traced
        if status == 503:
            head += b"retry-after: 1\r\n"
        if self._to_peer:
            head += b"x-cascadia-lost: %d\r\n" % lost
        self._connection.respond(status, body, head=head, content_type=JSON)

    def interrupt(self, message: str) -> None:
        """End an answer of which some has left: with an event for a client, by breaking off for a peer."""
        if self.stream and not self._to_peer:
            event = error_event(error_body(502, message, code="interrupted"))
            self._connection.close_after_answer()
            self._connection.end(b"\n\n" + event if self._mid_event else event)
        else:
            self._connection.break_off()

    def keep_alive(self, now: float, every: float) -> None:
        """Send a comment if the client of a held stream has heard nothing for long.

        Args:
            now: Service time (monotonic), s.
            every: How long is long, service s.
        """
        if now - self._heard_at < every:
            return
        self._heard_at = now
        if not self.committed:
            self.committed = True
            self._connection.begin(200, _EVENT_STREAM + self._traced, None)
        self._connection.send(KEEP_ALIVE)

    def _note_first_byte(self) -> None:
        if not self.first_byte:
            self.first_byte = self._node.now()
