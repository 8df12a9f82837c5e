"""What clients send reaches the engine as it came, and what it answers comes back as it is."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.router_chain import Reply, StageOf, chain_of, http
from tests.support.scripted_engine import STREAM_HEAD, Behaviour, ScriptedEngine, Seen, answer, chunk, http_response

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]
SURE, UNSURE = answer(logprob=-0.05), answer(logprob=-1.0)
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


def two_stages(first: Behaviour, second: Behaviour = SURE) -> tuple[StageOf, StageOf]:
    can = ["tools", "images", "json-schema"]
    return (
        StageOf("small", 0.8, [ScriptedEngine("small", first)], capabilities=can),
        StageOf("large", None, [ScriptedEngine("large", second)], capabilities=can),
    )


def body_for(path: str, **fields: Any) -> dict[str, Any]:
    return {"model": "chat", **({"messages": MESSAGES} if path == CHAT else {"prompt": "hello"}), **fields}


def all_logprobs(reply: Reply, *, stream: bool) -> list[Any]:
    documents = [event for event in reply.events[:-1] if event["choices"]] if stream else [reply.json]
    return [choice["logprobs"] for document in documents for choice in document["choices"]]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("escalates", [False, True])
@pytest.mark.parametrize("asked", [None, "asks", "says no"])
async def test_log_probabilities_are_the_clients_or_nobodys(
    tmp_path: Path, path: str, stream: bool, escalates: bool, asked: str | None
) -> None:
    words: dict[str, Any] = {}
    if asked == "asks":
        words = {"logprobs": True, "top_logprobs": 2} if path == CHAT else {"logprobs": 2}
    elif asked == "says no":
        words = {"logprobs": False if path == CHAT else None}
    async with chain_of(tmp_path, *two_stages(UNSURE if escalates else SURE)) as chain:
        reply = await http(chain.client("small"), path, body_for(path, stream=stream, **words))
        assert reply.status == 200
        assert reply.headers["x-cascadia-path"] == ("small>large" if escalates else "small")
        found = all_logprobs(reply, stream=stream)
        assert len(found) == (3 if stream else 1)
        for each in found:
            assert (each is None) is (asked != "asks")
        seen = chain.engine("small").seen[0].json
        needed = {"logprobs": True} if path == CHAT else {"logprobs": 1}
        assert {name: seen[name] for name in ("logprobs", "top_logprobs") if name in seen} == (
            words if asked == "asks" else needed
        )
        if escalates:  # the last stage's answer is accepted whatever it is: only the client's wish counts
            last = chain.engine("large").seen[0].json
            assert {name: last[name] for name in ("logprobs", "top_logprobs") if name in last} == words


def choices(*logprobs: float) -> Behaviour:
    """Answer with several choices, each of one token."""

    async def behave(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        assert seen.json["n"] == len(logprobs)
        made = []
        for index, logprob in enumerate(logprobs):
            tokens = {"content": [{"token": "x", "logprob": logprob, "bytes": None, "top_logprobs": []}]}
            word = {"role": "assistant", "content": f"{engine.name}{index}"}
            made.append(
                {"index": index, "finish_reason": "stop", "logprobs": tokens if seen.json.get("logprobs") else None}
                | ({"delta": word} if seen.json.get("stream") else {"message": word})
            )
        base = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
        if seen.json.get("stream"):
            writer.write(STREAM_HEAD)
            for each in made:
                writer.write(chunk(b"data: %s\n\n" % json.dumps({**base, "choices": [each]}).encode()))
            writer.write(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        else:
            writer.write(http_response(200, json.dumps({**base, "choices": made}).encode()))

    return behave


@pytest.mark.parametrize("stream", [False, True])
async def test_several_choices_score_as_the_worst(tmp_path: Path, stream: bool) -> None:
    async with chain_of(tmp_path, *two_stages(choices(-0.01, -0.2), choices(-2.0, -2.0))) as chain:
        body = body_for(CHAT, n=2, stream=stream)
        reply = await http(chain.client("small"), CHAT, body)
        assert float(reply.headers["x-cascadia-score"]) == pytest.approx(math.exp(-0.2), abs=1e-5)
        assert reply.headers["x-cascadia-path"] == "small"
        documents = reply.events[:-2] if stream else [reply.json]
        found = [choice for document in documents for choice in document["choices"]]
        part = "delta" if stream else "message"
        assert [choice[part]["content"] for choice in found] == ["small0", "small1"]
        assert [choice["logprobs"] for choice in found] == [None, None]
        chain.engine("small").behaviour = choices(-0.01, -0.3)
        assert (await http(chain.client("small"), CHAT, body)).headers["x-cascadia-path"] == "small>large"


@pytest.mark.parametrize("entry", ["small", "large"])
async def test_a_request_reaches_every_stage_as_it_came(tmp_path: Path, entry: str) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    fields = {
        "messages": [
            {"role": "system", "content": "ünïcode \u2028 \" \\ \x7f"},
            {"role": "user", "content": [{"type": "text", "text": '{"model": "x"}'}, image]},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {}}]},
            {"role": "tool", "tool_call_id": "c", "content": "1"},
        ],
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        "stop": ["\n"],
        "seed": 12345678901234567890,
        "temperature": 0.30000000000000004,
        "logit_bias": {"50256": -100},
        "chat_template_kwargs": {"enable_thinking": False},
        "x_unknown": [None, {"deep": [1.0]}],
    }  # fmt: skip
    async with chain_of(tmp_path, *two_stages(UNSURE)) as chain:
        sent = body_for(CHAT, **fields)
        reply = await http(chain.client(entry), CHAT, sent)
        assert reply.headers["x-cascadia-path"] == "small>large"
        assert chain.engine("small").seen[0].json == sent | {"model": "served-small", "logprobs": True}
        assert chain.engine("large").seen[0].json == sent | {"model": "served-large"}
        assert reply.json["engineExtra"] == {"kept": True}


async def test_usage_of_a_stream_comes_if_it_was_asked_for(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(SURE)) as chain:
        for options, comes in (({"include_usage": True}, True), ({"include_usage": False}, False), (None, False)):
            reply = await http(chain.client("small"), CHAT, body_for(CHAT, stream=True, stream_options=options))
            last = reply.events[-2]
            assert ("usage" in last) is comes
            assert last["cascadia"]["usage"]["completionTokens"] == 3
            assert sum("usage" in event for event in reply.events[:-1]) == comes
        assert {engine.json["stream_options"]["include_usage"] for engine in chain.engine("small").seen} == {True}
