"""`/v1/responses` through chains of real routers, by the official client."""

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from cascadia_api.policy import StreamingPolicy
from tests.support.router_chain import StageOf, chain_of, eventually, http
from tests.support.scripted_engine import Behaviour, ScriptedEngine, answer, hang, reset, status, stream_then

RESPONSES = "/v1/responses"
UNSURE = answer(logprob=-1.0)
SURE = answer()


def two_stages(first: Behaviour = SURE, second: Behaviour = SURE) -> tuple[StageOf, StageOf]:
    return (
        StageOf("small", 0.8, [ScriptedEngine("small", first)]),
        StageOf("large", None, [ScriptedEngine("large", second)]),
    )


def event_types(body: bytes) -> list[str]:
    return [line[7:].decode() for line in body.split(b"\n") if line.startswith(b"event: ")]


@pytest.mark.parametrize("entry", ["small", "large"])
@pytest.mark.parametrize("first", [SURE, UNSURE])
async def test_responses_are_decided_as_chat_completions_are(tmp_path: Path, entry: str, first: Behaviour) -> None:
    async with chain_of(tmp_path, *two_stages(first)) as chain:
        path = "small" if first is SURE else "small>large"
        stage = path.rsplit(">", maxsplit=1)[-1]
        body: dict[str, Any] = {"model": "chat", "input": "hi", "metadata": {"k": "v"}}
        reply = await http(chain.client(entry), RESPONSES, body)
        assert (reply.status, reply.headers["x-cascadia-path"]) == (200, path)
        made = reply.json
        assert (made["object"], made["status"], made["store"], made["metadata"]) == (
            "response", "completed", False, {"k": "v"},
        )  # fmt: skip
        assert made["output"][0]["content"][0]["text"] == f"{stage}0 {stage}1 {stage}2 "
        assert made["cascadia"]["path"] == path
        assert made["usage"]["total_tokens"] == 10
        streamed = await http(chain.client(entry), RESPONSES, body | {"stream": True})
        assert streamed.headers["x-cascadia-path"] == path
        last = streamed.events[-1]["response"]
        same = ("object", "status", "usage", "cascadia", "metadata", "model", "tools", "text")
        assert {name: last[name] for name in same} == {name: made[name] for name in same}
        assert last["output"][0]["content"] == made["output"][0]["content"]
        assert event_types(streamed.body)[:2] == ["response.created", "response.in_progress"]
        assert chain.engine("small").seen[0].json["messages"] == [{"role": "user", "content": "hi"}]
        report = (await http(chain.admin(entry), "/cascade/report")).json
        assert (report["arrivals"], report["answeredBy"]) == (2, {stage: 2})


async def test_the_official_client(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(UNSURE)) as chain:
        base = f"http://{chain.client('small')}/v1"
        async with openai.AsyncOpenAI(base_url=base, api_key="none", max_retries=0) as client:
            made = await client.responses.create(model="chat", input="hi", instructions="Be brief.", store=False)
            assert made.output_text == "large0 large1 large2 "
            assert made.usage is not None
            assert made.usage.output_tokens == 3
            assert made.model_extra is not None
            assert made.model_extra["cascadia"]["path"] == "small>large"
            async with client.responses.stream(model="chat", input=[{"role": "user", "content": "hi"}]) as stream:
                texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
                final = await stream.get_final_response()
            assert texts == ["large0 ", "large1 ", "large2 "]
            assert final.output_text == made.output_text
            assert final.model_extra is not None
            assert final.model_extra["cascadia"]["stage"] == "large"
            with pytest.raises(openai.BadRequestError) as caught:
                await client.responses.create(model="chat", input="hi", previous_response_id="resp_1")
            assert (caught.value.param, caught.value.code) == ("previous_response_id", "invalid_body")
            with pytest.raises(openai.BadRequestError, match="web_search"):
                await client.responses.create(model="chat", input="hi", tools=[{"type": "web_search"}])
            with pytest.raises(openai.NotFoundError, match="not stored"):
                await client.responses.retrieve("resp_1")
            with pytest.raises(openai.NotFoundError, match="no model"):
                await client.responses.create(model="nope", input="hi")
        assert chain.engine("large").seen[0].json["messages"][0] == {"role": "system", "content": "Be brief."}


def calling(engine: ScriptedEngine, seen: Any, writer: asyncio.StreamWriter) -> Any:
    """Answer with a call of the first tool."""
    name = seen.json["tools"][0]["function"]["name"]
    call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": '{"city": "Berlin"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}).encode()

    async def write() -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )

    return write()


