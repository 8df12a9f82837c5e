"""The connection of a client of OpenAI's Responses API, as the rest of the router sees it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_router.http1_request import JSON, InFlight
from cascadia_router.responses_connection import ResponsesConnection
from cascadia_router.responses_request import chat_request
from tests.support.responses import delta, parsed


class Wire:
    """What a client's connection is told."""

    in_flight: InFlight | None = None

    def __init__(self) -> None:
        self.status = 0
        self.head = b""
        self.body = b""
        self.ended = self.broken = self.closing = False

    def respond(self, status: int, body: bytes, head: bytes = b"", content_type: bytes = JSON) -> None:
        self.begin(status, head, len(body))
        self.end(body)

    def pass_on(self, message: bytes, body: bytes) -> None:
        raise AssertionError("a chat completion's bytes are no response")

    def begin(self, status: int, head: bytes, length: int | None) -> None:
        assert not self.status
        self.status, self.head = status, head

    def send(self, data: bytes) -> None:
        self.body += data

    def end(self, data: bytes = b"") -> None:
        self.body += data
        self.ended = True

    def close_after_answer(self) -> None:
        self.closing = True

    def break_off(self) -> None:
        self.broken = True


ANSWER = json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}).encode()
SSE = b"content-type: text/event-stream\r\n"
STREAM = b"".join(
    b"data: " + (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n\n"
    for each in (
        delta(content="Hi"),
        delta(content=" ü"),
        delta(finish="stop"),
        {"choices": [], "cascadia": {}},
        b"[DONE]",
    )
)


def connection(*, stream: bool) -> tuple[ResponsesConnection, Wire]:
    wire = Wire()
    request = chat_request(json.dumps({"model": "chat", "input": "hi", "stream": stream}).encode())
    return ResponsesConnection(wire, request), wire


@pytest.mark.parametrize("way", ["respond", "pass_on", "pieces"])
def test_a_whole_answer_is_told_whole(way: str) -> None:
    made, wire = connection(stream=False)
    if way == "respond":
        made.respond(200, ANSWER, b"x-cascadia-stage: s\r\n")
    elif way == "pass_on":
        made.pass_on(
            b"HTTP/1.1 200 OK\r\ncontent-type: a\r\nx-cascadia-stage: s\r\ncontent-length: 9\r\n\r\n" + ANSWER, ANSWER
        )
    else:
        made.begin(200, b"content-type: application/json\r\nx-cascadia-stage: s\r\n", len(ANSWER))
        made.send(ANSWER[:9])
        made.end(ANSWER[9:])
    assert (wire.status, wire.head) == (200, b"x-cascadia-stage: s\r\n")
    assert json.loads(wire.body)["output"][0]["content"][0]["text"] == "Hi"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, len(STREAM)), max_size=5).map(sorted))
def test_a_stream_is_told_the_same_however_it_is_cut(places: list[int]) -> None:
    made, wire = connection(stream=True)
    made.begin(200, SSE, None)
    for start, end in zip([0, *places], [*places, len(STREAM)], strict=True):
        made.send(STREAM[start:end])
    made.end()
    events = parsed(wire.body)
    assert [event["delta"] for event in events if event["type"] == "response.output_text.delta"] == ["Hi", " ü"]
    assert events[-1]["type"] == "response.completed"
    assert wire.ended


def test_comments_go_on_and_come_after_the_first_events() -> None:
    made, wire = connection(stream=True)
    made.begin(200, SSE, None)
    made.send(b": keep-alive\n\n")
    assert [event["type"] for event in parsed(wire.body)] == ["response.created", "response.in_progress"]
    assert wire.body.endswith(b": keep-alive\n\n")
    made.end(STREAM)
    assert parsed(wire.body)[-1]["sequence_number"] == 9


@pytest.mark.parametrize(
    "last",
    [b"", b'data: {"choices": [{"del\n\ndata: {"error": {"message": "lost"}}\n\n', b"data: [1]\n\n", b"data: \xff\n\n"],
)
def test_a_broken_stream_fails_the_response_once(last: bytes) -> None:
    made, wire = connection(stream=True)
    made.begin(200, SSE, None)
    made.send(STREAM[: STREAM.index(b"\n\n") + 2])
    made.close_after_answer()
    made.end(last)
    assert [event["type"] for event in parsed(wire.body)].count("response.failed") == 1
    assert parsed(wire.body)[-1]["type"] == "response.failed"
    assert wire.closing


def test_an_engine_that_does_not_stream_is_told_in_events() -> None:
    made, wire = connection(stream=True)
    made.begin(200, b"content-type: application/json\r\n", len(ANSWER))
    made.end(ANSWER)
    assert b"text/event-stream" in wire.head
    assert parsed(wire.body)[-1]["response"]["output"][0]["content"][0]["text"] == "Hi"


def test_errors_pass_as_they_are() -> None:
    made, wire = connection(stream=True)
    made.respond(429, b'{"error": 1}', b"retry-after: 1\r\n")
    assert (wire.status, wire.head, wire.body) == (429, b"retry-after: 1\r\n", b'{"error": 1}')
    made, wire = connection(stream=False)
    made.begin(400, b"content-type: application/json\r\nx-a: b\r\n", None)
    made.send(b'{"err')
    made.end(b'or": 1}')
    assert (wire.status, wire.head, wire.body) == (400, b"x-a: b\r\n", b'{"error": 1}')


@pytest.mark.parametrize("body", [b"", b"[]", b'{"choices": 1}', b"\xff"])
def test_what_is_no_answer_is_an_error(body: bytes) -> None:
    made, wire = connection(stream=False)
    made.respond(200, body)
    assert wire.status == 502
    assert json.loads(wire.body)["error"]["type"] == "server_error"


def test_an_answer_that_breaks_off_before_anything_was_told_is_an_error() -> None:
    made, wire = connection(stream=False)
    made.begin(200, b"", 1000)
    made.send(ANSWER[:5])
    made.break_off()
    assert (wire.status, wire.broken) == (502, False)
    made, wire = connection(stream=True)
    made.begin(200, SSE, None)
    made.break_off()
    assert wire.broken
