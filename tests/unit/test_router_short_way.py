"""The short ways say the same as the long ones: heads by expression, answers cut in two, counts in batches."""

import itertools
import json
import math
from typing import Any

import httptools
import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cascadia_router.completion_body import Usage, read_answer
from cascadia_router.http1_client import Upstream
from cascadia_router.http1_head import PLAIN_ANSWER, PLAIN_POST, header_fields
from cascadia_router.metrics import Metrics
from cascadia_router.scoring import TokenStatistic, log_probabilities
from cascadia_router.settlement import Settlement
from cascadia_router.share_budget import ShareBudget
from cascadia_router.whole_answer import WholeAnswer
from cascadia_router.window import Window


class Reading:
    """What llhttp makes of bytes."""

    def __init__(self, data: bytes, *, answer: bool) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.url = self.body = b""
        self.ends = 0
        self.keep_alive = False
        self.parser = httptools.HttpResponseParser(self) if answer else httptools.HttpRequestParser(self)
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.ends += 1
        self.keep_alive = self.parser.should_keep_alive()


MEAN = TokenStatistic("Mean")
LINES = [
    b"Host: a",
    b"Accept: */*",
    b"Content-Length: 5",
    b"content-length:5",
    b"Content-Length: 5, 5",
    b"Content-Length: +5",
    b"CONTENT-LENGTH: 5",
    b"Content-Length : 5",
    b"Content-Length: 05",
    b"Content-Length: 4",
    b"Content-Type: a/b",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding : chunked",
    b"TE: trailers",
    b"Connection: keep-alive",
    b"Connection: close",
    b"connection: Keep-Alive, x",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"X-Request-Id: r-1",
    b"traceparent: 00-1",
    b"X-Cascadia-Max-Stage: a",
    b"x-cascadia-deadline-ms:1",
    b"x-cascadia: 1",
    b"x: a\x00b",
    b"x: a\nTransfer-Encoding: chunked",
    b"x: a\rb",
    b" folded: 1",
    b"x:\tb\t",
    b"bad name: 1",
    b"x\xe9: 1",
    b"x: \xe9",
    b": empty",
    b"x:",
    b"Cookie: a=b",
    b"Authorization: Bearer one",
    b"authorization:\tBearer two ",
    b"AUTHORIZATION:",
    b"Authorization : Bearer three",
    b"Trailer: x",
    b"Upgrade-Insecure-Requests: 1",
    b"x: \x7f",
]
FIRST = [
    b"POST /v1/x HTTP/1.1",
    b"POST /v1/x HTTP/1.0",
    b"POST  /v1/x HTTP/1.1",
    b"POST /v1/x?q HTTP/1.1",
    b"GET /v1/x HTTP/1.1",
]
STATUS = [
    b"HTTP/1.1 200 OK",
    b"HTTP/1.1 200 ",
    b"HTTP/1.1 200",
    b"HTTP/1.0 200 OK",
    b"HTTP/1.1 204 No",
    b"HTTP/1.1  200 OK",
]
lines = st.lists(st.sampled_from(LINES) | st.binary(max_size=12), max_size=6)
PLAIN = [b"Host: a", b"Connection: keep-alive", b"Content-Length: 5"]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(FIRST), lines, st.sampled_from([b"hello", b"hell", b"hello!"]))
@example(FIRST[0], PLAIN, b"hello")
def test_a_plain_request_is_what_llhttp_reads(first: bytes, fields: list[bytes], body: bytes) -> None:
    data = b"\r\n".join((first, *fields, b"", b"")) + body
    head = PLAIN_POST.match(data)
    if head is None or len(data) - head.end() != int(head[4]):
        return
    read = Reading(data, answer=False)
    assert (read.ends, read.url, read.body, read.keep_alive) == (1, head[1], body, True)
    # white space around a value is no part of it: llhttp leaves what is behind
    assert header_fields(data) == {name: value.strip() for name, value in read.fields}
    steering = {b"x-request-id", b"traceparent", b"tracestate", b"x-cascadia-max-stage", b"x-cascadia-deadline-ms"}
    traced = steering & {name for name, _ in read.fields}
    assert bool(traced) == bool(head[2] or head[5])
    shown = head[6] if head[6] is not None else head[3]
    assert (shown or b"").strip(b" \t") == dict(read.fields).get(b"authorization", b"")


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(STATUS), lines, st.sampled_from([b"hello", b"hell", b"hello!"]))
@example(STATUS[0], [b"date: x", b"content-length: 5"], b"hello")
def test_a_plain_answer_is_what_llhttp_reads(first: bytes, fields: list[bytes], body: bytes) -> None:
    data = b"\r\n".join((first, *fields, b"", b"")) + body
    head = PLAIN_ANSWER.match(data)
    if head is None or len(data) - head.end() != int(head[1]):
        return
    read = Reading(data, answer=True)
    assert (read.ends, read.body, read.keep_alive) == (1, body, True)
    # white space around a value is no part of it: llhttp leaves what is behind
    assert header_fields(data) == {name: value.strip() for name, value in read.fields}


@pytest.mark.parametrize("count", range(5))
def test_a_plain_request_is_taken_in_whatever_order_its_lines_come(count: int) -> None:
    """CPython's expressions have failed on some orders of lines that are told of and others."""
    some = (b"Host: a", b"X-Request-Id: r-1", b"Authorization: Bearer x", b"traceparent: 00-1")
    for fields in itertools.permutations(some, count):
        for place in range(count + 1):
            order = (*fields[:place], b"Content-Length: 2", *fields[place:])
            head = PLAIN_POST.match(b"\r\n".join((FIRST[0], *order, b"", b"{}")))
            assert head is not None
            assert head[4] == b"2"
            assert bool(head[2] or head[5]) == bool({some[1], some[3]} & set(fields))
            assert (head[3] or head[6]) == (b"Bearer x" if some[2] in fields else None)


