"""Chains of routers answering whole requests: accepting, escalating, skipping, relaying."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.router_chain import StageOf, chain_of, eventually, http
from tests.support.scripted_engine import ScriptedEngine, answer, status

CHAT = "/v1/chat/completions"
UNSURE = answer(logprob=-1.0)
SURE = answer(logprob=-0.05)


SPENT = {"promptTokens": 7, "completionTokens": 3}


def chat(**extra: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": "hello"}], **extra}


def two_stages(first: Any = SURE, second: Any = SURE) -> tuple[StageOf, StageOf]:
    return (
        StageOf("small", 0.8, [ScriptedEngine("small", first)]),
        StageOf("large", None, [ScriptedEngine("large", second)]),
    )


async def test_a_confident_answer_is_accepted_with_its_decision(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages()) as chain:
        reply = await http(chain.client("small"), CHAT, chat(temperature=0.5, unknownField={"a": [1]}))

        assert reply.status == 200
        assert reply.json["choices"][0]["message"]["content"].startswith("small0")
        assert reply.headers["x-cascadia-stage"] == "small"
        assert reply.headers["x-cascadia-path"] == "small"
        assert reply.headers["x-cascadia-plan"] == "plan-1"
        assert float(reply.headers["x-cascadia-score"]) == pytest.approx(math.exp(-0.05), abs=1e-5)
        assert reply.headers["x-request-id"].startswith("req-")
        decision = reply.json["cascadia"]
        assert decision.pop("score") == pytest.approx(math.exp(-0.05))
        assert decision == {
            "stage": "small", "threshold": 0.8, "path": "small", "plan": "plan-1", "policyRevision": 1,
            "usage": {"promptTokens": 7, "completionTokens": 3, "stages": {"small": SPENT}},
        }  # fmt: skip
        assert reply.json["choices"][0]["logprobs"] is None
        assert reply.json["engineExtra"] == {"kept": True}

        asked = chain.engine("small").seen[0].json
        assert asked == chat(temperature=0.5, unknownField={"a": [1]}, model="served-small", logprobs=True)
        assert not chain.engine("large").seen


async def test_an_unsure_answer_escalates_with_the_original_body(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(UNSURE)) as chain:
        reply = await http(chain.client("small"), CHAT, chat(), headers={"x-request-id": "mine-1"})

        assert reply.json["choices"][0]["message"]["content"].startswith("large0")
        assert reply.headers["x-cascadia-stage"] == "large"
        assert reply.headers["x-cascadia-path"] == "small>large"
        assert "x-cascadia-score" not in reply.headers
        assert reply.headers["x-request-id"] == "mine-1"
        assert reply.json["cascadia"]["path"] == "small>large"
        assert chain.engine("large").seen[0].json == chat(model="served-large")
        assert chain.engine("large").seen[0].headers["x-request-id"] == "mine-1"
        assert chain.router("small").node.metrics.escalations == {("small", "large", "score"): 1}


async def test_log_probabilities_that_the_client_asked_for_stay(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages()) as chain:
        reply = await http(chain.client("small"), CHAT, chat(logprobs=True, top_logprobs=2))
        assert len(reply.json["choices"][0]["logprobs"]["content"]) == 3
        assert chain.engine("small").seen[0].json["top_logprobs"] == 2


async def test_text_completions_are_scored_too(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(UNSURE)) as chain:
        reply = await http(chain.client("small"), "/v1/completions", {"model": "chat", "prompt": "once"})
        assert reply.json["choices"][0]["text"].startswith("large0")
        assert chain.engine("small").seen[0].json["logprobs"] == 1
        assert "logprobs" not in chain.engine("large").seen[0].json
        chain.engine("small").behaviour = SURE
        reply = await http(chain.client("small"), "/v1/completions", {"model": "chat", "prompt": "once"})
        assert reply.json["choices"][0]["text"].startswith("small0")
        assert reply.json["choices"][0]["logprobs"] is None


async def test_three_stages_and_the_last_streams_through(tmp_path: Path) -> None:
    stages = (
        StageOf("small", 0.8, [ScriptedEngine("small", UNSURE)]),
        StageOf("medium", 0.9, [ScriptedEngine("medium", UNSURE)]),
        StageOf("large", None, [ScriptedEngine("large")]),
    )
    async with chain_of(tmp_path, *stages) as chain:
        for stream in (False, True):
            reply = await http(chain.client("small"), CHAT, chat(stream=stream))
            assert reply.headers["x-cascadia-path"] == "small>medium>large"
        content = [event["choices"][0]["delta"]["content"] for event in reply.events[:-2]]
        assert content == ["large0 ", "large1 ", "large2 "]
        assert reply.events[-2]["choices"] == []
        assert reply.events[-2]["cascadia"]["path"] == "small>medium>large"
        assert reply.events[-1] == "[DONE]"


@pytest.mark.parametrize("entry", ["small", "large"])
@pytest.mark.parametrize("stream", [False, True])
async def test_usage_is_the_answering_stages_and_the_cascades_is_beside_it(
    tmp_path: Path, entry: str, stream: bool
) -> None:
    stages = (
        StageOf("small", 0.8, [ScriptedEngine("small", UNSURE)]),
        StageOf("medium", 0.9, [ScriptedEngine("medium", answer(logprob=-1.0, tokens=5))]),
        StageOf("large", None, [ScriptedEngine("large")]),
    )
    async with chain_of(tmp_path, *stages) as chain:
        body = chat(stream=stream, stream_options={"include_usage": True})
        reply = await http(chain.client(entry), CHAT, body)
        last = reply.events[-2] if stream else reply.json
        assert last["usage"]["completion_tokens"] == 3
        medium = {"promptTokens": 7, "completionTokens": 5}
        assert last["cascadia"]["usage"] == {
            "promptTokens": 21,
            "completionTokens": 11,
            "stages": {"small": SPENT, "medium": medium, "large": SPENT},
        }
        # The large stage cannot be asked: the medium one's answer is the best, and what it took is counted once.
        chain.engine("large").behaviour = status(500)
        reply = await http(chain.client(entry), CHAT, body)
        last = reply.events[-2] if stream else reply.json
        assert last["cascadia"]["path"] == "small>medium"
        assert last["cascadia"]["usage"] == {
            "promptTokens": 14,
            "completionTokens": 8,
            "stages": {"small": SPENT, "medium": medium},
        }


async def test_max_escalations_accepts_what_the_last_allowed_stage_says(tmp_path: Path) -> None:
    stages = (
        StageOf("small", 0.8, [ScriptedEngine("small", UNSURE)]),
        StageOf("medium", 0.9, [ScriptedEngine("medium", UNSURE)]),
        StageOf("large", None, [ScriptedEngine("large")]),
    )
    async with chain_of(tmp_path, *stages, max_escalations=1) as chain:
        reply = await http(chain.client("small"), CHAT, chat())
        assert reply.headers["x-cascadia-path"] == "small>medium"
        assert not chain.engine("large").seen


@pytest.mark.parametrize("entry", ["large", "none"])
async def test_any_router_is_an_entry(tmp_path: Path, entry: str) -> None:
    async with chain_of(tmp_path, *two_stages()) as chain:
        address = (await chain.add_entry()).addresses["client"] if entry == "none" else chain.client("large")
        reply = await http(address, CHAT, chat())
        assert reply.headers["x-cascadia-path"] == "small"
        chain.engine("small").behaviour = UNSURE
        for stream in (False, True):
            reply = await http(address, CHAT, chat(stream=stream))
            assert reply.headers["x-cascadia-path"] == "small>large"
        router = chain.entries[0] if entry == "none" else chain.router("large")
        assert router.node.window.report(
            router.node.now(), 60, window_end=0, plan_id="", policy_revision=1
        ).answered_by == {"small": 1, "large": 2}


async def test_replicas_share_by_outstanding_over_weight(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def wait(engine: ScriptedEngine, seen: Any, writer: asyncio.StreamWriter) -> None:
        await gate.wait()
        await SURE(engine, seen, writer)

    engines = [ScriptedEngine("a", wait), ScriptedEngine("b", wait)]
    async with chain_of(tmp_path, StageOf("only", None, engines, weights=[1.0, 2.0])) as chain:
        requests = [asyncio.create_task(http(chain.client("only"), CHAT, chat())) for _ in range(9)]
        await eventually(lambda: len(engines[0].seen) + len(engines[1].seen) == 9, "all are asked")
        assert (len(engines[0].seen), len(engines[1].seen)) == (3, 6)
        gate.set()
        assert {(await request).status for request in requests} == {200}


async def test_a_stage_that_cannot_take_the_request_is_skipped(tmp_path: Path) -> None:
    small = StageOf("small", 0.8, [ScriptedEngine("small")], context_window=1000, capabilities=["tools"])
    large = StageOf("large", None, [ScriptedEngine("large")])
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    async with chain_of(tmp_path, small, large) as chain:
        too_long = await http(chain.client("small"), CHAT, chat(max_tokens=990))
        with_image = await http(
            chain.client("small"), CHAT, chat() | {"messages": [{"role": "user", "content": image}]}
        )
        about_images = await http(
            chain.client("small"), CHAT, chat() | {"messages": [{"role": "user", "content": 'what is "image_url"?'}]}
        )
        with_tools = await http(chain.client("small"), CHAT, chat(tools=[{"type": "function"}]))
        assert too_long.headers["x-cascadia-path"] == "large"
        assert with_image.headers["x-cascadia-path"] == "large"
        assert about_images.headers["x-cascadia-path"] == "small"
        assert with_tools.headers["x-cascadia-path"] == "small"


async def test_model_names_pin_a_stage_or_are_refused(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(UNSURE)) as chain:
        pinned = await http(chain.client("large"), CHAT, chat() | {"model": "small"})
        assert pinned.headers["x-cascadia-path"] == "small"
        assert "logprobs" not in chain.engine("small").seen[0].json
        unknown = await http(chain.client("small"), CHAT, chat() | {"model": "gpt-9"})
        assert unknown.status == 404
        assert unknown.json["error"]["code"] == "model_not_found"
        assert unknown.json["error"]["param"] == "model"
        models = await http(chain.client("small"), "/v1/models")
        assert [model["id"] for model in models.json["data"]] == ["chat", "small", "large"]
        chain.put(chain.make_policy(2, pin_stages=False))
        assert (await http(chain.client("large"), CHAT, chat() | {"model": "small"})).status == 404
        models = await http(chain.client("small"), "/v1/models")
        assert [model["id"] for model in models.json["data"]] == ["chat"]


async def test_an_engine_that_finds_the_request_wrong_is_passed_through(tmp_path: Path) -> None:
    no = status(400, b'{"error": {"message": "temperature must be >= 0"}}')
    async with chain_of(tmp_path, *two_stages(no)) as chain:
        for address in (chain.client("small"), chain.client("large")):
            reply = await http(address, CHAT, chat())
            assert reply.status == 400
            error = {
                "message": "temperature must be >= 0",
                "type": "invalid_request_error",
                "param": None,
                "code": None,
            }
            assert reply.json == {"error": error}
        assert not chain.engine("large").seen


async def test_unscorable_answers_escalate_within_the_budget(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(answer(scored=False)), escalation_budget=0.25) as chain:
        stages = [(await http(chain.client("small"), CHAT, chat())).headers["x-cascadia-stage"] for _ in range(8)]
        assert stages == ["large", "small", "small", "small", "small", "small", "small", "large"]
        metrics = chain.router("small").node.metrics
        assert metrics.scorer_errors == {("small", "logprob-mean", "no_logprobs"): 8}
        assert metrics.unscored == {("small", "escalate"): 2, ("small", "budget_spent"): 6}
        chain.put(chain.make_policy(2, on_scorer_error="Accept"))
        assert (await http(chain.client("small"), CHAT, chat())).headers["x-cascadia-stage"] == "small"


async def test_the_plan_at_entry_governs_the_whole_request(tmp_path: Path) -> None:
    """A router further on follows the entry's thresholds although its own policy is newer."""
    stages = (
        StageOf("small", 0.8, [ScriptedEngine("small", UNSURE)]),
        StageOf("medium", 0.1, [ScriptedEngine("medium", UNSURE)]),
        StageOf("large", None, [ScriptedEngine("large")]),
    )
    async with chain_of(tmp_path, *stages) as chain:
        strict = chain.make_policy(2)
        strict.stages[1] = type(strict.stages[1])(
            name="medium", served_model_name="served-medium", threshold=0.99, endpoints=strict.stages[1].endpoints
        )
        chain.put(strict, only=[chain.router("medium"), chain.router("large")])
        reply = await http(chain.client("small"), CHAT, chat())
        assert reply.headers["x-cascadia-path"] == "small>medium"
        assert reply.json["cascadia"]["policyRevision"] == 1
        assert reply.headers["x-cascadia-plan"] == "plan-1"
        chain.put(strict)
        reply = await http(chain.client("small"), CHAT, chat())
        assert reply.headers["x-cascadia-path"] == "small>medium>large"
        assert reply.json["cascadia"]["plan"] == "plan-2"


