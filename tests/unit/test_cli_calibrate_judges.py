"""Judges, and where stages are asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from cascadia_api.errors import InputError
from cascadia_cli.calibrating.endpoint import AskError, Endpoint, UnusableAnswerError, base_url, together
from cascadia_cli.calibrating.judges import (
    AgreementJudge,
    EndpointJudge,
    ReferenceJudge,
    _read_verdict,
    check_template,
)
from cascadia_cli.calibrating.prompts import Prompt, parse_prompts
from cascadia_cli.calibrating.stages import StageAddress, stage_addresses

TEXTS = {"small": "It is 17.", "large": "The answer is 18."}


def prompt(**fields: Any) -> Prompt:
    return parse_prompts([json.dumps({"id": "1", "prompt": "How many?"} | fields)], need_references=False)[0]


class Verdicts:
    """An endpoint that gives verdicts by the answer that it is shown; the reading of them is the judge's."""

    def __init__(self, verdict: Callable[[str], str]) -> None:
        self.verdict = verdict
        self.bodies: list[dict[str, Any]] = []

    async def ask(self, body: dict[str, Any], read: Callable[[bytes], float]) -> float:
        self.bodies.append(body)
        content = self.verdict(body["messages"][0]["content"])
        return read(json.dumps({"choices": [{"message": {"content": content}}]}).encode())


async def judged(verdict: str) -> float:
    judge = EndpointJudge(cast("Endpoint", Verdicts(lambda _: verdict)), "m")
    return (await judge.worth(prompt(), {"small": "x"}))["small"]


async def test_a_reference_judges_each_answer() -> None:
    assert await ReferenceJudge().worth(prompt(reference=18), TEXTS) == {"small": 0.0, "large": 1.0}
    assert await ReferenceJudge().worth(prompt(reference=["17", "18"]), TEXTS) == {"small": 1.0, "large": 1.0}


async def test_the_largest_model_is_always_right_to_agreement() -> None:
    assert await AgreementJudge().worth(prompt(), TEXTS) == {"small": 0.0, "large": 1.0}
    assert await AgreementJudge().worth(prompt(), TEXTS | {"small": "18"}) == {"small": 1.0, "large": 1.0}


async def test_a_judge_model_sees_question_reference_and_answer_and_not_the_stage() -> None:
    endpoint = Verdicts(lambda content: "score: 0.25" if "{answer}" in content else "It is right.\nScore: **1**")
    judge = EndpointJudge(cast("Endpoint", endpoint), "grader")
    texts = TEXTS | {"small": "{answer} {question}"}  # what looks like a placeholder is none
    assert await judge.worth(prompt(reference="18"), texts) == {"small": 0.25, "large": 1.0}
    assert judge.name == "Endpoint/grader"
    for body, text in zip(endpoint.bodies, texts.values(), strict=True):
        content = body["messages"][0]["content"]
        assert (body["model"], body["temperature"]) == ("grader", 0)
        assert f"<question>\nHow many?\n</question>\n\n<reference>\n18\n</reference>\n\n<answer>\n{text}\n" in content
        assert "small" not in content
        assert "large" not in content


async def test_a_judge_that_thinks_first_is_given_room_and_no_temperature() -> None:
    endpoint = Verdicts(lambda _: "score: 1")
    judge = EndpointJudge(cast("Endpoint", endpoint), "thinker", max_completion_tokens=4000)
    assert await judge.worth(prompt(), {"small": "x"}) == {"small": 1.0}
    (body,) = endpoint.bodies
    assert set(body) == {"model", "messages", "max_completion_tokens"}
    assert body["max_completion_tokens"] == 4000


@pytest.mark.parametrize(
    ("verdict", "value"),
    [
        ("score: 0.8", 0.8),
        ("First I thought score: 0.2, but\n**Score:** 1", 1.0),
        ("Score = .5", 0.5),
        ("score: 1.0\n", 1.0),
        ("0.75", 0.75),
        ("score: 0.5.", 0.5),
        ("score: 0.5\nThe score: X is asked for", 0.5),
    ],
)
async def test_verdicts_are_read(verdict: str, value: float) -> None:
    assert await judged(verdict) == value


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ("I like it", "no `score: X` in its verdict, which ends 'I like it'"),
        ("score: 8/10", "no `score: X`"),
        ("score: 0.2 at first, in the end score: 1/10", "no `score: X`"),
        ("score: 1e-3", "no `score: X`"),
        ("score: 1 out of 10", "no `score: X`"),
        ("score: 1 %", "no `score: X`"),
        ("score: 8", "a score of 8 in its verdict: it must lie between 0 and 1"),
        ("-1", "a score of -1"),
        ("", "no `score: X`"),
    ],
)
async def test_verdicts_that_say_nothing_are_refused(verdict: str, said: str) -> None:
    with pytest.raises(UnusableAnswerError) as caught:
        await judge_alone(verdict)
    assert said in str(caught.value)


def test_a_verdict_that_is_no_text_is_refused() -> None:
    with pytest.raises(UnusableAnswerError, match="a verdict that is no text"):
        _read_verdict(b'{"choices": [{"message": {"content": [{"text": "score: 1"}]}}]}')


async def judge_alone(verdict: str) -> float:
    return await EndpointJudge(cast("Endpoint", Verdicts(lambda _: verdict)), "m")._verdict(prompt(), "x")


def test_a_template_needs_the_question_and_the_answer() -> None:
    check_template("{question} {answer} { } {other}")
    with pytest.raises(InputError, match=r"lacks \{answer\}"):
        check_template("{question} {reference}")


async def test_the_first_failure_of_many_ends_the_others() -> None:
    import asyncio

    ended = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def fail() -> None:
        raise AskError("no")

    with pytest.raises(AskError, match="no"):
        await together(forever(), together(forever(), fail()))
    assert ended.is_set()


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1"),
        ("http://host/v1/", "http://host/v1"),
        ("https://host:1/openai/v1/chat/completions", "https://host:1/openai/v1"),
    ],
)
def test_base_urls(given: str, base: str) -> None:
    assert base_url("--endpoint", given) == base


@pytest.mark.parametrize("url", ["", "localhost:8080", "ftp://host", "http://", "http://host:99999", "http://[::1"])
def test_what_is_no_url_is_named(url: str) -> None:
    with pytest.raises(InputError, match=r"--endpoint: .* is not a URL"):
        base_url("--endpoint", url)


def test_stages_are_asked_at_the_cascade_or_at_their_own_endpoints() -> None:
    cascade, own = "http://cascade/v1", "http://engine/v1"
    assert stage_addresses(["small", "large"], "http://cascade", ["large=http://engine#org/model"]) == [
        StageAddress("small", cascade, "small", pinned=True),
        StageAddress("large", own, "org/model", pinned=False),
    ]
    assert stage_addresses(["one"], None, ["one=http://engine/v1"]) == [StageAddress("one", own, None, pinned=False)]