LENGTHS = [b"5", b"6", b"05", b"", b"+5", b"5 ", b"-1", b"999999999", b"9999999999", b"\xd9\xa5"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([b"date: 1", b"date: 2", b"server: x", b"connection: close"]), max_size=2),
            st.sampled_from(LENGTHS),
            st.sampled_from([b"", b"\r\nx: y", b"\r\ntransfer-encoding: chunked", b"\r\ncontent-length: 5"]),
            st.sampled_from([b"hello", b"hello!", b"hell", b""]),
        ),
        min_size=2,
        max_size=6,
    )
)
@example([([b"date: 1"], b"5", b"\r\nx: y", b"hello"), ([b"date: 1"], b"6", b"\r\nx: y", b"hello!")])
def test_a_head_like_the_last_one_is_read_as_if_it_were_the_first(
    answers: list[tuple[list[bytes], bytes, bytes, bytes]],
) -> None:
    upstream = Upstream("127.0.0.1:1")
    for before, length, after, body in answers:
        data = b"\r\n".join((STATUS[0], *before, b"content-length: " + length)) + after + b"\r\n\r\n" + body
        head = PLAIN_ANSWER.match(data)
        plain = head is not None and len(data) - head.end() == int(head[1])
        assert upstream.plain_body(data) == (len(body) if plain else 0)


def test_plain_messages_are_taken() -> None:
    """Otherwise the two tests above would say nothing."""
    assert PLAIN_POST.match(b"\r\n".join((FIRST[0], *PLAIN, b"", b"")))
    assert PLAIN_ANSWER.match(b"HTTP/1.1 200 OK\r\ndate: x\r\nserver: uvicorn\r\ncontent-length: 5\r\n\r\n")


logprobs: st.SearchStrategy[Any] = (
    st.none()
    | st.just({})
    | st.lists(st.floats(-9, 0), max_size=3).map(
        lambda values: {"content": [{"token": '"logprobs":{ }],"created":', "logprob": value} for value in values]}
    )
)
TRAPS: list[dict[str, Any]] = [
    {},
    {"text": '"logprobs":{'},
    {"logprobs": {"content": [{"logprob": -1}]}},
    {"error": None},
    {'x"logprobs': {"a": 1}},
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(logprobs, min_size=1, max_size=2),
    st.sampled_from(TRAPS),
    st.sampled_from(TRAPS),
    st.booleans(),
    st.booleans(),
)
def test_an_answer_cut_in_two_is_the_answer(
    values: list[Any], before: dict[str, Any], message: dict[str, Any], last: bool, absent: bool
) -> None:
    choices = []
    for value in values:
        choice: dict[str, Any] = {"index": 0, "message": message}
        if not absent:
            choice["logprobs"] = value
        choices.append({"finish_reason": "stop", **choice} if last else {**choice, "finish_reason": "stop"})
    document = {**before, "choices": choices, "created": 1, "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    data = json.dumps(document, separators=(",", ":")).encode()
    answer = WholeAnswer(data, wants_logprobs=False)
    assert answer.usage == Usage(prompt_tokens=3, completion_tokens=4)
    for choice in choices:
        if "logprobs" in choice:
            choice["logprobs"] = None
    assert json.loads(answer.replay(b"1")) == {**document, "cascadia": 1}
    scores = []
    for raw in read_answer(data).choices:
        tokens = log_probabilities(raw.logprobs)
        scores.append(math.exp(sum(tokens) / len(tokens)) if tokens else None)
    expected = None if None in scores else min(score for score in scores if score is not None)
    assert answer.score(MEAN) == (None if expected is None else pytest.approx(expected))


def test_batches_count_what_single_counts_would() -> None:
    metrics, window, budget = Metrics(), Window(0.0), ShareBudget()
    settlement = Settlement(metrics, window, budget)
    for number in range(100):
        usage = Usage(prompt_tokens=number, completion_tokens=2 * number) if number % 3 else None
        settlement.answers.append((0.5, 0.5 + number / 100, usage, None if number % 5 == 0 else number / 100))
        port = "peer" if number % 4 == 0 else "client"
        settlement.ends.append(((port, "small", "answered"), 0.25, 0.5, 0.5 + number / 100))
    report = window.report(1.0, 60, window_end=0.0, plan_id="p", policy_revision=1, stage="small")
    assert report.answered_by == {"small": 75}
    assert metrics.requests == {("client", "small", "answered"): 75, ("peer", "small", "answered"): 25}
    assert report.stage is not None
    assert report.stage.service_ms.count() == 100
    assert report.stage.service_ms.sum == pytest.approx(sum(10.0 * number for number in range(100)))
    assert report.stage.scores.count() == sum(metrics.scores.counts) == 80
    assert report.stage.input_tokens.sum == sum(number for number in range(100) if number % 3)
    assert report.end_to_end_ms.count() == report.time_to_first_token_ms.count() == 75
    assert report.time_to_first_token_ms.sum == pytest.approx(75 * 250)
    assert {port: sum(each.counts) for port, each in metrics.request_seconds.items()} == {
        "client": 75,
        "peer": 25,
        "shadow": 0,
    }
    expected = [0] * len(metrics.scores.counts)
    alone = Metrics().scores
    for number in range(100):
        if number % 5:
            alone.observe(number / 100)
    assert alone.counts == metrics.scores.counts != expected
    assert not settlement.answers
    assert not settlement.ends
    assert msgspec.json.encode(report)
