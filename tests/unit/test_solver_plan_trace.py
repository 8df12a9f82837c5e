"""Traces in the formats that are public."""

from __future__ import annotations

import pytest

from cascadia_api.errors import InputError
from cascadia_solver.trace import parse_trace

AZURE = ["TIMESTAMP,ContextTokens,GeneratedTokens", "2023-11-16 18:17:03.9799600,4808,10"]


def test_azure_csv() -> None:
    trace, problems = parse_trace([*AZURE, "2023-11-16 18:17:05.9799600,3180,8", ""])
    assert problems == []
    assert trace.arrivals.tolist() == pytest.approx([0.0, 2.0])
    assert trace.input_tokens.tolist() == [4808, 3180]
    assert trace.output_tokens.tolist() == [10, 8]
    assert trace.requests_per_second == pytest.approx(0.5)


@pytest.mark.parametrize(
    "names", [("timestampMs", "inputTokens", "outputTokens"), ("timestamp", "input_length", "output_length")]
)
def test_jsonl_is_sorted_by_time(names: tuple[str, str, str]) -> None:
    when, read, written = names
    text = [f'{{"{when}": {t}, "{read}": {t + 1}, "{written}": 5}}'.encode() for t in (3000, 1000, 2000)]
    trace, problems = parse_trace(text)
    assert problems == []
    assert trace.arrivals.tolist() == pytest.approx([0, 1, 2])
    assert trace.input_tokens.tolist() == [1001, 2001, 3001]


def test_bad_rows_are_named() -> None:
    text = [
        *AZURE,
        "yesterday,1,1",
        "2023-11-16 18:17:04,0,1",
        "2023-11-16 18:17:04,7,nan",
        "2023-11-16 18:17:06,7,7",
        "2023-11-16 18:17:07",
    ]
    trace, problems = parse_trace(text)
    assert len(trace) == 2
    assert [problem.line for problem in problems] == [3, 4, 5, 7]
    assert "yesterday" in problems[0].message
    assert problems[1].message == "contexttokens is '0'; it must lie between 1 and 10,485,760"
    assert problems[3].message == "it has no inputTokens"


def test_a_broken_json_line_is_named() -> None:
    good = '{"timestampMs": %d, "inputTokens": 1, "outputTokens": 1}'
    deep = '{"a": ' + "[" * 5000 + "]" * 5000 + "}"
    _, problems = parse_trace([good % 0, '{"timestampMs"', good % 1000, "{}", deep])
    said = ("truncated", "no timestampMs", "nested too deeply")
    assert [p.line for p in problems] == [2, 4, 5]
    assert all(words in p.message for words, p in zip(said, problems, strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("1e308,5,5", "its timestamp is 1e308"),
        ("7,1e308,5", "contexttokens is '1e308'; it must lie between 1 and"),
        ('"' + "x" * 200_000 + '",5,5', "it is no CSV: field larger"),
    ],
)
def test_senseless_figures_are_named_and_skipped(wrong: str, message: str) -> None:
    trace, problems = parse_trace([AZURE[0], "0,5,5", "1000,5,5", wrong])
    assert (len(trace), trace.requests_per_second) == (2, 1.0)
    assert [(p.line, p.message.startswith(message)) for p in problems] == [(4, True)]


@pytest.mark.parametrize(
    ("head", "unstated"),
    [
        ("TIMESTAMP,ContextTokens,GeneratedTokens", True),
        ("timestampMs,inputTokens,outputTokens", False),
        ("arrived_at,num_prefill_tokens,num_decode_tokens", False),
        ("timestamp,input_length,output_length", False),
    ],
)
def test_a_unit_that_is_not_stated_is_told(head: str, unstated: bool) -> None:
    assert parse_trace([head, "0,5,5", "9,5,5"])[0].unit_unstated is unstated
    assert not parse_trace([*AZURE, "2023-11-16 18:17:05,1,1"])[0].unit_unstated


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "it is empty"),
        (["a,b,c", "1,2,3"], "columns are a, b, c; a CSV trace has TIMESTAMP"),
        (AZURE, "1 usable rows"),
        ([*AZURE, AZURE[1]], "same timestamp"),
    ],
)
def test_what_is_no_trace_is_refused(text: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_trace(text)
