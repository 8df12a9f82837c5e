"""The official clients, Python and JavaScript, against routers in front of real and simulated engines.

`CASCADIA_TEST_ENGINE=host:port` adds an engine that runs already, an SGLang for instance; it must not mind which
`model` it is asked for.
"""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support import node_clients
from tests.support.engine_process import engine_process
from tests.support.llamacpp_process import llamacpp_process
from tests.support.router_chain import Chain, StageOf, chain_of
from tests.support.scripted_engine import (
    RunningEngine,
    ScriptedEngine,
    Seen,
    answer,
    chunk,
    http_response,
    status,
    stream_then,
)

pytestmark = pytest.mark.timeout(600)
ENGINES = ["simulated", "llamacpp", *(["given"] if "CASCADIA_TEST_ENGINE" in os.environ else [])]
RESPONSE_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    "response.output_text.delta",
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                engine_process(tmp_path_factory.mktemp(stage), stage=stage, servedModelName=f"served-{stage}")
            ).address
            for stage in ("small", "large")
        ]


@pytest.fixture(scope="module")
def llamacpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """One process serves both stages: SmolLM2 is asked twice."""
    with llamacpp_process(tmp_path_factory.mktemp("llamacpp")) as (address, _):
        yield [address, address]


@pytest.fixture(scope="module")
def given() -> list[str]:
    return [os.environ["CASCADIA_TEST_ENGINE"]] * 2


@contextlib.asynccontextmanager
async def cascade_of(folder: Path, addresses: list[str], threshold: float) -> AsyncIterator[Chain]:
    small, large = (RunningEngine(name, address=address) for name, address in zip(("s", "l"), addresses, strict=True))
    can = ["tools", "images", "json-schema"]
    stages = (
        StageOf("small", threshold, [small], capabilities=can),
        StageOf("large", None, [large], capabilities=can),
    )
    async with chain_of(folder, *stages) as chain:
        yield chain


def base_of(chain: Chain) -> str:
    return f"http://{chain.client(chain.stages[0].name)}/v1"


# -- answers of real and simulated engines --------------------------------------------------------


@pytest.mark.parametrize(
    ("engines", "threshold", "stage"),
    [("simulated", 0.0, "small"), *((engines, 1.1, "large") for engines in ENGINES)],
)
async def test_answers_in_javascript(
    tmp_path: Path, request: pytest.FixtureRequest, engines: str, threshold: float, stage: str
) -> None:
    async with cascade_of(tmp_path, request.getfixturevalue(engines), threshold) as chain:
        seen = await node_clients.observe("answers", base_of(chain), "chat")
        path = "small" if stage == "small" else "small>large"
        assert seen["models"] == ["chat", "small", "large"]
        for name in ("chat", "chatStream", "completion", "responses", "responsesStream"):
            assert seen[name]["text"].strip(), name
            assert seen[name]["cascadia"]["path"] == path, name
            assert list(seen[name]["cascadia"]["usage"]["stages"]) == path.split(">"), name
        for name in ("chat", "chatStream", "responses"):
            assert seen[name]["tokens"] > 0
        assert seen["responsesStream"]["text"] == seen["responsesStream"]["final"]
        types = list(dict.fromkeys(seen["responsesStream"]["types"]))
        assert types[: len(RESPONSE_EVENTS)] == RESPONSE_EVENTS
        assert types[len(RESPONSE_EVENTS) :] in (["response.completed"], ["response.incomplete"])
        for name in ("responses", "chat", "compatible"):
            assert seen[f"ai-{name}"]["stage"] == stage
            for way in ("", "-stream"):
                made = seen[f"ai-{name}{way}"]
                assert made["text"].strip(), name
                assert made["tokens"] > 0, name
                assert made["finish"] in {"stop", "length"}, name


@pytest.mark.parametrize("engines", ENGINES)
@pytest.mark.parametrize(("threshold", "stage"), [(0.0, "small"), (1.1, "large")])
async def test_answers_in_python(
    tmp_path: Path, request: pytest.FixtureRequest, engines: str, threshold: float, stage: str
) -> None:
    messages: Any = [{"role": "user", "content": "Say hello."}]
    async with (
        cascade_of(tmp_path, request.getfixturevalue(engines), threshold) as chain,
        openai.AsyncOpenAI(base_url=base_of(chain), api_key="none", max_retries=0, timeout=60) as client,
    ):
        whole = await client.chat.completions.create(
            model="chat", messages=messages, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
        )
        [choice] = whole.choices
        assert choice.logprobs is not None
        assert choice.logprobs.content
        assert choice.logprobs.content[0].top_logprobs
        assert whole.model_extra is not None
        assert whole.model_extra["cascadia"]["stage"] == stage
        silent = await client.chat.completions.create(model="chat", messages=messages, max_tokens=4, temperature=0)
        assert silent.choices[0].logprobs is None
        chunks = [
            each
            async for each in await client.chat.completions.create(
                model="chat", messages=messages, max_tokens=4, temperature=0, stream=True,
                stream_options={"include_usage": True},
            )
        ]  # fmt: skip
        streamed = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
        assert streamed == silent.choices[0].message.content
        assert all(each.choices[0].logprobs is None for each in chunks if each.choices)
        assert chunks[-1].usage is not None
        assert chunks[-1].model_extra is not None
        assert chunks[-1].model_extra["cascadia"]["stage"] == stage
        response = await client.responses.create(model="chat", input="Say hello.", max_output_tokens=4, temperature=0)
        assert response.output_text == streamed
        async with client.responses.stream(
            model="chat", input="Say hello.", max_output_tokens=4, temperature=0
        ) as stream:
            text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        assert text == streamed


