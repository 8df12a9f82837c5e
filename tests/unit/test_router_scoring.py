"""Scores of answers, and what reading and stripping them leaves as it was."""

import contextlib
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_router.calls import WholeAnswer
from cascadia_router.completion_body import BodyError, CompletionRequest, read_answer, strip_logprobs, with_field

CHAT = b"/v1/chat/completions"
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
    assert answer.score("Mean") == pytest.approx(math.exp(sum(tokens) / len(tokens)))
    assert answer.score("Minimum") == pytest.approx(math.exp(min(tokens)))


def test_several_choices_score_as_the_worst() -> None:
    assert whole(chat_answer([-0.1], [-0.7])).score("Mean") == pytest.approx(math.exp(-0.7))
    assert whole(chat_answer([-0.1], None)).score("Mean") is None


@pytest.mark.parametrize(
    "logprobs", [None, {}, {"content": None}, {"content": []}, {"content": [{}]}, [], "x", {"token_logprobs": [None]}]
)
def test_answers_without_usable_log_probabilities_cannot_be_scored(logprobs: Any) -> None:
    answer = chat_answer([-0.1])
    answer["choices"][0]["logprobs"] = logprobs
    assert whole(answer).score("Mean") is None


def test_completions_skip_the_first_token_of_an_echoed_prompt() -> None:
    answer = {"choices": [{"index": 0, "text": "a", "logprobs": {"token_logprobs": [None, -0.2, -0.4]}}]}
    assert whole(answer).score("Mean") == pytest.approx(math.exp(-0.3))


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
