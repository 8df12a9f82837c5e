"""Simulated answers: OpenAI's JSON, honest, scorable, the same streamed and whole."""

from __future__ import annotations

import json
import math
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_local.simulated_engine.answers import Answer, ChatFormat, RepeatedPieces, TextFormat
from cascadia_local.simulated_engine.completion_request import BadRequest, CompletionRequest, parse_chat, parse_text
from cascadia_local.simulated_engine.difficulty import Outcome
from cascadia_local.simulated_engine.metrics import EngineMetrics, Histogram

SGLANG_NAMES = Path(__file__).parents[1] / "support" / "sglang-0.5.23-metric-names.txt"


def answer(tokens: int, *, score: float = 0.8, limit: int = 10**6, top: int = 0, usage: bool = True) -> Answer:
    request = CompletionRequest(b"k", None, 0.0, 7, 7, None, None, True, usage, True, top)
    made = Answer("id-1", request, Outcome(score, 1.0, tokens), 7, limit, 1.0)
    made.first_token, made.finished = 1.5, 2.5
    return made


def events(stream: bytes) -> list[dict[str, Any]]:
    parts = stream.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=5),
    start=st.integers(0, 30),
    more=st.integers(0, 30),
)
def test_repeated_pieces_slice_like_a_list(pieces: list[bytes], start: int, more: int) -> None:
    endless = pieces * 100
    assert RepeatedPieces(pieces).slice(start, start + more) == b"".join(endless[start : start + more])


@given(tokens=st.integers(1, 60), score=st.floats(1e-6, 1 - 1e-9), top=st.sampled_from([0, 3]))
def test_chat_logprobs_are_per_token_and_score_as_drawn(tokens: int, score: float, top: int) -> None:
    body = json.loads(ChatFormat(answer(tokens, score=score, top=top), b'"m"', 1).body())
    choice = body["choices"][0]
    content = choice["logprobs"]["content"]
    assert len(content) == tokens == body["usage"]["completion_tokens"]
    assert "".join(entry["token"] for entry in content) == choice["message"]["content"]
    values = [entry["logprob"] for entry in content]
    assert math.exp(math.fsum(values) / tokens) == pytest.approx(score, rel=1e-9)
    assert (min(values) < math.fsum(values) / tokens) == (tokens > 1)
    assert all(len(entry["top_logprobs"]) == (1 if top else 0) for entry in content)


@given(tokens=st.integers(1, 40), score=st.floats(0.01, 0.99), top=st.sampled_from([0, 2]))
def test_text_logprobs_are_per_token_and_score_as_drawn(tokens: int, score: float, top: int) -> None:
    choice = json.loads(TextFormat(answer(tokens, score=score, top=top), b'"m"', 1).body())["choices"][0]
    logprobs = choice["logprobs"]
    assert "".join(logprobs["tokens"]) == choice["text"]
    assert len(logprobs["text_offset"]) == len(logprobs["token_logprobs"]) == tokens
    assert math.fsum(logprobs["token_logprobs"]) / tokens == pytest.approx(math.log(score))
    if top:
        expected = [{t: v} for t, v in zip(logprobs["tokens"], logprobs["token_logprobs"], strict=True)]
        assert logprobs["top_logprobs"] == expected
    else:
        assert logprobs["top_logprobs"] is None


@given(tokens=st.integers(1, 40), cuts=st.lists(st.integers(1, 39), max_size=6), chat=st.booleans())
@settings(max_examples=50)
def test_a_stream_is_the_whole_answer_in_pieces(tokens: int, cuts: list[int], chat: bool) -> None:
    made = answer(tokens)
    form = ChatFormat(made, b'"m"', 1) if chat else TextFormat(made, b'"m"', 1)
    edges = sorted({0, tokens, *(cut for cut in cuts if cut < tokens)})
    chunks = b"".join(form.chunk(a, b) for a, b in pairwise(edges))
    *parts, last, usage = events(form.opening() + chunks + form.closing())
    whole = json.loads(form.body())

    def text(part: dict[str, Any]) -> str:
        choice = part["choices"][0]
        return choice["delta"].get("content") or "" if chat else choice["text"]

    def logprobs(part: dict[str, Any]) -> list[float]:
        given_logprobs = part["choices"][0]["logprobs"] or {}
        if chat:
            return [entry["logprob"] for entry in given_logprobs.get("content", [])]
        return list(given_logprobs.get("token_logprobs", []))

    expected = whole["choices"][0]["message"]["content"] if chat else whole["choices"][0]["text"]
    assert "".join(map(text, parts)) == expected
    assert list(chain.from_iterable(map(logprobs, parts))) == logprobs(whole)
    assert [part["choices"][0]["finish_reason"] for part in (*parts, last)] == [None] * len(parts) + ["stop"]
    assert last["cascadia_simulated"] == whole["cascadia_simulated"]
    assert usage["choices"] == []
    assert usage["usage"] == whole["usage"]
    assert {part["id"] for part in (*parts, last, usage)} == {"id-1"}


def test_answers_say_that_they_are_simulated() -> None:
    body = json.loads(ChatFormat(answer(30), b'"m"', 1).body())
    assert body["system_fingerprint"] == "cascadia-simulated"
    assert body["choices"][0]["message"]["content"].startswith("This is a simulated answer: no model ran.")
    assert body["cascadia_simulated"] == {
        "simulated": True,
        "correct": True,
        "quality": 1.0,
        "score": 0.8,
        "inputTokens": 7,
        "outputTokens": 30,
        "arrivedAt": 1.0,
        "firstTokenAt": 1.5,
        "finishedAt": 2.5,
        "latenessSeconds": 0.0,
    }


