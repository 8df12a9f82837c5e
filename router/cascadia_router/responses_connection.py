"""The connection of a request to `/v1/responses`, as the router's inside sees it: one for a chat completion.

What comes of the chat completion, whole or in pieces, is told on as a response; errors before the first byte
have the same shape in both APIs and pass as they are.
"""

from __future__ import annotations

import secrets
import time

import msgspec

from cascadia_router.http1_head import header_fields
from cascadia_router.http1_request import JSON, Answering, InFlight
from cascadia_router.openai_errors import error_body
from cascadia_router.responses_answer import ResponseBuilder, read_chunk
from cascadia_router.responses_request import ResponsesRequest

__all__ = ["ResponsesConnection"]

_EVENT_STREAM = b"content-type: text/event-stream\r\ncache-control: no-cache\r\n"
_BROKEN_OFF = "The answer broke off: its server was lost."


class ResponsesConnection:
    """Tells the answer to a chat completion on as a response.

    Args:
        connection: Where the request came from.
        request: As translated.
    """

    def __init__(self, connection: Answering, request: ResponsesRequest) -> None:
        self._connection = connection
        self._stream = request.stream
        self._builder = ResponseBuilder(request.echo, secrets.token_hex(16), int(time.time()))
        self._status = 200
        self._head = b""
        self._streaming = False  # events are being sent
        self._held: list[bytes] = []  # pieces of a body that is told on when it is whole
        self._tail = b""  # the beginning of an event

    @property
    def in_flight(self) -> InFlight | None:
        """See `Answering`."""
        return self._connection.in_flight

    @in_flight.setter
    def in_flight(self, value: InFlight | None) -> None:
        self._connection.in_flight = value

    @property
    def own_lines(self) -> bytes:
        """See `Answering`."""
        return self._connection.own_lines

    @own_lines.setter
    def own_lines(self, value: bytes) -> None:
        self._connection.own_lines = value

    # -- answers in one piece ---------------------------------------------------------------------

    def respond(self, status: int, body: bytes, head: bytes = b"", content_type: bytes = JSON) -> None:
        """See `Answering`."""
        if status != 200:
            self._connection.respond(status, body, head, content_type)
            return
        try:
            answer = read_chunk(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._connection.respond(502, error_body(502, "The engine's answer is none.", code="upstream_failed"), head)
            return
        if self._stream:  # the engine does not stream
            self._connection.begin(200, _EVENT_STREAM + head, None)
            self._connection.end(self._builder.take(answer) + self._builder.end())
        else:
            self._connection.respond(200, self._builder.whole(answer), head)

    def pass_on(self, message: bytes, body: bytes) -> None:
        """See `Answering`."""
        headers = header_fields(message).items()
        self.respond(200, body, b"".join(b"%s: %s\r\n" % pair for pair in headers if pair[0].startswith(b"x-")))

    # -- answers in pieces ------------------------------------------------------------------------

    def begin(self, status: int, head: bytes, length: int | None) -> None:  # noqa: ARG002 - the length changes
        """See `Answering`."""
        self._streaming = status == 200 and self._stream and b"text/event-stream" in head
        if self._streaming:
            self._connection.begin(status, head, None)
        else:
            self._status = status
            self._head = b"".join(line for line in head.splitlines(True) if not line.startswith(b"content-type:"))

    def send(self, data: bytes) -> None:
        """See `Answering`."""
        if not self._streaming:
            self._held.append(data)
            return
        events = self._told(data)
        if events:
            self._connection.send(events)

    def end(self, data: bytes = b"") -> None:
        """See `Answering`."""
        if not self._streaming:
            self.respond(self._status, b"".join((*self._held, data)), self._head)
            return
        events = self._told(data)
        if not self._builder.ended:
            events += self._builder.fail(_BROKEN_OFF, None)
        self._connection.end(events)

    def close_after_answer(self) -> None:
        """See `Answering`."""
        self._connection.close_after_answer()

    def break_off(self) -> None:
        """See `Answering`."""
        if self._streaming:
            self._connection.break_off()
        else:  # nothing has left
            self._connection.respond(502, error_body(502, _BROKEN_OFF, code="interrupted"), self._head)

    def _told(self, data: bytes) -> bytes:
        """Events of the response for what has come of the chat completion's."""
        *events, self._tail = (self._tail + data).split(b"\n\n")
        return b"".join(self._told_event(event) for event in events)

    def _told_event(self, event: bytes) -> bytes:
        if event.startswith(b":"):
            return self._builder.begin() + event + b"\n\n"  # a comment
        payload = event.strip().removeprefix(b"data:").strip()
        if not payload or self._builder.ended:
            return b""
        if payload == b"[DONE]":
            return self._builder.end()
        try:
            return self._builder.take(read_chunk(payload))
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._builder.fail("The engine's answer cannot be read.", None)
