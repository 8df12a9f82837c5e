"""Trace contexts: what is one, by https://www.w3.org/TR/trace-context/#traceparent-header."""

import tracemalloc
from collections import Counter

import pytest

from cascadia_api.policy import TracingPolicy
from cascadia_router.completion_body import CompletionRequest, Usage
from cascadia_router.decision import DecisionText
from cascadia_router.http1_request import Request
from cascadia_router.trace import attributes, parse_traceparent
from cascadia_router.tracer import MOST_SPANS, Tracer

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
REQUEST = Request(b"/v1/chat/completions", b"", b"", 0.0, False)


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", True),
    ],
)
def test_contexts(value: str, sampled: bool) -> None:
    assert parse_traceparent(value.encode()) == (TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "value",
    [
        "", "00-1-2-01", f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01-more", f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN}-1",
    ],
)  # fmt: skip
def test_what_is_none(value: str) -> None:
    assert parse_traceparent(value.encode()) is None


def test_attributes_have_their_types() -> None:
    assert attributes({"a": "x", "b": 3, "c": 0.5, "d": None}) == [
        {"key": "a", "value": {"stringValue": "x"}},
        {"key": "b", "value": {"intValue": "3"}},
        {"key": "c", "value": {"doubleValue": 0.5}},
    ]


async def test_spans_that_nobody_takes_are_bounded_and_small() -> None:
    count: Counter[str] = Counter()
    tracer = Tracer({}, count)
    trace = tracer.begin(TracingPolicy(endpoint="http://127.0.0.1:1"), REQUEST, enters=True)
    assert trace is not None
    body = CompletionRequest(b"/v1/chat/completions", b'{"model":"chat","messages":[]}')
    said = DecisionText("small", 0.8, (), "plan-1", 1).document(0.9, Usage(7, 3))
    tracemalloc.start()
    for _ in range(MOST_SPANS + 100):
        trace.finish(body, request_id="r-1", port="client", outcome="answered", status=200, decision=said)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count["dropped"] == 100
    assert taken < 2 * 1024 * MOST_SPANS
    tracer.flush(None)  # a policy without traces
    assert count["dropped"] == MOST_SPANS + 100
