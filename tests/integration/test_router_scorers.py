"""Scorers that ask somebody, over real HTTP: a judge, a service, the engine itself; and what happens when they fail."""

from __future__ import annotations

import asyncio
import json
import math
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.cascade.scorer import Scorer
from cascadia_api.policy import ScorerPolicy, ValidatorPolicy
from cascadia_api.scorer_policy import scorer_policy
from tests.support.control_plane.pki import Pki
from tests.support.router_chain import Chain, StageOf, chain_of, eventually, http
from tests.support.scripted_engine import (
    Behaviour,
    ScriptedEngine,
    Seen,
    answer,
    hang,
    http_response,
    malformed,
    reset,
    status,
)

CHAT = "/v1/chat/completions"


def chat(**extra: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": "What is {answer}?"}], **extra}


def says(body: Any) -> Behaviour:
    """Answer with this JSON."""

    async def behave(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(http_response(200, json.dumps(body).encode()))

    return behave


def says_text(text: str) -> Behaviour:
    return says({"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]})


def says_yes(probability: float) -> Behaviour:
    """A first token that is yes with this probability."""
    tops = [
        {"token": "Yes", "logprob": math.log(probability * 0.9)},
        {"token": " no", "logprob": math.log((1 - probability) * 0.9)},
        {"token": "Perhaps", "logprob": math.log(0.1)},
    ]
    content = [{"token": "Yes", "logprob": tops[0]["logprob"], "top_logprobs": tops}]
    return says({"choices": [{"index": 0, "message": {"content": "Yes"}, "logprobs": {"content": content}}]})


def scorer(**fields: Any) -> ScorerPolicy:
    return scorer_policy(Scorer.model_validate(fields))


@pytest.fixture
async def judge() -> AsyncIterator[ScriptedEngine]:
    engine = ScriptedEngine("judge")
    await engine.start()
    yield engine
    await engine.stop()


def judged(judge: ScriptedEngine, *, deadline_ms: int | None = None, limit: int | None = None, **extra: Any) -> Any:
    options = {"url": f"http://{judge.address}/v1", "model": "referee", **extra}
    fields = {"type": "Judge", "judge": options, "deadlineMs": deadline_ms, "maxConcurrency": limit}
    return scorer(**{name: value for name, value in fields.items() if value is not None})


def two_stages(first: Any = None) -> tuple[StageOf, StageOf]:
    return (
        StageOf("small", 0.6, [ScriptedEngine("small", first or answer(logprob=-3.0))]),
        StageOf("large", None, [ScriptedEngine("large")]),
    )


def counted(chain: Chain) -> tuple[dict[Any, int], dict[Any, int]]:
    metrics = chain.router("small").node.metrics
    return dict(metrics.scorer_errors), dict(metrics.unscored)


@pytest.mark.parametrize(
    ("reply", "score"), [("7", 0.7), ("Score: 8.5/10", 0.85), ("10", 1.0), ("0", 0.0), ("I give it 3.", 0.3)]
)
async def test_a_judges_number_is_the_score(tmp_path: Path, judge: ScriptedEngine, reply: str, score: float) -> None:
    judge.behaviour = says_text(reply)
    async with chain_of(tmp_path, *two_stages(), scorer=judged(judge)) as chain:
        answered = await http(chain.client("small"), CHAT, chat())
        if score >= 0.6:
            assert answered.json["cascadia"]["score"] == pytest.approx(score)
            assert answered.json["cascadia"]["stage"] == "small"
        else:
            assert answered.json["cascadia"]["stage"] == "large"
        [asked] = judge.seen
        assert asked.path == "/v1/chat/completions"
        assert asked.json["model"] == "referee"
        [message] = asked.json["messages"]
        assert "[Request]\nWhat is {answer}?\n" in message["content"]  # what is filled in is not filled in again
        assert "[Answer]\nsmall0 small1 small2 " in message["content"]
        assert (asked.json["max_tokens"], asked.json["temperature"]) == (16, 0)


@pytest.mark.parametrize("reply", ["Number", "YesNo"])
async def test_a_judge_that_thinks_first_is_given_room_and_no_temperature(
    tmp_path: Path, judge: ScriptedEngine, reply: str
) -> None:
    judge.behaviour = says_text("9") if reply == "Number" else says_yes(0.9)
    policy = judged(judge, reply=reply, maxCompletionTokens=2000)
    async with chain_of(tmp_path, *two_stages(), scorer=policy) as chain:
        answered = await http(chain.client("small"), CHAT, chat())
        assert answered.json["cascadia"]["score"] == pytest.approx(0.9)
        [asked] = judge.seen
        assert asked.json["max_completion_tokens"] == 2000
        assert not {"max_tokens", "temperature"} & set(asked.json)
        assert "logprobs" not in chain.engine("small").seen[0].json  # nobody needs them
        text = (await http(chain.admin("small"), "/metrics")).body.decode()
        assert 'cascadia_router_scorer_seconds_count{scorer="judge-' in text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_judges_probability_of_yes_is_the_score(tmp_path: Path, judge: ScriptedEngine, stream: bool) -> None:
    judge.behaviour = says_yes(0.75)
    async with chain_of(tmp_path, *two_stages(), scorer=judged(judge, reply="YesNo")) as chain:
        answered = await http(chain.client("small"), CHAT, chat(stream=stream))
        decision = answered.events[-2]["cascadia"] if stream else answered.json["cascadia"]
        assert (decision["stage"], decision["score"]) == ("small", pytest.approx(0.75))
        assert judge.seen[0].json["top_logprobs"] == 20
        assert "small0 small1 small2 " in judge.seen[0].json["messages"][0]["content"]


@pytest.mark.parametrize(
    ("path", "asked"),
    [("responses", {"input": "What is it?"}), ("completions", {"prompt": "What is it?"})],
)
async def test_every_api_of_the_cascade_is_judged(
    tmp_path: Path, judge: ScriptedEngine, path: str, asked: dict[str, str]
) -> None:
    judge.behaviour = says_text("9")
    async with chain_of(tmp_path, *two_stages(), scorer=judged(judge)) as chain:
        answered = await http(chain.client("small"), f"/v1/{path}", {"model": "chat", **asked})
        assert answered.json["cascadia"]["score"] == 0.9
        content = judge.seen[0].json["messages"][0]["content"]
        assert "[Request]\nWhat is it?\n" in content
        assert "[Answer]\nsmall0 small1 small2 " in content


async def test_an_engine_verifies_its_own_answer_in_the_same_conversation(tmp_path: Path) -> None:
    async def behave(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        verifying = seen.json["messages"][-1]["content"].startswith("Is your answer above")
        await (says_yes(0.25) if verifying else answer())(engine, seen, writer)

    async with chain_of(tmp_path, *two_stages(behave), scorer=scorer(type="SelfVerify")) as chain:
        messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello"}]
        answered = await http(chain.client("small"), CHAT, chat(messages=messages))
        assert answered.json["cascadia"]["path"] == "small>large"
        first, second = chain.engine("small").seen
        assert second.json["messages"][:2] == first.json["messages"]
        assert second.json["messages"][2] == {"role": "assistant", "content": "small0 small1 small2 "}
        assert second.json["model"] == "served-small"
        assert second.json["max_tokens"] == 1


async def test_a_service_is_sent_request_and_answer_and_returns_the_score(
    tmp_path: Path, judge: ScriptedEngine
) -> None:
    judge.behaviour = says({"score": 0.9, "more": "ignored"})
    (tmp_path / "judge-key.token").write_text("s3cret\n")
    policy = scorer(
        type="Http",
        http={
            "url": f"http://{judge.address}/score?v=1",
            "apiKeySecretRef": {"name": "judge-key", "key": "token"},
        },
    )
    config = {"secrets": str(tmp_path)}
    async with chain_of(tmp_path, *two_stages(), config=config, scorer=policy) as chain:
        answered = await http(chain.client("small"), CHAT, chat(), headers={"x-request-id": "abc"})
        assert answered.json["cascadia"]["score"] == 0.9
        asked = judge.seen[0]
        assert asked.path == "/score?v=1"
        assert asked.headers["authorization"] == "Bearer s3cret"
        assert asked.headers["x-request-id"] == "abc"
        assert asked.json == {
            "schemaVersion": 1,
            "scorer": policy.id,
            "requestId": "abc",
            "model": "served-small",
            "request": chat(),
            "question": "What is {answer}?",
            "answer": {"text": "small0 small1 small2 ", "toolCalls": []},
        }
        (tmp_path / "judge-key.token").write_text("another")
        await http(chain.client("small"), CHAT, chat())
        assert judge.seen[1].headers["authorization"] == "Bearer another"
        (tmp_path / "judge-key.token").unlink()
        await http(chain.client("small"), CHAT, chat())
        assert counted(chain)[0] == {("small", policy.id, "secret"): 1}


async def test_an_endpoint_with_certificates_of_its_own(tmp_path: Path) -> None:
    pki = Pki(tmp_path / "pki")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pki.certificate("etcd"), pki.key("etcd"))
    seen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head)
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
        await reader.readexactly(length)
        writer.write(http_response(200, b'{"score": 1}'))
        await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    (tmp_path / "judge.ca").symlink_to(pki.certificate("ca"))
    trusting = {"url": f"https://127.0.0.1:{port}/", "caSecretRef": {"name": "judge", "key": "ca"}}
    doubting = {"url": f"https://127.0.0.1:{port}/"}
    config = {"secrets": str(tmp_path)}
    try:
        async with chain_of(
            tmp_path, *two_stages(), config=config, scorer=scorer(type="Http", id="mine", http=trusting)
        ) as chain:
            assert (await http(chain.client("small"), CHAT, chat())).json["cascadia"]["score"] == 1.0
            assert len(seen) == 1
            chain.put(chain.make_policy(2, scorer=scorer(type="Http", id="mine", http=doubting)))
            answered = await http(chain.client("small"), CHAT, chat())
            assert answered.json["cascadia"]["stage"] == "large"
            assert counted(chain)[0] == {("small", "mine", "unreachable"): 1}
            assert len(seen) == 1
    finally:
        server.close()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (status(503), "status"),
        (status(401), "status"),
        (reset, "lost"),
        (malformed, "malformed"),
        (says_text("I cannot say"), "malformed"),
        (says_text("11"), "malformed"),
        (says({"choices": []}), "malformed"),
        (hang, "timeout"),
    ],
)
async def test_failures_escalate_within_the_budget_then_accept_and_are_counted(
    tmp_path: Path, judge: ScriptedEngine, behaviour: Behaviour, reason: str
) -> None:
    judge.behaviour = behaviour
    policy = judged(judge, deadline_ms=200)
    async with chain_of(tmp_path, *two_stages(), scorer=policy, escalation_budget=0.2) as chain:
        first, second = [await http(chain.client("small"), CHAT, chat()) for _ in range(2)]
        assert (first.json["cascadia"]["stage"], second.json["cascadia"]["stage"]) == ("large", "small")
        assert second.json["cascadia"]["score"] is None
        assert counted(chain) == (
            {("small", policy.id, reason): 2},
            {("small", "escalate"): 1, ("small", "budget_spent"): 1},
        )
        chain.put(chain.make_policy(2, scorer=policy, on_scorer_error="Accept"))
        assert (await http(chain.client("small"), CHAT, chat())).json["cascadia"]["stage"] == "small"
        assert counted(chain)[1][("small", "accept")] == 1


async def test_a_server_that_is_down_is_left_alone_for_a_while(tmp_path: Path, judge: ScriptedEngine) -> None:
    policy = judged(judge)
    await judge.stop()
    async with chain_of(tmp_path, *two_stages(), scorer=policy, on_scorer_error="Accept") as chain:
        for _ in range(5):
            await http(chain.client("small"), CHAT, chat())
        assert counted(chain)[0] == {
            ("small", policy.id, "unreachable"): 3,
            ("small", policy.id, "unavailable"): 2,
        }


async def test_questions_wait_for_their_turn_and_no_more_than_can_be_asked(
    tmp_path: Path, judge: ScriptedEngine
) -> None:
    judge.behaviour = hang
    policy = judged(judge, limit=1)
    async with chain_of(tmp_path, *two_stages(), scorer=policy, on_scorer_error="Accept") as chain:
        asking = [asyncio.create_task(http(chain.client("small"), CHAT, chat())) for _ in range(11)]
        # one is asked, eight wait, two are told to go
        await eventually(lambda: counted(chain)[0] == {("small", policy.id, "busy"): 2}, "two are too many")
        assert len(judge.seen) == 1
        assert len(chain.router("small").node.exchanges) == 9
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_a_client_that_leaves_takes_the_judges_work_with_it(tmp_path: Path, judge: ScriptedEngine) -> None:
    judge.behaviour = hang
    async with chain_of(tmp_path, *two_stages(), scorer=judged(judge)) as chain:
        asking = asyncio.create_task(http(chain.client("small"), CHAT, chat()))
        await eventually(lambda: judge.seen, "the judge is asked")
        asking.cancel()
        await eventually(lambda: judge.disconnects == 1, "the judge's connection closes")
        await eventually(lambda: not chain.router("small").node.exchanges, "the request is over")
        assert not chain.engine("large").seen


async def test_at_the_deadline_the_answer_at_hand_is_served(tmp_path: Path, judge: ScriptedEngine) -> None:
    judge.behaviour = hang
    policy = judged(judge)
    async with chain_of(tmp_path, *two_stages(), scorer=policy, request_timeout_seconds=0.5) as chain:
        answered = await http(chain.client("small"), CHAT, chat())
        assert answered.status == 200
        assert answered.json["cascadia"]["stage"] == "small"
        assert counted(chain)[0] == {("small", policy.id, "deadline"): 1}
        assert judge.disconnects == 1


async def test_every_choice_is_judged_and_the_worst_counts(tmp_path: Path, judge: ScriptedEngine) -> None:
    async def both(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        choices = [{"index": i, "message": {"role": "assistant", "content": text}} for i, text in enumerate("ab")]
        await says({"choices": choices})(engine, seen, writer)

    async def by_text(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        good = "[Answer]\na\n" in seen.json["messages"][0]["content"]
        await says_text("9" if good else "2")(engine, seen, writer)

    judge.behaviour = by_text
    async with chain_of(tmp_path, *two_stages(both), scorer=judged(judge)) as chain:
        answered = await http(chain.client("small"), CHAT, chat(n=2))
        assert answered.json["cascadia"]["path"] == "small>large"
        assert len(judge.seen) == 2


async def test_a_failed_check_decides_alone_and_the_judge_is_not_asked(tmp_path: Path, judge: ScriptedEngine) -> None:
    judge.behaviour = says_text("8")
    policy = scorer(
        type="Composite",
        combine="All",
        parts=[
            {"type": "Validator", "validator": {"pattern": "small1"}},
            {"type": "LogProb", "calibration": [{"score": "0", "worth": "0.5"}, {"score": "1", "worth": "1"}]},
            {"type": "Judge", "judge": {"url": f"http://{judge.address}/v1", "model": "referee"}},
        ],
    )
    async with chain_of(tmp_path, *two_stages(answer(logprob=-0.1)), scorer=policy) as chain:
        answered = await http(chain.client("small"), CHAT, chat())
        assert answered.json["cascadia"]["score"] == pytest.approx(0.8 * (0.5 + 0.5 * math.exp(-0.1)))
        chain.engine("small").behaviour = answer(logprob=-0.1, tokens=1)
        answered = await http(chain.client("small"), CHAT, chat())
        assert answered.json["cascadia"]["path"] == "small>large"
        assert len(judge.seen) == 1


async def test_a_policy_with_a_wrong_schema_is_refused_and_the_one_in_force_stays(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages()) as chain:
        wrong = ScorerPolicy(type="Validator", validator=ValidatorPolicy(json_schema='{"type": "colour"}'))
        chain.put(chain.make_policy(2, scorer=wrong))
        policies = chain.router("small").node.policies
        assert policies.current is not None
        assert (policies.current.revision, policies.rejected) == (1, 1)
