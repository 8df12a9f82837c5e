"""The headers that a collector of traces wants, as OpenTelemetry writes them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_router.collector_headers import CollectorHeaders, HeadersError, parse_headers

few = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        (" Authorization = Bearer%20x%2Cy , b=2,", {"authorization": "Bearer x,y", "b": "2"}),
        ("authorization=Basic dXNlcjpwdw==\n\nx-scope-orgid=7\n", {
            "authorization": "Basic dXNlcjpwdw==", "x-scope-orgid": "7",
        }),
        ("a=1,a=2", {"a": "2"}),
    ],
)  # fmt: skip
def test_pairs_are_read_as_opentelemetry_has_them(text: str, found: dict[str, str]) -> None:
    assert parse_headers(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "a=1,b",
        "=1",
        "a b=1",
        "host=x",
        "Content-Length=3",
        "a=x%0ab: c",
        "a=x\x00",
        "a=\u20ac",
        "a=" + "x" * 20_000,
    ],
)
def test_what_is_wrong_is_told_without_its_text(text: str) -> None:
    with pytest.raises(HeadersError) as error:
        parse_headers(text)
    assert "x" * 3 not in str(error.value)
    assert "\u20ac" not in str(error.value)


@few
@given(st.text(max_size=80) | st.text("ab=,%0dA\r\n: ", max_size=40))
def test_no_text_makes_a_line_of_its_own(text: str) -> None:
    headers = CollectorHeaders(None, {"OTEL_EXPORTER_OTLP_HEADERS": text}).lines(None)
    assert headers is not None
    lines = headers.decode().split("\r\n")
    assert lines.pop() == ""
    assert all(
        ": " in line and line.isprintable() and line.isascii() for line in (each.replace("\t", "") for each in lines)
    )


def test_the_more_special_variable_wins_and_one_that_is_wrong_spoils_no_other(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.ERROR)
    both = {"OTEL_EXPORTER_OTLP_HEADERS": "a=1,b=2", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "b=3"}
    assert CollectorHeaders(None, both).lines(None) == b"a: 1\r\nb: 3\r\n"
    assert not caplog.records
    wrong = both | {"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "hunter2"}
    assert CollectorHeaders(None, wrong).lines("no-folder") == b"a: 1\r\nb: 2\r\n"
    (record,) = caplog.records
    assert "OTEL_EXPORTER_OTLP_TRACES_HEADERS" in str(record.__dict__)
    assert "hunter2" not in str(record.__dict__)
    headers = CollectorHeaders(str(tmp_path), {})
    assert [headers.lines("there.not"), headers.lines("there.not")] == [None, None]
    assert len(caplog.records) == 2, "said once"
