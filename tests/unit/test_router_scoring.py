"""Scores of answers, and what reading and stripping them leaves as it was."""

import contextlib
import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_router.completion_body import BodyError, CompletionRequest, read_answer, strip_logprobs, with_field
from cascadia_router.scoring import TokenStatistic
from cascadia_router.whole_answer import WholeAnswer

CHAT = b"/v1/chat/completions"
MEAN = TokenStatistic("Mean")
few = settings(max_examples=40, deadline=None)
logprob = st.floats(min_value=-30, max_value=0)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


def chat_answer(*choices: list[float] | None, **extra: Any) -> dict[str, Any]:
    return {
        "id": "1",
        "choices": [
            {
                "index": index,
                "message": {"content": "a"},
                "logprobs": None
                if tokens is None
                else {"content": [{"token": "t", "logprob": value, "top_logprobs": []} for value in tokens]},
            }
            for index, tokens in enumerate(choices)
        ],
        **extra,
    }


def whole(answer: dict[str, Any], *, wants_logprobs: bool = False) -> WholeAnswer:
    return WholeAnswer(json.dumps(answer).encode(), wants_logprobs=wants_logprobs)


@few
@given(st.lists(logprob, min_size=1, max_size=20))
def test_mean_and_minimum_are_those_of_the_tokens(tokens: list[float]) -> None:
    answer = whole(chat_answer(tokens))
    assert answer.score(MEAN) == pytest.approx(math.exp(sum(tokens) / len(tokens)))
    assert answer.score(TokenStatistic("Minimum")) == pytest.approx(math.exp(min(tokens)))


@few
@given(st.lists(logprob, min_size=1, max_size=30), st.floats(0, 1))
def test_a_quantile_is_numpys_and_within_the_tokens_probabilities(tokens: list[float], q: float) -> None:
    score = whole(chat_answer(tokens)).score(TokenStatistic("Quantile", q))
    assert score == pytest.approx(math.exp(np.quantile(tokens, q)))
    assert math.exp(min(tokens)) * (1 - 1e-9) <= score <= math.exp(max(tokens)) * (1 + 1e-9)


def with_candidates(*tokens: list[float], chat: bool = True) -> dict[str, Any]:
    """An answer whose tokens have these candidates; the first of each was chosen."""
    if chat:
        content = [
            {"token": "t", "logprob": c[0], "top_logprobs": [{"token": str(i), "logprob": x} for i, x in enumerate(c)]}
            for c in tokens
        ]
        return {"choices": [{"index": 0, "message": {"content": "a"}, "logprobs": {"content": content}}]}
    tops = [{str(i): x for i, x in enumerate(c)} for c in tokens]
    logprobs = {"tokens": ["t"] * len(tokens), "token_logprobs": [c[0] for c in tokens], "top_logprobs": tops}
    return {"choices": [{"index": 0, "text": "a", "logprobs": logprobs}]}


@few
@given(st.lists(st.lists(logprob, min_size=2, max_size=4), min_size=1, max_size=10), st.booleans(), st.booleans())
def test_the_margin_is_the_mean_difference_of_the_two_likeliest(
    tokens: list[list[float]], chat: bool, compact: bool
) -> None:
    document = json.dumps(with_candidates(*tokens, chat=chat), separators=(",", ":") if compact else None).encode()
    score = WholeAnswer(document, wants_logprobs=False).score(TokenStatistic("Margin"))
    best = np.exp([sorted(each, reverse=True)[:2] for each in tokens])
    assert score == pytest.approx(float(np.mean(best[:, 0] - best[:, 1])), abs=1e-12)
    assert score is not None
    assert 0 <= score <= 1


def test_a_margin_takes_two_candidates() -> None:
    assert whole(chat_answer([-0.1, -0.2])).score(TokenStatistic("Margin")) is None


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("asked", [0, 1, 3])
def test_candidates_that_only_the_score_needs_are_asked_for_and_taken_out_again(chat: bool, asked: int) -> None:
    body: dict[str, Any] = {"model": "chat", "messages": [], "prompt": "x"}
    if asked and chat:
        body |= {"logprobs": True, "top_logprobs": asked}
    elif asked:
        body |= {"logprobs": asked}
    request = CompletionRequest(CHAT if chat else b"/v1/completions", json.dumps(body).encode())
    sent = json.loads(request.for_engine("served", score=True, candidates=2))
    assert sent["top_logprobs" if chat else "logprobs"] == max(asked, 2)
    assert sent["logprobs"]
    answer = with_candidates(*[[-0.1, -2.0, -3.0, -4.0][: max(asked, 2)]] * 2, chat=chat)
    candidates = asked if 0 < asked < 2 else None
    document = WholeAnswer(json.dumps(answer).encode(), request.wants_logprobs, candidates=candidates).replay(b"{}")
    logprobs = json.loads(document)["choices"][0]["logprobs"]
    if not asked:
        assert logprobs is None
    elif chat:
        assert [len(token["top_logprobs"]) for token in logprobs["content"]] == [asked, asked]
    else:
        assert [len(token) for token in logprobs["top_logprobs"]] == [asked, asked]


def test_several_choices_score_as_the_worst() -> None:
    assert whole(chat_answer([-0.1], [-0.7])).score(MEAN) == pytest.approx(math.exp(-0.7))
    assert whole(chat_answer([-0.1], None)).score(MEAN) is None


