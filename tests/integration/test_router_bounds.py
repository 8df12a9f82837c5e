"""What clients ask of one request: a last stage, a deadline, one stage alone."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.support.router_chain import Chain, StageOf, chain_of, http
from tests.support.scripted_engine import Behaviour, ScriptedEngine, Seen, answer, hang

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "hello"}]}
UNSURE = answer(logprob=-1.0)


def three_stages(first: Behaviour = UNSURE, second: Behaviour = UNSURE, third: Behaviour = UNSURE) -> list[StageOf]:
    return [
        StageOf("small", 0.8, [ScriptedEngine("small", first)]),
        StageOf("medium", 0.9, [ScriptedEngine("medium", second)]),
        StageOf("large", None, [ScriptedEngine("large", third)]),
    ]


def seen(chain: Chain) -> dict[str, int]:
    return {stage.name: len(stage.engines[0].seen) for stage in chain.stages}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("entry", "last", "path"),
    [
        ("small", "small", "small"),
        ("small", "medium", "small>medium"),
        ("small", "large", "small>medium>large"),
        ("large", "medium", "small>medium"),
    ],
)
async def test_no_stage_after_the_max_stage_is_asked(
    tmp_path: Path, entry: str, last: str, path: str, stream: bool
) -> None:
    async with chain_of(tmp_path, *three_stages()) as chain:
        reply = await http(chain.client(entry), CHAT, BODY | {"stream": stream}, headers={"X-Cascadia-Max-Stage": last})
        assert reply.status == 200
        assert reply.headers["x-cascadia-path"] == path
        allowed = path.split(">")
        assert seen(chain) == {stage.name: int(stage.name in allowed) for stage in chain.stages}
        # Its answer is accepted whatever it is: it takes no score.
        assert "logprobs" not in chain.engine(last).seen[0].json


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"x-cascadia-max-stage": "huge"}, "small, medium, large"),
        ({"x-cascadia-max-stage": ""}, "small, medium, large"),
        ({"x-cascadia-deadline-ms": "soon"}, "milliseconds"),
        ({"x-cascadia-deadline-ms": "0"}, "milliseconds"),
        ({"x-cascadia-deadline-ms": "-5"}, "milliseconds"),
        ({"x-cascadia-deadline-ms": "1.5"}, "milliseconds"),
    ],
)
async def test_bounds_that_cannot_be_followed_are_refused(tmp_path: Path, headers: dict[str, str], words: str) -> None:
    async with chain_of(tmp_path, *three_stages()) as chain:
        reply = await http(chain.client("small"), CHAT, BODY, headers=headers)
        assert reply.status == 400
        error = reply.json["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_header")
        assert error["param"] == next(iter(headers))
        assert words in error["message"]
        assert seen(chain) == {"small": 0, "medium": 0, "large": 0}
        assert chain.router("small").node.metrics.refused == {"bad_bound": 1}


async def test_a_pinned_stage_after_the_max_stage_is_a_contradiction(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *three_stages()) as chain:
        headers = {"x-cascadia-max-stage": "small"}
        assert (await http(chain.client("small"), CHAT, BODY | {"model": "large"}, headers=headers)).status == 400
        assert (await http(chain.client("small"), CHAT, BODY | {"model": "small"}, headers=headers)).status == 200


async def test_the_client_shortens_the_deadline_but_never_lengthens_it(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *three_stages(hang), request_timeout_seconds=0.3) as chain:
        for milliseconds in ("150", "600000"):
            headers = {"x-cascadia-deadline-ms": milliseconds}
            reply = await http(chain.client("small"), CHAT, BODY, headers=headers)
            assert (reply.status, reply.json["error"]["code"]) == (504, "deadline_exceeded")
            assert reply.json["error"]["type"] == "server_error"
        assert seen(chain) == {"small": 2, "medium": 0, "large": 0}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("entry", ["small", "large"])
async def test_past_the_clients_deadline_the_best_answer_so_far_is_served(
    tmp_path: Path, entry: str, stream: bool
) -> None:
    """The medium stage's router holds its own rejected answer: that one comes back in time, not the small one's."""
    async with chain_of(tmp_path, *three_stages(third=hang)) as chain:
        headers = {"x-cascadia-deadline-ms": "4000"}
        reply = await http(chain.client(entry), CHAT, BODY | {"stream": stream}, headers=headers)
        assert reply.status == 200
        assert reply.headers["x-cascadia-path"] == "small>medium"
        assert seen(chain) == {"small": 1, "medium": 1, "large": 1}


async def test_a_later_stages_keep_alives_do_not_cost_the_answer_at_hand(tmp_path: Path) -> None:
    """The medium stage's router has begun a stream of comments when its time is up: ours still has an answer."""
    stages = three_stages(second=hang)
    async with chain_of(tmp_path, *stages) as chain:
        policy = chain.make_policy(2, streaming=type(chain.make_policy(2).streaming)(keep_alive_seconds=0.1))
        chain.put(policy)
        headers = {"x-cascadia-deadline-ms": "4000"}
        reply = await http(chain.client("small"), CHAT, BODY | {"stream": True}, headers=headers)
        assert reply.status == 200
        assert reply.body.startswith(b": keep-alive\n\n")
        assert reply.events[-2]["cascadia"]["path"] == "small"
        assert reply.events[0]["choices"][0]["delta"]["content"] == "small0 "


async def test_the_deadline_goes_along_the_chain(tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def note_disconnect(engine: ScriptedEngine, seen: Seen, writer: asyncio.StreamWriter) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            gone.set()

    async with chain_of(tmp_path, *three_stages(note_disconnect)) as chain:
        headers = {"x-cascadia-deadline-ms": "300"}
        reply = await http(chain.client("large"), CHAT, BODY, headers=headers)
        assert (reply.status, reply.json["error"]["code"]) == (504, "deadline_exceeded")
        await asyncio.wait_for(gone.wait(), 10)  # the small stage's router stopped its engine's work
        assert chain.router("small").node.metrics.requests == {("peer", "", "deadline"): 1}
        # Too little time is no fault of the replica's.
        assert chain.router("large").node.metrics.retries == {}


async def test_pinned_requests_are_no_part_of_the_workload(tmp_path: Path) -> None:
    async with chain_of(tmp_path, *three_stages()) as chain:
        for stream in (False, True):
            for stage in ("small", "large"):
                reply = await http(chain.client("small"), CHAT, BODY | {"model": stage, "stream": stream})
                assert reply.headers["x-cascadia-path"] == stage
        for stage in ("small", "large"):
            report = (await http(chain.admin(stage), "/cascade/report")).json
            assert (report["arrivals"], report["answeredBy"]) == (0, {})
            assert sum(report["endToEndMs"]["counts"]) == 0
            assert (report["stage"]["requests"], report["stage"]["accepted"]) == (0, 0)
            assert sum(report["stage"]["outputTokens"]["counts"]) == 0
        metrics = chain.router("small").node.metrics
        assert metrics.requests == {("client", "small", "answered"): 2, ("client", "large", "answered"): 2}