async def test_a_tool_is_called_and_its_output_goes_back(tmp_path: Path) -> None:
    async with chain_of(tmp_path, StageOf("only", None, [ScriptedEngine("only", calling)])) as chain:
        async with openai.AsyncOpenAI(
            base_url=f"http://{chain.client('only')}/v1", api_key="none", max_retries=0
        ) as client:
            tool: Any = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": False}
            made = await client.responses.create(model="chat", input="weather?", tools=[tool])
            [call] = made.output
            assert call.type == "function_call"
            assert (call.name, call.call_id, call.arguments) == ("weather", "call_1", '{"city": "Berlin"}')
            chain.engine("only").behaviour = answer()
            items: Any = [
                {"role": "user", "content": "weather?"},
                call.model_dump(),
                {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
            ]
            made = await client.responses.create(model="chat", input=items, tools=[tool])
            assert made.output_text.startswith("only0")
        asked = chain.engine("only").seen[1].json
        assert [message["role"] for message in asked["messages"]] == ["user", "assistant", "tool"]
        assert asked["messages"][1]["tool_calls"][0]["id"] == asked["messages"][2]["tool_call_id"] == "call_1"


async def test_bounds_pins_and_keep_alives_work_as_ever(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(UNSURE, hang), clock_scale=20.0) as chain:
        body = {"model": "chat", "input": "hi", "stream": True}
        bounded = await http(chain.client("small"), RESPONSES, body, headers={"x-cascadia-max-stage": "small"})
        assert bounded.headers["x-cascadia-path"] == "small"
        pinned = await http(chain.client("large"), RESPONSES, body | {"model": "small"})
        assert pinned.headers["x-cascadia-path"] == "small"
        late = await http(chain.client("small"), RESPONSES, body, headers={"x-cascadia-deadline-ms": "30000"})
        assert late.body.count(b": keep-alive\n\n") >= 1
        assert event_types(late.body)[0] == "response.created"
        assert late.events[-1]["type"] == "response.completed"
        assert late.events[-1]["response"]["cascadia"]["path"] == "small"


@pytest.mark.parametrize(("first", "path"), [(SURE, "small"), (UNSURE, "small>large")])
async def test_a_gate_holds_responses_too(tmp_path: Path, first: Behaviour, path: str) -> None:
    streaming = StreamingPolicy(mode="Gate", gate_tokens=2)
    async with chain_of(tmp_path, *two_stages(first), streaming=streaming) as chain:
        reply = await http(chain.client("small"), RESPONSES, {"model": "chat", "input": "hi", "stream": True})
        assert reply.headers["x-cascadia-path"] == path
        assert event_types(reply.body).count("response.output_text.delta") == 3
        last = reply.events[-1]["response"]
        assert (last["status"], last["cascadia"]["path"]) == ("completed", path)
        assert last["usage"]["output_tokens"] == 3


async def test_a_client_that_leaves_stops_the_engine(tmp_path: Path) -> None:
    async with chain_of(tmp_path, StageOf("only", None, [ScriptedEngine("only", hang)])) as chain:
        host, _, port = chain.client("only").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = b'{"model": "chat", "input": "hi"}'
        writer.write(b"POST %s HTTP/1.1\r\ncontent-length: %d\r\n\r\n%s" % (RESPONSES.encode(), len(body), body))
        engine = chain.engine("only")
        await eventually(lambda: engine.seen, "asked")
        writer.close()
        await eventually(lambda: engine.disconnects == 1, "the engine's connection is closed")
        assert chain.router("only").node.metrics.requests == {("client", "", "disconnected"): 1}


async def test_failures(tmp_path: Path) -> None:
    only = ScriptedEngine("only", status(400, b'{"object": "error", "message": "too long", "code": 400}'))
    async with chain_of(tmp_path, StageOf("only", None, [only])) as chain:
        body = {"model": "chat", "input": "hi"}
        reply = await http(chain.client("only"), RESPONSES, body)
        assert (reply.status, reply.json["error"]["message"]) == (400, "too long")
        only.behaviour = reset
        reply = await http(chain.client("only"), RESPONSES, body)
        assert (reply.status, reply.json["error"]["type"]) == (502, "server_error")
        only.behaviour = stream_then("reset")
        reply = await http(chain.client("only"), RESPONSES, body | {"stream": True})
        assert (reply.status, event_types(reply.body)[-1]) == (200, "response.failed")
        assert reply.events[-1]["response"]["error"]["code"] == "server_error"
        for method, path, code in (("GET", RESPONSES, 405), ("GET", f"{RESPONSES}/resp_1", 404)):
            reply = await http(chain.client("only"), path, method=method)
            assert (reply.status, set(reply.json["error"])) == (code, {"message", "type", "param", "code"})
        reply = await http(chain.client("only"), RESPONSES, {"model": "chat"})
        assert (reply.status, reply.json["error"]["param"]) == (400, "input")
        report = (await http(chain.admin("only"), "/cascade/report")).json
        assert (report["arrivals"], report["refused"]) == (4, 1)
