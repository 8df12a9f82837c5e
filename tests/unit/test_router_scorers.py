"""Scorers without a network: composition, checks of form, reading of questions and replies."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_api.cascade.scorer import Scorer
from cascadia_api.policy import ScorerPolicy, ValidatorPolicy
from cascadia_api.scorer_policy import scorer_policy
from cascadia_router.completion_body import CompletionRequest
from cascadia_router.event_stream import HeldStream
from cascadia_router.said import ToolCall, said_by
from cascadia_router.scorers.asking import Asking
from cascadia_router.scorers.building import Workbench
from cascadia_router.scorers.composite import Composite, Part, calibrated
from cascadia_router.scorers.log_prob import LogProb
from cascadia_router.scorers.protocol import Unscored
from cascadia_router.scorers.question import asked_by, fill_in
from cascadia_router.scorers.validator import Validator
from cascadia_router.scorers.yes_no import probability_of_yes
from cascadia_router.whole_answer import WholeAnswer

few = settings(max_examples=40, deadline=None)
unit = st.floats(0, 1)
PATH = b"/v1/chat/completions"


def request(**body: Any) -> CompletionRequest:
    return CompletionRequest(PATH, json.dumps({"model": "chat", "messages": [], **body}).encode())


def answer(text: str | None = None, *calls: tuple[str, str], logprob: float | None = None) -> WholeAnswer:
    functions = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    message = {"content": text, "tool_calls": functions or None}
    logprobs = None if logprob is None else {"content": [{"logprob": logprob}]}
    choice = {"index": 0, "message": message, "logprobs": logprobs}
    return WholeAnswer(json.dumps({"choices": [choice]}).encode(), wants_logprobs=False)


# -- composition ----------------------------------------------------------------------------------


@few
@given(unit, st.lists(st.tuples(unit, unit), min_size=1, max_size=8, unique_by=lambda point: point[0]))
def test_a_curve_is_numpys_interpolation_monotone_and_within_its_worths(
    score: float, points: list[tuple[float, float]]
) -> None:
    curve = list(zip(sorted(p[0] for p in points), sorted(p[1] for p in points), strict=True))
    value = calibrated(score, curve)
    assert value == pytest.approx(np.interp(score, *zip(*curve, strict=True)), abs=1e-9)
    assert curve[0][1] - 1e-12 <= value <= curve[-1][1] + 1e-12
    assert calibrated(1.0, curve) >= value - 1e-12 >= calibrated(0.0, curve) - 1e-9
    assert calibrated(score, ()) == score


@few
@given(st.lists(st.tuples(unit, st.floats(0.1, 5)), min_size=2, max_size=4))
def test_combinations_are_what_they_say_and_stay_within_0_and_1(parts: list[tuple[float, float]]) -> None:
    scorers = [Part(LogProb("a", "Mean"), (), weight) for _, weight in parts]
    scores = [score for score, _ in parts]
    every = Composite("c", "All", scorers).combine(scores)
    least = Composite("c", "Minimum", scorers).combine(scores)
    mean = Composite("c", "WeightedMean", scorers).combine(scores)
    assert every == pytest.approx(math.prod(scores))
    assert least == min(scores)
    assert mean == pytest.approx(np.average(scores, weights=[weight for _, weight in parts]))
    assert 0 <= every <= least <= mean + 1e-12 <= 1 + 2e-12


def test_a_failed_check_decides_whatever_the_log_probability() -> None:
    parts = [{"type": "Validator", "validator": {"pattern": "^[0-9]+$"}}, {"type": "LogProb"}]
    written = Scorer.model_validate({"type": "Composite", "combine": "All", "parts": parts})
    scorer = Workbench().scorer(scorer_policy(written))
    assert scorer.logprobs == 1
    assert scorer.at_once(request(), answer("42", logprob=-0.1)) == pytest.approx(math.exp(-0.1))
    assert scorer.at_once(request(), answer("forty-two", logprob=-0.0)) == 0.0
    assert scorer.at_once(request(), answer("42")) == Unscored("logprob-mean", "no_logprobs")


def test_the_same_options_are_the_same_scorer() -> None:
    workbench = Workbench()
    first = workbench.scorer(ScorerPolicy())
    assert workbench.scorer(ScorerPolicy()) is first
    assert workbench.scorer(ScorerPolicy(statistic="Minimum")) is not first


# -- form -----------------------------------------------------------------------------------------

OBJECT = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": json.loads(OBJECT)}}]


@pytest.mark.parametrize(
    ("text", "score"), [('{"n": 1}', 1.0), ('{"n": 1.5}', 0.0), ("{}", 0.0), ("n = 1", 0.0), ("", 0.0), ("[" * 9999, 0)]
)
def test_a_schema_of_the_manifest(text: str, score: float) -> None:
    assert Validator("v", ValidatorPolicy(json_schema=OBJECT)).at_once(request(), answer(text)) == score


@pytest.mark.parametrize(
    ("wanted", "text", "score"),
    [
        (None, "anything", 1.0),
        ({"type": "json_object"}, "anything", 1.0),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": json.loads(OBJECT)}}, '{"n": 2}', 1.0),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": json.loads(OBJECT)}}, '{"n": "2"}', 0.0),
        ({"type": "json_schema", "json_schema": {"schema": {"type": 3}}}, "{}", "unsupported"),
        ({"type": "json_schema", "json_schema": {"schema": {"$ref": "http://127.0.0.1:1/a"}}}, "{}", "unsupported"),
        ({"type": "json_schema", "json_schema": {"schema": {"$ref": "file:///etc/hostname"}}}, "{}", "unsupported"),
        ({"type": "json_schema", "json_schema": {"schema": {"const": "x" * 70_000}}}, "{}", "unsupported"),
        ({"type": "json_schema", "json_schema": 3}, "{}", "unsupported"),
    ],
)
def test_a_schema_of_the_request(wanted: Any, text: str, score: float | str) -> None:
    outcome = Validator("v", ValidatorPolicy(request_schema=True)).at_once(
        request(response_format=wanted), answer(text)
    )
    assert outcome == (Unscored("v", score) if isinstance(score, str) else score)


@pytest.mark.parametrize(
    ("calls", "choice", "score"),
    [
        ([], "auto", 1.0),
        ([], "required", 0.0),
        ([], {"type": "function", "function": {"name": "add"}}, 0.0),
        ([("add", '{"n": 3}')], "required", 1.0),
        ([("add", '{"n": "3"}')], "auto", 0.0),
        ([("add", '{"n": 3')], "auto", 0.0),
        ([("subtract", '{"n": 3}')], "auto", 0.0),
        ([("add", '{"n": 3}'), ("add", "")], "auto", 0.0),
    ],
)
def test_tool_calls(calls: list[tuple[str, str]], choice: Any, score: float) -> None:
    validator = Validator("v", ValidatorPolicy(tool_calls=True))
    asked = request(tools=TOOLS, tool_choice=choice)
    assert validator.at_once(asked, answer(None if calls else "text", *calls)) == score


def test_a_pattern_takes_linear_time_whatever_it_is() -> None:
    validator = Validator("v", ValidatorPolicy(pattern="^(a+)+$"))
    assert validator.at_once(request(), answer("a" * 200_000 + "!")) == 0.0  # for ever, if it backtracked
    assert validator.at_once(request(), answer("aaa")) == 1.0


@pytest.mark.parametrize("options", [{"pattern": "("}, {"json_schema": "{"}, {"json_schema": '{"type": "colour"}'}])
def test_wrong_options_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Validator("v", ValidatorPolicy(**options))  # type: ignore[arg-type]


# -- questions and replies ------------------------------------------------------------------------


@few
@given(st.text(), st.text())
def test_what_is_filled_in_is_never_filled_in_again(question: str, text: str) -> None:
    filled = fill_in("Q: {question}\nA: {answer}\n{other}", question, text)
    assert filled == "Q: " + question + "\nA: " + text + "\n{other}"


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}, "Hi"),
        (
            "chat/completions",
            {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": [{"text": "U"}]}]},
            "system: S\n\nuser: U",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}, {"text": "U"}]}]},
            "[image_url]\nU",
        ),
        ("completions", {"prompt": "once"}, "once"),
        ("completions", {"prompt": [1, 2]}, None),
    ],
)  # fmt: skip
def test_the_text_of_a_question(path: str, body: dict[str, Any], text: str | None) -> None:
    asked = asked_by(CompletionRequest(b"/v1/" + path.encode(), json.dumps({"model": "m", **body}).encode()))
    assert asked is not None
    assert asked.text == text


def chunk(index: int, **delta: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": index, "delta": delta}]}).encode() + b"\n\n"


def test_a_stream_says_what_its_chunks_say_together() -> None:
    stream = HeldStream(wants_usage=False, wants_logprobs=False)
    pieces = [{"index": 0, "function": {"name": "add", "arguments": '{"n"'}}, {"index": 1, "function": {"name": "b"}}]
    stream.feed(chunk(0, role="assistant", content="Two ") + chunk(1, content="other") + chunk(0, content="words"))
    stream.feed(chunk(0, tool_calls=pieces) + chunk(0, tool_calls=[{"index": 0, "function": {"arguments": ": 1}"}}]))
    first, second = stream.said()
    assert (first.text, second.text) == ("Two words", "other")
    assert first.tool_calls == [ToolCall("add", '{"n": 1}'), ToolCall("b", "")]
    assert first.as_text == 'Two words\n{"tool": "add", "arguments": {"n": 1}}\n{"tool": "b", "arguments": }'


def test_a_completion_says_its_text() -> None:
    [said] = said_by(b'{"choices": [{"index": 0, "text": "once"}]}')
    assert said.text == "once"


@pytest.mark.parametrize(
    ("tops", "expected"),
    [
        ([("Yes", 0.6), ("No", 0.2)], 0.75),
        ([("Yes", 0.3), (" yes", 0.3), ("no", 0.2), ("maybe", 0.1)], 0.75),
        ([("**Yes", 0.5)], 1.0),
        ([("<think>", 0.9)], None),
        ([], None),
    ],
)
def test_the_probability_of_yes(tops: list[tuple[str, float]], expected: float | None) -> None:
    candidates = [{"token": token, "logprob": math.log(share)} for token, share in tops]
    content = [{"token": "x", "logprob": -1.0, "top_logprobs": candidates}]
    document = json.dumps({"choices": [{"logprobs": {"content": content}}]}).encode()
    found = probability_of_yes(document)
    assert found == (None if expected is None else pytest.approx(expected))


@few
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["choices", "score", "message", "logprobs", "content", "top_logprobs"]), inner
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_reply_is_a_score_from_0_to_1_or_malformed(reply: bytes) -> None:
    written = [
        {"type": "Judge", "judge": {"url": "http://judge/v1", "model": "m"}},
        {"type": "Judge", "judge": {"url": "http://judge/v1", "model": "m", "reply": "YesNo"}},
        {"type": "Http", "http": {"url": "http://judge/"}},
        {"type": "SelfVerify"},
    ]
    for each in written:
        scorer = Workbench().scorer(scorer_policy(Scorer.model_validate(each)))
        assert isinstance(scorer, Asking)
        outcome = scorer.outcome(reply)
        assert outcome == Unscored(scorer.id, "malformed") or 0 <= outcome <= 1


@pytest.mark.parametrize("text", ["[" * 900 + "]" * 900, "\x00", '{"n": 1' + "0" * 5000 + "}"])
def test_no_text_breaks_a_check(text: str) -> None:
    body = json.dumps({"choices": [{"index": 0, "message": {"content": text}}]}).encode()
    for policy in (ValidatorPolicy(json_schema=OBJECT), ValidatorPolicy(pattern="a"), ValidatorPolicy(tool_calls=True)):
        outcome = Validator("v", policy).at_once(request(), WholeAnswer(body, wants_logprobs=False))
        assert outcome in (0.0, 1.0, Unscored("v", "unsupported"))


# -- ids ------------------------------------------------------------------------------------------


def identified(**fields: Any) -> str:
    return Scorer.model_validate(fields).id


def test_an_id_says_what_the_scores_depend_on_and_nothing_else() -> None:
    judge = {"url": "https://a/v1", "model": "m"}
    assert identified() == "logprob-mean"
    assert identified(statistic="Quantile") == "logprob-q10"
    assert identified(statistic="Quantile", quantile="0.025") == "logprob-q2.5"
    plain = identified(type="Judge", judge=judge)
    elsewhere = judge | {"url": "https://b/v1", "apiKeySecretRef": {"name": "a", "key": "b"}}
    assert plain == identified(type="Judge", judge=elsewhere, deadlineMs=5, latencyMs=3)
    assert plain != identified(type="Judge", judge=judge | {"model": "n"})
    assert identified(type="Judge", id="mine", judge=judge) == "mine"
    assert plain != identified(type="Judge", judge=judge | {"maxCompletionTokens": 2000})
    assert plain == "judge-deea0f77", "the id of sets that were made before the last field was there"
    parts = [{"type": "LogProb"}, {"type": "Judge", "judge": judge}]
    composite = identified(type="Composite", combine="All", parts=parts)
    curve = [{"score": "0", "worth": "0.1"}, {"score": "1", "worth": "0.9"}]
    assert composite != identified(type="Composite", combine="Minimum", parts=parts)
    assert composite != identified(
        type="Composite", combine="All", parts=[{"type": "LogProb", "calibration": curve}, parts[1]]
    )


def test_a_policy_survives_the_wire() -> None:
    parts = [{"type": "LogProb", "weight": "2"}, {"type": "SelfVerify"}]
    policy = scorer_policy(Scorer.model_validate({"type": "Composite", "combine": "WeightedMean", "parts": parts}))
    document = msgspec.json.encode(policy)
    assert msgspec.json.decode(document, type=ScorerPolicy) == policy
    assert b"judge" not in document
    with pytest.raises(msgspec.ValidationError, match="needs judge"):
        msgspec.json.decode(b'{"type": "Judge"}', type=ScorerPolicy)
