"""What goes wrong between routers and engines, and who gets an answer all the same."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.policy import OverloadPolicy
from cascadia_router.answer_times import AnswerTimes
from cascadia_router.balancing import Breaker
from cascadia_router.signing import Hop, PeerSecrets
from tests.support.router_chain import SECRET, StageOf, chain_of, eventually, http
from tests.support.scripted_engine import ScriptedEngine, answer, hang, malformed, reset, status, stream_then, truncated

CHAT = "/v1/chat/completions"
UNSURE = answer(logprob=-1.0)
SURE = answer(logprob=-0.05)


def chat(**extra: Any) -> dict[str, Any]:
    return {"model": "chat", "messages": [{"role": "user", "content": "hello"}], **extra}


def two_stages(first: Any = SURE, second: Any = SURE) -> tuple[StageOf, StageOf]:
    return (
        StageOf("small", 0.8, [ScriptedEngine("small", first)]),
        StageOf("large", None, [ScriptedEngine("large", second)]),
    )


@pytest.mark.parametrize("fault", [status(500), status(503), malformed, truncated, reset])
async def test_another_replica_answers_for_one_that_fails(tmp_path: Path, fault: Any) -> None:
    engines = [ScriptedEngine("a", fault), ScriptedEngine("b")]
    async with chain_of(tmp_path, StageOf("only", None, engines)) as chain:
        reply = await http(chain.client("only"), CHAT, chat())
        assert reply.json["choices"][0]["message"]["content"].startswith("b0")
        assert chain.router("only").node.metrics.retries == {"only": 1}
        report = chain.router("only").node.window.report(
            0, 60, window_end=0, plan_id="", policy_revision=1, stage="only"
        )
        assert report.stage is not None
        assert report.stage.engine_errors == 1
        assert report.failures == 0


@pytest.mark.parametrize("fault", [status(500), malformed, truncated])
async def test_the_next_stage_answers_for_a_dead_one(tmp_path: Path, fault: Any) -> None:
    async with chain_of(tmp_path, *two_stages(fault)) as chain:
        for address in (chain.client("small"), chain.client("large")):
            reply = await http(address, CHAT, chat())
            assert reply.status == 200
            assert reply.headers["x-cascadia-path"] == "large"
        assert chain.router("small").node.metrics.escalations == {("small", "large", "failure"): 1}


async def test_a_stopped_engine_and_a_stopped_router_are_passed_by(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages()) as chain:
        await chain.engine("small").stop()
        assert (await http(chain.client("small"), CHAT, chat())).headers["x-cascadia-path"] == "large"
        await chain.router("small").close()
        assert (await http(chain.client("large"), CHAT, chat())).headers["x-cascadia-path"] == "large"


async def test_a_rejected_answer_is_better_than_none(tmp_path: Path) -> None:
    """Fail open: when every later stage is dead, the answer at hand is served."""
    async with chain_of(tmp_path, *two_stages(UNSURE, status(500))) as chain:
        for stream in (False, True):
            reply = await http(chain.client("small"), CHAT, chat(stream=stream))
            assert reply.status == 200
            assert reply.headers["x-cascadia-path"] == "small"
            assert reply.headers["x-cascadia-reason"] == "unavailable"
        node = chain.router("small").node
        node.settlement.settle()
        assert node.metrics.requests["client", "small", "fallback"] == 2


async def test_when_nobody_can_answer_the_error_says_so(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(status(500), status(500))) as chain:
        reply = await http(chain.client("small"), CHAT, chat())
        assert reply.status == 502
        assert reply.json["error"]["type"] == "server_error"
        assert reply.json["error"]["code"] == "upstream_failed"
        chain.engine("large").behaviour = status(503)
        reply = await http(chain.client("small"), CHAT, chat())
        assert (reply.status, reply.json["error"]["code"]) == (503, "overloaded")
        assert reply.headers["retry-after"] == "1"
        policy = chain.make_policy(2)
        for stage in policy.stages:
            stage.endpoints.clear()
        chain.put(policy)
        reply = await http(chain.client("small"), CHAT, chat())
        assert (reply.status, reply.json["error"]["code"]) == (503, "no_live_stage")


async def test_a_request_that_kills_engines_is_repeated_once_only(tmp_path: Path) -> None:
    """Three replicas and a larger stage, yet a request that resets connections reaches two engines."""
    engines = [ScriptedEngine(name, reset) for name in "abc"]
    stages = (StageOf("small", 0.8, engines), StageOf("large", None, [ScriptedEngine("large", reset)]))
    async with chain_of(tmp_path, *stages) as chain:
        reply = await http(chain.client("large"), CHAT, chat())
        assert reply.status == 502
        assert sum(len(engine.seen) for engine in (*engines, chain.engine("large"))) == 2


async def test_a_connection_that_the_engine_was_closing_costs_nothing(tmp_path: Path) -> None:
    """The engine drops kept connections with the next request on them, as a server that closes idle ones does."""
    engine = ScriptedEngine("only")
    async with chain_of(tmp_path, StageOf("only", None, [engine])) as chain:
        assert (await http(chain.client("only"), CHAT, chat())).status == 200

        async def reset_once(engine: ScriptedEngine, seen: Any, writer: asyncio.StreamWriter) -> None:
            engine.behaviour = SURE
            writer.transport.abort()

        engine.behaviour = reset_once
        assert (await http(chain.client("only"), CHAT, chat())).status == 200
        assert len(engine.seen) == 3


async def test_a_failing_replica_is_ejected_and_tried_again(tmp_path: Path) -> None:
    engines = [ScriptedEngine("a", status(500)), ScriptedEngine("b")]
    async with chain_of(tmp_path, StageOf("only", None, engines), clock_scale=10.0) as chain:
        for _ in range(6):
            assert (await http(chain.client("only"), CHAT, chat())).status == 200
        assert len(engines[0].seen) == Breaker.THRESHOLD
        engines[0].behaviour = SURE
        own = chain.router("only").node.own
        assert own is not None
        await eventually(lambda: own.breaker.allows(chain.router("only").node.now()), "the back-off ends")
        reply = await http(chain.client("only"), CHAT, chat())
        assert reply.json["choices"][0]["message"]["content"].startswith("a0")
        assert own.breaker.failures == 0


async def test_the_deadline_ends_a_request(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(hang), clock_scale=20.0, request_timeout_seconds=4) as chain:
        reply = await http(chain.client("large"), CHAT, chat())
        assert (reply.status, reply.json["error"]["code"]) == (504, "deadline_exceeded")
        engine = chain.engine("small")
        await eventually(lambda: engine.disconnects == 1, "the engine is told")


async def test_past_the_deadline_the_answer_at_hand_is_served(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(UNSURE, hang), clock_scale=20.0, request_timeout_seconds=4) as chain:
        reply = await http(chain.client("small"), CHAT, chat())
        assert reply.status == 200
        assert reply.headers["x-cascadia-path"] == "small"


async def test_an_escalation_that_cannot_finish_is_not_begun(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages(UNSURE), request_timeout_seconds=100) as chain:
        node = chain.router("small").node
        for stream in (False, True):
            reply = await http(chain.client("small"), CHAT, chat(stream=stream))
            assert reply.headers["x-cascadia-path"] == "small>large"
        for _ in range(AnswerTimes.FEWEST):
            node.answer_times["large"].observe(node.now(), 95.0)
        await eventually(lambda: node.answer_times["large"].typical(node.now()) == 95.0, "the estimate is made anew")
        asked = len(chain.engine("large").seen)
        for deadline, path in (("90000", "small"), ("99000", "small>large")):
            headers = {"x-cascadia-deadline-ms": deadline}
            for stream in (False, True):
                reply = await http(chain.client("small"), CHAT, chat(stream=stream), headers=headers)
                assert reply.headers["x-cascadia-path"] == path
                said = (reply.events[-2] if stream else reply.json)["cascadia"]
                assert (
                    said.get("reason")
                    == (reply.headers.get("x-cascadia-reason"))
                    == ("deadline" if path == "small" else None)
                )
        assert len(chain.engine("large").seen) == asked + 2
        assert node.metrics.fallbacks == {("small", "deadline"): 2}


async def test_retries_have_a_budget(tmp_path: Path) -> None:
    engines = [ScriptedEngine("a", status(500)), ScriptedEngine("b")]
    async with chain_of(tmp_path, StageOf("only", None, engines), retry_budget=0.0) as chain:
        reply = await http(chain.client("only"), CHAT, chat())
        assert (reply.status, reply.json["error"]["code"]) == (502, "upstream_failed")
        assert engines[1].seen == []
        metrics = chain.router("only").node.metrics
        assert (metrics.retries, metrics.retries_refused) == ({}, {"only": 1})
        text = (await http(chain.admin("only"), "/metrics")).body.decode()
        assert 'cascadia_router_retries_refused_total{stage="only"} 1' in text


@pytest.mark.parametrize("entry", ["small", "large"])
@pytest.mark.parametrize("behaviour", [hang, stream_then("hang")])
async def test_a_client_that_leaves_stops_the_engine(tmp_path: Path, entry: str, behaviour: Any) -> None:
    async with chain_of(tmp_path, *two_stages(UNSURE, behaviour)) as chain:
        request = asyncio.create_task(http(chain.client(entry), CHAT, chat(stream=True)))
        engine = chain.engine("large")
        await eventually(lambda: engine.seen, "the engine is asked")
        request.cancel()
        await eventually(lambda: engine.disconnects == 1, "the engine is told")
        await eventually(lambda: not any(router.node.exchanges for router in chain.all()), "nothing is held")
        requests = chain.router(entry).node.metrics.requests
        assert {outcome for _, _, outcome in requests} == {"disconnected"}
        assert sum(count for (port, _, _), count in requests.items() if port == "client") == 1
        assert all(replica.outstanding == 0 for _, replica in chain.router("small").node.replicas.all())


async def test_a_client_that_has_sent_ahead_and_leaves_stops_the_engine(tmp_path: Path) -> None:
    """Nothing more is read from it, and yet it is missed."""
    async with chain_of(tmp_path, *two_stages(UNSURE, hang)) as chain:
        host, _, port = chain.client("small").rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        body = b'{"model": "chat", "messages": []}'
        one = b"POST %s HTTP/1.1\r\nhost: t\r\ncontent-length: %d\r\n\r\n%s" % (CHAT.encode(), len(body), body)
        writer.write(one + one + one[:40])
        engine = chain.engine("large")
        await eventually(lambda: engine.seen, "the engine is asked")
        writer.close()
        await eventually(lambda: engine.disconnects == 1, "the engine is told")
        assert len(engine.seen) == 1


async def test_too_many_requests_are_refused(tmp_path: Path) -> None:
    no_queue = OverloadPolicy(max_queued=0)
    async with chain_of(tmp_path, *two_stages(hang), max_in_flight=2, overload=no_queue) as chain:
        held = [asyncio.create_task(http(chain.client("small"), CHAT, chat())) for _ in range(2)]
        await eventually(lambda: len(chain.engine("small").seen) == 2, "two are held")
        reply = await http(chain.client("small"), CHAT, chat())
        assert reply.status == 429
        assert reply.json["error"]["type"] == "rate_limit_error"
        assert reply.headers["retry-after"] == "60", "nothing ends"
        for request in held:
            request.cancel()


async def test_a_busy_peer_is_passed_by(tmp_path: Path) -> None:
    """A peer's 429 is not the client's: another replica, or the next stage, takes the request."""
    async with chain_of(tmp_path, *two_stages(hang), max_in_flight=1) as chain:
        held = asyncio.create_task(http(chain.client("small"), CHAT, chat()))
        await eventually(lambda: chain.engine("small").seen, "one is held")
        reply = await http(chain.client("large"), CHAT, chat())
        assert reply.headers["x-cascadia-path"] == "large"
        held.cancel()


def hop(**changes: Any) -> Hop:
    values: dict[str, Any] = {
        "request_id": "r", "revision": 1, "plan_id": "plan-1", "stage": "large", "path": ("small",),
        "escalations_left": 1, "remaining": 60.0, "signed_at": time.time(), "pinned": False, "lost": 0,
    }  # fmt: skip
    return Hop(**(values | changes))


async def test_the_stage_port_takes_signed_requests_only(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages()) as chain:
        peers = chain.router("large").addresses["peers"]
        body = json.dumps(chat()).encode()

        def headers(hop: Hop, signed: bytes = body, secret: bytes = SECRET, path: str = CHAT) -> dict[str, str]:
            lines = PeerSecrets([secret]).sign(hop, path.encode(), signed)
            return dict(line.split(": ", 1) for line in lines.decode().strip().split("\r\n"))

        good = headers(hop())
        assert (await http(peers, CHAT, body, headers=good)).headers["x-cascadia-path"] == "small>large"
        for bad in (
            {},
            good,
            headers(hop(), secret=b"another secret of some length"),
            headers(hop(), body + b" "),
            headers(hop(), path="/v1/completions"),
            headers(hop(signed_at=time.time() - 120)),
            headers(hop(signed_at=time.time() + 120)),
            good | {"x-cascadia-hop": good["x-cascadia-hop"][:-4] + "AAAA"},
            good | {"x-cascadia-signature": "é"},
        ):
            reply = await http(peers, CHAT, body, headers=bad)
            assert reply.status == 401
            assert reply.json["error"]["code"] == "invalid_signature"
        reply = await http(peers, CHAT, body, headers=headers(hop(stage="small")))
        assert (reply.status, reply.json["error"]["code"]) == (503, "wrong_stage")
        reply = await http(peers, CHAT, body, headers=headers(hop(remaining=-1.0)))
        assert reply.status == 504
        assert len(chain.engine("large").seen) == 1
        assert chain.router("large").node.metrics.refused["unsigned"] == 9


async def test_the_routers_secret_is_changed_while_requests_travel(tmp_path: Path) -> None:
    """As docs/security.md says: believe the new one everywhere, sign with it, then forget the old one."""
    old, new = SECRET, b"a new secret between routers"
    file = tmp_path / "peer-secret"
    async with chain_of(tmp_path, *two_stages()) as chain:
        chain.engine("small").behaviour = UNSURE
        routers = [chain.router("small"), chain.router("large")]
        paths = Counter[str | None]()

        async def call_on() -> None:
            while True:
                reply = await http(chain.client("small"), CHAT, chat())
                paths[reply.headers.get("x-cascadia-path")] += 1

        async def more_requests() -> None:
            seen = paths.total()
            await eventually(lambda: paths.total() > seen + 6, "requests")

        callers = [asyncio.create_task(call_on()) for _ in range(3)]
        try:
            for secrets in ([old, new], [new, old], [new], [], [b"short"], [new] * 9):
                file.write_bytes(b"\n".join(secrets) + b"\n")
                for router in routers:  # one after the other, as kubelets refresh them
                    assert router._peer_secrets is not None
                    router._peer_secrets.read()
                    await more_requests()
        finally:
            for caller in callers:
                caller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*callers)
        assert set(paths) == {"small>large"}


async def test_a_wrong_secret_between_routers_is_not_the_clients_fault(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *two_stages()) as chain:
        chain.router("large").node.secrets.use([b"another secret of some length"])
        assert (await http(chain.client("large"), CHAT, chat())).headers["x-cascadia-path"] == "large"
        chain.engine("small").behaviour = UNSURE
        assert (await http(chain.client("small"), CHAT, chat())).headers["x-cascadia-path"] == "small"


async def test_changing_the_policy_under_load_loses_no_request(tmp_path: Path) -> None:
    """Thresholds change, and replicas come and go, while requests of every kind flow."""
    stages = (
        StageOf("small", 0.8, [ScriptedEngine("a", UNSURE), ScriptedEngine("b", SURE)]),
        StageOf("large", None, [ScriptedEngine("c"), ScriptedEngine("d")]),
    )
    async with chain_of(tmp_path, *stages) as chain:
        replies = []
        stop = asyncio.Event()

        async def ask(address: str, *, stream: bool) -> None:
            while not stop.is_set():
                replies.append(await http(address, CHAT, chat(stream=stream)))

        askers = [
            asyncio.create_task(ask(chain.client(stage, index), stream=stream))
            for stage in ("small", "large")
            for index in (0, 1)
            for stream in (False, True)
        ]
        for revision in range(2, 32):
            policy = chain.make_policy(revision)
            for stage in policy.stages:
                if revision % 3:
                    del stage.endpoints[revision % 2]
            thresholds = [0.0, 0.5, 0.99]
            policy.stages[0] = type(policy.stages[0])(
                name="small", served_model_name="served-small", threshold=thresholds[revision % 3],
                endpoints=policy.stages[0].endpoints,
            )  # fmt: skip
            seen = len(replies)
            chain.put(policy)
            await eventually(lambda seen=seen: len(replies) >= seen + 16, "requests flow")  # type: ignore[misc]
        stop.set()
        await asyncio.gather(*askers)
        assert {reply.status for reply in replies} == {200}
        assert all(b'"cascadia"' in reply.body for reply in replies)
        paths = {(reply.events[-2] if b"[DONE]" in reply.body else reply.json)["cascadia"]["path"] for reply in replies}
        assert paths == {"small", "small>large"}
        for router in chain.all():
            assert not router.node.exchanges
            assert all(replica.outstanding == 0 for _, replica in router.node.replicas.all())