@pytest.mark.parametrize(
    "logprobs", [None, {}, {"content": None}, {"content": []}, {"content": [{}]}, [], "x", {"token_logprobs": [None]}]
)
def test_answers_without_usable_log_probabilities_cannot_be_scored(logprobs: Any) -> None:
    answer = chat_answer([-0.1])
    answer["choices"][0]["logprobs"] = logprobs
    assert whole(answer).score(MEAN) is None


def test_completions_skip_the_first_token_of_an_echoed_prompt() -> None:
    answer = {"choices": [{"index": 0, "text": "a", "logprobs": {"token_logprobs": [None, -0.2, -0.4]}}]}
    assert whole(answer).score(MEAN) == pytest.approx(math.exp(-0.3))


@pytest.mark.parametrize(
    "document", [b"", b"{}", b"[]", b'{"choices": []}', b'{"choices": 3}', b'{"choices": [{]}', b"\xff"]
)
def test_what_is_no_answer_is_refused(document: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        WholeAnswer(document, wants_logprobs=False)


@few
@given(
    st.lists(st.none() | st.lists(logprob, max_size=4), min_size=1, max_size=3),
    st.dictionaries(st.text(), json_values, max_size=3),
    st.sampled_from([(",", ":"), (", ", ": "), (",", " : "), (" ,\n ", ":\t")]),
)
def test_stripping_takes_the_log_probabilities_and_nothing_else(
    choices: list[list[float] | None], extra: dict[str, Any], separators: tuple[str, str]
) -> None:
    """Whatever else is in the document, `logprobs` in texts and keys of other objects included."""
    extra = {key: value for key, value in extra.items() if key not in {"choices", "error", "usage"}}
    answer = chat_answer(*choices, extra={"logprobs": {"content": 1}, "text": 'x "logprobs": {"content":', **extra})
    document = json.dumps(answer, separators=separators).encode()
    stripped = json.loads(strip_logprobs(document, read_answer(document)))
    for choice in answer["choices"]:
        choice["logprobs"] = None
    assert stripped == answer


@few
@given(st.dictionaries(st.text(), json_values, min_size=1, max_size=3))
def test_a_field_is_added_at_the_end(fields: dict[str, Any]) -> None:
    fields.pop("cascadia", None)
    fields["a"] = "}"
    with_decision = with_field(json.dumps(fields).encode() + b" \n", b"cascadia", b'{"stage":"s"}')
    assert json.loads(with_decision) == fields | {"cascadia": {"stage": "s"}}


@few
@given(st.dictionaries(st.text(), json_values, max_size=5), st.booleans(), st.booleans(), st.booleans())
def test_an_engine_is_sent_what_the_client_sent_but_for_what_we_need(
    extra: dict[str, Any], score: bool, stream: bool, chat: bool
) -> None:
    known = {
        "model",
        "stream",
        "max_tokens",
        "max_completion_tokens",
        "stream_options",
        "logprobs",
        "messages",
        "prompt",
    }
    body = {key: value for key, value in extra.items() if key not in known}
    body |= {"model": "chat", "messages": [{"content": "hello"}], "prompt": "hello", "stream": stream}
    request = CompletionRequest(CHAT if chat else b"/v1/completions", json.dumps(body).encode())
    sent = json.loads(request.for_engine("served", score=score))
    expected = body | {"model": "served"}
    if score:
        expected["logprobs"] = True if chat else 1
    if stream:
        expected["stream_options"] = {"include_usage": True}
    assert sent == expected
    assert type(sent.get("logprobs")) is type(expected.get("logprobs"))


def test_a_clients_own_options_stay() -> None:
    body = {
        "model": "chat", "messages": [], "stream": True, "logprobs": True, "stream_options": {"other": 1},
    }  # fmt: skip
    sent = json.loads(CompletionRequest(CHAT, json.dumps(body).encode()).for_engine("served", score=True))
    assert sent == body | {"model": "served", "stream_options": {"other": 1, "include_usage": True}}


@few
@given(st.binary(max_size=200) | st.recursive(scalars, st.lists).map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_request_or_a_body_error(body: bytes) -> None:
    with contextlib.suppress(BodyError):
        CompletionRequest(CHAT, body)


@pytest.mark.parametrize(
    ("extra", "needs"),
    [
        ({}, set()),
        ({"tools": []}, set()),
        ({"tools": None}, set()),
        ({"tools": [{"type": "function"}]}, {"tools"}),
        ({"response_format": {"type": "json_object"}}, set()),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, {"json-schema"}),
        ({"messages": [{"content": [{"type": "image_url", "image_url": {}}]}]}, {"images"}),
        ({"messages": [{"content": [{"type": "input_audio", "input_audio": {}}]}]}, {"audio"}),
        ({"messages": [{"content": '{"type": "image_url"}'}]}, set()),
    ],
)
def test_what_a_request_needs(extra: dict[str, Any], needs: set[str]) -> None:
    body = {"model": "chat", "messages": [{"content": "hello"}], "max_tokens": 100} | extra
    encoded = json.dumps(body).encode()
    request = CompletionRequest(CHAT, encoded)
    assert request.needs == needs
    assert request.tokens == (100 if needs & {"images", "audio"} else 100 + len(encoded) // 4)
