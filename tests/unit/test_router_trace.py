"""Trace contexts: what is one, by https://www.w3.org/TR/trace-context/#traceparent-header."""

import pytest

from cascadia_router.trace import attributes, parse_traceparent

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


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