def test_an_answer_cut_short_is_worth_nothing() -> None:
    body = json.loads(ChatFormat(answer(30, limit=29), b'"m"', 1).body())
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 29
    assert body["cascadia_simulated"]["correct"] is False


def test_requests_are_read_with_their_hints() -> None:
    request = parse_chat(
        b'{"model":"m","messages":[{"role":"system","content":"abcd"},{"role":"user","content":[{"type":"text",'
        b'"text":"efgh"},{"type":"image_url","image_url":{"url":"x"}}]}],"max_tokens":5,"max_completion_tokens":9,'
        b'"stream":true,"stream_options":{"include_usage":true},"logprobs":true,"top_logprobs":2,"temperature":0,'
        b'"simulation":{"hardness":0.5,"outputTokens":40,"row":"r"}}'
    )
    assert request == CompletionRequest(b"abcd\nefgh", "r", 0.5, None, 3, 40, 9, True, True, True, 2)
    assert parse_text(b'{"prompt":[1,2,3],"simulation":{"key":"k","inputTokens":99}}') == CompletionRequest(
        b"k", None, 0.0, 99, 3, None, 16, False, False, False, 0
    )
    assert parse_text(b'{"prompt":["abcdefgh"]}').estimated_tokens == 2


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "truncated"),
        (b"{", "truncated"),
        (b"[]", "object"),
        (b"\xff\xfe", "malformed"),
        (b"{}", "messages"),
        (b'{"messages":[]}', "messages"),
        (b'{"messages":"hello"}', "messages"),
        (b'{"messages":[{"content":"x"}]}', "role"),
        (b'{"messages":[{"role":"user","content":"x"}],"n":2}', "n must be 1"),
        (b'{"messages":[{"role":"user","content":"x"}],"max_tokens":0}', "max_tokens"),
        (b'{"messages":[{"role":"user","content":"x"}],"max_tokens":"9"}', "max_tokens"),
        (b'{"messages":[{"role":"user","content":"x"}],"top_logprobs":2}', "logprobs"),
        (b'{"messages":[{"role":"user","content":"x"}],"logprobs":true,"top_logprobs":21}', "top_logprobs"),
        (b'{"messages":[{"role":"user","content":"x"}],"simulation":{"hardness":1e9}}', "hardness"),
        (b'{"messages":[{"role":"user","content":"x"}],"simulation":{"outputTokens":0}}', "outputTokens"),
        (b'{"messages":[{"role":"user","content":"\\ud800abcdefgh"}]}', "surrogate"),
        (b'{"tools":' + b"[" * 5000, "recursion"),
    ],
)
def test_bad_chat_requests_are_refused_in_words(body: bytes, word: str) -> None:
    with pytest.raises(BadRequest, match=word):
        parse_chat(body)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"{}", "prompt"),
        (b'{"prompt":""}', "empty"),
        (b'{"prompt":[]}', "empty"),
        (b'{"prompt":["a","b"]}', "one prompt"),
        (b'{"prompt":[1,"b"]}', "one prompt"),
        (b'{"prompt":5}', "prompt"),
        (b'{"prompt":' + b"[" * 5000, "recursion"),
        (b'{"prompt":"x","logprobs":true}', "logprobs"),
    ],
)
def test_bad_text_requests_are_refused_in_words(body: bytes, word: str) -> None:
    with pytest.raises(BadRequest, match=word):
        parse_text(body)


@given(body=st.binary(max_size=60))
def test_no_body_breaks_the_parsers(body: bytes) -> None:
    for parse in (parse_chat, parse_text):
        with pytest.raises(BadRequest):
            parse(body)


def test_metrics_are_sglangs() -> None:
    known = set(SGLANG_NAMES.read_text().split())
    metrics = EngineMetrics()
    metrics.answered(1.0, 1.25, 3.25, 0.004, input_tokens=100, output_tokens=5)
    text = metrics.text('a "model"', {"num_running_reqs": 3}).decode()
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    names = {name.partition("{")[0] for name in samples}
    assert {name for name in names if name.startswith("sglang:")} <= known
    assert {name for name in names if not name.startswith("sglang:")} == {
        *(f"cascadia_sim_lateness_seconds_{suffix}" for suffix in ("bucket", "sum", "count")),
        "cascadia_sim_lateness_max_seconds",
        "cascadia_sim_cancelled_requests_total",
    }
    labels = r'model_name="a \"model\"",engine_type="unified",tp_rank="0",pp_rank="0",moe_ep_rank="0"'
    assert samples[f"sglang:num_running_reqs{{{labels}}}"] == "3"
    assert samples[f'sglang:time_to_first_token_seconds_bucket{{{labels},le="0.2"}}'] == "0"
    assert samples[f'sglang:time_to_first_token_seconds_bucket{{{labels},le="0.4"}}'] == "1"
    assert samples[f"sglang:e2e_request_latency_seconds_sum{{{labels}}}"] == "2.25"
    assert samples[f"sglang:inter_token_latency_seconds_count{{{labels}}}"] == "4"
    assert samples[f"sglang:generation_tokens_total{{{labels}}}"] == "5"


def test_a_histogram_counts_cumulatively() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.lines("h", "")[1:4] == ['h_bucket{,le="1.0"} 2', 'h_bucket{,le="2.0"} 3', 'h_bucket{,le="+Inf"} 4']
    assert (histogram.count, histogram.sum, histogram.max) == (4, 12.0, 9.0)