# -- tools, errors and faults ---------------------------------------------------------------------


async def agent(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
    """Call the tool, then say what it returned."""
    last = seen.json["messages"][-1]
    if last["role"] == "tool":
        output = last["content"].strip('"')
        message: dict[str, Any] = {"role": "assistant", "content": f"It is {output}."}
    else:
        function = {"name": seen.json["tools"][0]["function"]["name"], "arguments": '{"city": "Berlin"}'}
        message = {
            "role": "assistant",
            "tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}],
        }
    finish = "stop" if "content" in message else "tool_calls"
    base = {"id": "x", "created": 1, "model": "m"}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    if not seen.json.get("stream"):
        choice = {"index": 0, "message": message, "finish_reason": finish}
        whole = {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
        writer.write(http_response(200, json.dumps(whole).encode()))
        return
    base["object"] = "chat.completion.chunk"
    events = [
        {**base, "choices": [{"index": 0, "delta": message}]},
        {**base, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
        {**base, "choices": [], "usage": usage},
    ]
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for event in [*map(json.dumps, events), "[DONE]"]:
        writer.write(chunk(b"data: %s\n\n" % event.encode()))
    writer.write(b"0\r\n\r\n")


async def test_an_agents_loop(tmp_path: Path) -> None:
    async with chain_of(tmp_path, StageOf("only", None, [ScriptedEngine("only", agent)])) as chain:
        seen = await node_clients.observe("tools", base_of(chain), "chat")
        for name in ("responses", "chat", "compatible"):
            assert seen[name] == {"text": "It is sunny in Berlin.", "steps": 2, "results": ["sunny in Berlin"]}, name
            assert seen[f"{name}-stream"] == {"text": "It is sunny in Berlin.", "steps": 2}, name


async def test_errors_have_the_right_classes(tmp_path: Path) -> None:
    async with chain_of(tmp_path, StageOf("only", None, [ScriptedEngine("only")])) as chain:
        seen = await node_clients.observe("errors", base_of(chain), "chat")
        bad = {"class": "BadRequestError", "status": 400, "type": "invalid_request_error"}
        lost = {"class": "NotFoundError", "status": 404, "type": "invalid_request_error"}
        assert seen["unknownModel"] == lost | {"code": "model_not_found", "param": "model"}
        assert seen["noMessages"] == bad | {"code": "invalid_body", "param": "messages"}
        assert seen["badBound"] == bad | {"code": "invalid_header", "param": "x-cascadia-max-stage"}
        assert seen["stored"] == bad | {"code": "invalid_body", "param": "previous_response_id"}
        assert seen["builtIn"] == bad | {"code": "invalid_body", "param": "tools"}
        assert seen["notStored"] == lost | {"code": "not_found", "param": None}
        assert seen["aiUnknownModel"]["status"] == 404

        async with openai.AsyncOpenAI(base_url=base_of(chain), api_key="none", max_retries=0) as client:
            messages: Any = [{"role": "user", "content": "hi"}]
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="nope", messages=messages)
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(model="chat", messages=messages, max_tokens="many")  # type: ignore[call-overload]


async def test_faults_are_retried_as_asked_or_told(tmp_path: Path) -> None:
    asked: list[float] = []
    busy, broken = status(503), stream_then("reset")

    async def faulty(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        if seen.json.get("stream"):
            await broken(engine, seen, writer)
            return
        asked.append(asyncio.get_running_loop().time())
        await (busy if len(asked) == 1 else answer())(engine, seen, writer)

    async with chain_of(tmp_path, StageOf("only", None, [ScriptedEngine("only", faulty)])) as chain:
        seen = await node_clients.observe("faults", base_of(chain), "chat")
        assert seen["retried"].startswith("only0")
        assert len(asked) == 2
        assert asked[1] - asked[0] > 0.9, "the clients' own pause is at most half a second; Retry-After says one"
        assert seen["chat"] == {"class": "APIError", "code": "interrupted"}
        assert seen["responses"] == {"last": "response.failed"}
        for api in ("chat", "responses"):
            assert any("broke off" in message for message in seen[f"ai-{api}"]), seen

        asked.clear()
        messages: Any = [{"role": "user", "content": "hi"}]
        async with openai.AsyncOpenAI(base_url=base_of(chain), api_key="none", max_retries=1) as client:
            made = await client.chat.completions.create(model="chat", messages=messages)
            assert made.choices[0].message.content
            assert asked[1] - asked[0] > 0.9
            with pytest.raises(openai.APIError, match="broke off"):
                async for _ in await client.chat.completions.create(model="chat", messages=messages, stream=True):
                    pass
            events = [event async for event in await client.responses.create(model="chat", input="hi", stream=True)]
            assert events[-1].type == "response.failed"
            chain.engine("only").behaviour = status(500)
            with pytest.raises(openai.InternalServerError):
                await client.with_options(max_retries=0).responses.create(model="chat", input="hi")
