"""Traces as a collector gets them: OTLP over HTTP, parents and children across routers."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.policy import ScorerPolicy, SelfVerifyPolicy, TracingPolicy
from tests.support.router_chain import StageOf, chain_of, eventually, http
from tests.support.scripted_engine import Behaviour, ScriptedEngine, answer, reset

CHAT = "/v1/chat/completions"
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BODY = {"model": "chat", "messages": [{"role": "user", "content": "what nobody may read in a trace"}]}


def stages(threshold: float = 0.99, first: Behaviour | None = None) -> tuple[StageOf, StageOf]:
    return (
        StageOf("small", threshold, [ScriptedEngine("word", first or answer())]),
        StageOf("large", None, [ScriptedEngine("word")]),
    )


class Collector:
    """A collector's HTTP side.

    Attributes:
        spans: What it was sent, each with its attributes as a plain mapping and the router's under `resource`.
        heads: Of the calls, in lower case.
    """

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                assert head.startswith("post /v1/traces http/1.1\r\n")
                assert "content-type: application/json" in head
                self.heads.append(head)
                length = int(head.split("content-length: ")[1].split("\r\n")[0])
                body = await reader.readexactly(length)
                assert b"nobody may read" not in body
                assert b"word0" not in body
                for resource in json.loads(body)["resourceSpans"]:
                    about = plain(resource["resource"]["attributes"])
                    for scope in resource["scopeSpans"]:
                        for span in scope["spans"]:
                            span["attributes"] = plain(span["attributes"])
                            self.spans.append(span | {"resource": about})
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()


def plain(attributes: list[dict[str, Any]]) -> dict[str, Any]:
    read = {"stringValue": str, "intValue": int, "doubleValue": float}
    return {each["key"]: read[kind](value) for each in attributes for kind, value in each["value"].items()}


@contextlib.asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        server.close()


def named(spans: list[dict[str, Any]], replica: str, kind: int) -> dict[str, Any]:
    (span,) = [s for s in spans if s["resource"]["service.instance.id"] == replica and s["kind"] == kind]
    return span


@pytest.mark.parametrize("stream", [False, True])
async def test_an_escalated_request_is_one_trace(tmp_path: Path, stream: bool) -> None:
    async with collector() as at, chain_of(tmp_path, *stages(), tracing=TracingPolicy(endpoint=at.url)) as chain:
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
        reply = await http(chain.client("small"), CHAT, BODY | {"stream": stream}, headers=headers)
        assert reply.status == 200
        await eventually(lambda: len(at.spans) == 5, "all spans are there")
        assert {span["traceId"] for span in at.spans} == {TRACE}
        entry = named(at.spans, "small-0", 2)
        assert entry["parentSpanId"] == SPAN
        assert entry["traceState"] == "vendor=1"
        calls = [s for s in at.spans if s["resource"]["service.instance.id"] == "small-0" and s["kind"] == 3]
        engine, peer = sorted(calls, key=lambda span: int(span["startTimeUnixNano"]))
        assert {engine["parentSpanId"], peer["parentSpanId"]} == {entry["spanId"]}
        second = named(at.spans, "large-0", 2)
        assert second["parentSpanId"] == peer["spanId"]
        last = named(at.spans, "large-0", 3)
        assert last["parentSpanId"] == second["spanId"]
        for span in at.spans:
            assert int(entry["startTimeUnixNano"]) <= int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])

        assert engine["name"] == "chat served-small"
        assert engine["attributes"]["gen_ai.usage.input_tokens"] == 7
        assert engine["attributes"]["cascadia.replica"] == "small-0"
        told = entry["attributes"]
        assert told["gen_ai.request.model"] == "chat"
        assert (told["gen_ai.response.model"], told["cascadia.path"]) == ("large", "small>large")
        assert (told["gen_ai.usage.input_tokens"], told["cascadia.usage.input_tokens"]) == (7, 14)
        assert (told["http.response.status_code"], told["cascadia.plan_id"]) == (200, "plan-1")

        for name, span in (("small", engine), ("large", last)):
            seen = chain.engine(name).seen[-1].headers
            assert seen["traceparent"] == f"00-{TRACE}-{span['spanId']}-01"
            assert seen["tracestate"] == "vendor=1"


async def test_a_trace_begins_where_the_client_sent_none(tmp_path: Path) -> None:
    async with collector() as at, chain_of(tmp_path, *stages(0.5), tracing=TracingPolicy(endpoint=at.url)) as chain:
        await http(chain.client("small"), CHAT, BODY)
        await eventually(lambda: len(at.spans) == 2, "all spans are there")
        entry = named(at.spans, "small-0", 2)
        assert "parentSpanId" not in entry
        assert entry["attributes"]["cascadia.score"] == pytest.approx(0.951229, abs=1e-6)
        assert entry["attributes"]["cascadia.threshold"] == 0.5
        assert chain.engine("small").seen[-1].headers["traceparent"].split("-")[1] == entry["traceId"]


@pytest.mark.parametrize("context", [f"00-{TRACE}-{SPAN}-00", ""])
async def test_who_is_not_sampled_leaves_no_span_at_any_router(tmp_path: Path, context: str) -> None:
    share = 1.0 if context else 0.0
    async with collector() as at:
        tracing = TracingPolicy(endpoint=at.url, share=share)
        async with chain_of(tmp_path, *stages(), tracing=tracing) as chain:
            if not context:  # the second router would trace all that enters there: this did not
                chain.put(chain.make_policy(2, tracing=TracingPolicy(endpoint=at.url)), [chain.router("large")])
            await http(chain.client("small"), CHAT, BODY, headers={"traceparent": context} if context else {})
            seen = chain.engine("large").seen[-1].headers
            assert seen.get("traceparent", "") == context
        assert at.spans == []  # routers that have ended have sent all they had


async def test_a_scorer_that_asks_somebody_has_a_span(tmp_path: Path) -> None:
    scorer = ScorerPolicy(id="itself", type="SelfVerify", self_verify=SelfVerifyPolicy(prompt="Is that right?"))
    async with collector() as at:
        tracing = TracingPolicy(endpoint=at.url)
        async with chain_of(tmp_path, *stages(), tracing=tracing, scorer=scorer) as chain:
            await http(chain.client("small"), CHAT, BODY)
        entry = next(s for s in at.spans if s["kind"] == 2 and "parentSpanId" not in s)
        (asked,) = [s for s in at.spans if s["kind"] == 1]
        assert (asked["name"], asked["parentSpanId"]) == ("score itself", entry["spanId"])
        assert asked["attributes"]["cascadia.scorer"] == "itself"


async def test_what_went_wrong_is_in_the_spans(tmp_path: Path) -> None:
    async with collector() as at, chain_of(tmp_path, *stages(), tracing=TracingPolicy(endpoint=at.url)) as chain:
        chain.engine("small").behaviour = chain.engine("large").behaviour = reset
        assert (await http(chain.client("small"), CHAT, BODY)).status == 502
        await eventually(lambda: [s for s in at.spans if s["kind"] == 2], "the request's span is there")
        entry = next(s for s in at.spans if s["kind"] == 2 and "parentSpanId" not in s)
        assert entry["status"] == {"code": 2}
        assert entry["attributes"]["error.type"] == "failed"
        assert entry["attributes"]["http.response.status_code"] == 502
        calls = [s for s in at.spans if s["kind"] == 3 and s["parentSpanId"] == entry["spanId"]]
        assert calls
        assert all(s["attributes"]["error.type"] for s in calls)


async def test_a_collector_that_is_away_costs_spans_and_nothing_else(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *stages(0.5), tracing=TracingPolicy(endpoint="http://127.0.0.1:1")) as chain:
        spans = chain.router("small").node.metrics.spans
        for _ in range(3):
            assert (await http(chain.client("small"), CHAT, BODY)).status == 200
        await eventually(lambda: spans["dropped"] == 6, "they are dropped and counted")
        assert spans["exported"] == 0


async def test_the_collectors_headers_come_from_the_environment_and_a_watched_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=seven,x-both=environment")
    file = tmp_path / "otel.headers"
    file.write_text("authorization=Basic%20c2VjcmV0LW9uZQ==\nx-both=file\n")
    config = {"secrets": str(tmp_path)}
    async with collector() as at:
        tracing = TracingPolicy(endpoint=at.url, headers="otel.headers")
        async with chain_of(tmp_path, *stages(0.0), tracing=tracing, config=config) as chain:
            node = chain.router("small").node

            async def told() -> str:
                """Ask, and return the head of the call that brings the trace."""
                before = len(at.heads)
                assert (await http(chain.client("small"), CHAT, BODY)).status == 200
                await eventually(lambda: len(at.heads) > before, "the collector is told")
                return at.heads[-1]

            head = await told()
            for line in ("authorization: basic c2vjcmv0lw9uzq==", "x-tenant: seven", "x-both: file"):
                assert f"\r\n{line}\r\n" in head
            file.write_text("authorization=Bearer secret-two")
            head = await told()
            assert "\r\nauthorization: bearer secret-two\r\n" in head
            assert "\r\nx-both: environment\r\n" in head

            for wrong in ("secret-three", "authorization=secret-three%0d%0ax: y", "content-length=secret-three"):
                dropped, calls = node.metrics.spans["dropped"], len(at.heads)
                file.write_text(wrong)
                assert (await http(chain.client("small"), CHAT, BODY)).status == 200
                await eventually(lambda dropped=dropped: node.metrics.spans["dropped"] > dropped, "it is not sent")  # type: ignore[misc]
                assert len(at.heads) == calls
            file.unlink()
            assert (await http(chain.client("small"), CHAT, BODY)).status == 200
            await eventually(lambda: "FileNotFoundError" in said(caplog), "a missing file is complained of")
            file.write_text("authorization=Bearer secret-four")
            assert "\r\nauthorization: bearer secret-four\r\n" in await told()
    assert "pair 1 has no `=`" in said(caplog)
    assert "otel.headers" in said(caplog)
    for secret in ("secret", "c2Vj", "seven"):
        assert secret not in said(caplog)


def said(caplog: pytest.LogCaptureFixture) -> str:
    """All that was logged, fields included."""
    return "\n".join(str(record.__dict__) for record in caplog.records)