async def test_the_official_client_without_streams(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(UNSURE)) as chain:
        base = f"http://{chain.client('small')}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
            made = await client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "hi"}])
            assert made.choices[0].message.content == "large0 large1 large2 "
            assert made.usage is not None
            assert made.usage.completion_tokens == 3
            assert made.model_extra is not None
            assert made.model_extra["cascadia"]["stage"] == "large"
            raw = await client.chat.completions.with_raw_response.create(
                model="chat", messages=[{"role": "user", "content": "hi"}]
            )
            assert raw.headers["x-cascadia-path"] == "small>large"
            with pytest.raises(openai.NotFoundError, match="no model"):
                await client.chat.completions.create(model="nope", messages=[{"role": "user", "content": "hi"}])

        def synchronous() -> str:
            with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client:
                made = client.completions.create(model="chat", prompt="once")
                return made.choices[0].text

        assert (await asyncio.to_thread(synchronous)).startswith("large0")


async def test_reports_say_what_the_stage_saw(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(), sample_rate=1.0) as chain:
        await http(chain.client("small"), CHAT, chat())
        chain.engine("small").behaviour = UNSURE
        await http(chain.client("small"), CHAT, chat(stream=True))
        await http(chain.client("small"), CHAT, chat(model="nope"))
        report = (await http(chain.admin("small"), "/cascade/report?windowSeconds=60")).json
        assert (report["arrivals"], report["refused"], report["failures"]) == (3, 1, 0)
        assert report["answeredBy"] == {"small": 1, "large": 1}
        assert report["stage"] | {"inputTokens": 0, "outputTokens": 0, "serviceMs": 0, "scores": 0} == {
            "stage": "small", "requests": 2, "accepted": 1, "escalated": 1, "scorerErrors": 0, "engineErrors": 0,
            "inputTokens": 0, "outputTokens": 0, "serviceMs": 0, "scores": 0,
        }  # fmt: skip
        assert report["stage"]["outputTokens"]["sum"] == 6
        assert sum(report["stage"]["scores"]["counts"]) == 2
        assert [round(sample["score"], 3) for sample in report["samples"]] == [0.951, 0.368]
        assert {sample["inclusionProbability"] for sample in report["samples"]} == {1.0}
        large = (await http(chain.admin("large"), "/cascade/report")).json
        assert large["arrivals"] == 0
        assert large["stage"]["accepted"] == 1
        assert large["stage"]["outputTokens"]["sum"] == 3
        assert json.loads((await http(chain.admin("small"), "/cascade/report?windowSeconds=x")).body)["error"]
