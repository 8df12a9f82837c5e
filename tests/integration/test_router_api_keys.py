"""API keys at the client port of real routers: who is let in, and a rotation under load."""

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cascadia_api.policy import RateLimit, RateLimits, RequestLimits
from cascadia_router.api_keys import ApiKeys
from cascadia_router.server import Router
from tests.support.mounted_secret import MountedSecret
from tests.support.router_chain import StageOf, chain_of, eventually, http
from tests.support.scripted_engine import ScriptedEngine, answer

CHAT = "/v1/chat/completions"
BODY = {"model": "chat", "messages": []}
OLD, NEW = "sk-old-0123456789abcdef", "sk-new-0123456789abcdef"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def mount(tmp_path: Path) -> MountedSecret:
    mount = MountedSecret(tmp_path / "keys")
    mount.put(team=OLD.encode())
    return mount


def stages() -> tuple[StageOf, StageOf]:
    return (
        StageOf("small", 0.9, [ScriptedEngine("small", answer(logprob=-3.0))]),
        StageOf("large", None, [ScriptedEngine("large", answer())]),
    )


@pytest.mark.parametrize(
    ("path", "method", "body"),
    [(CHAT, "POST", BODY), (CHAT, "POST", b"{"), ("/v1/models", "GET", None), ("/nowhere", "GET", None)],
)
@pytest.mark.parametrize(
    "headers", [{}, bearer("sk-wrong-0123456789ab"), {"authorization": f"Basic {OLD}"}, {"x-api-key": OLD}]
)
async def test_strangers_are_told_nothing(
    tmp_path: Path, mount: MountedSecret, path: str, method: str, body: Any, headers: dict[str, str]
) -> None:
    async with chain_of(tmp_path, *stages(), config={"api_keys": [str(mount.path)]}) as chain:
        reply = await http(chain.client("small"), path, body, method=method, headers=headers)
        assert reply.status == 401
        assert reply.headers["www-authenticate"] == "Bearer"
        assert reply.json["error"]["code"] == "invalid_api_key"
        assert set(reply.json["error"]) == {"message", "type", "param", "code"}
        assert not chain.engine("small").seen
        assert (await http(chain.client("small"), "/healthz")).status == 200


@pytest.mark.parametrize("framing", ["content-length: 8000000", "transfer-encoding: chunked"])
async def test_a_strangers_body_is_not_waited_for(tmp_path: Path, mount: MountedSecret, framing: str) -> None:
    async with chain_of(tmp_path, *stages(), config={"api_keys": [str(mount.path)]}) as chain:
        host, _, port = chain.client("small").rpartition(":")
        for key, first in (("sk-wrong-0123456789ab", b"HTTP/1.1 401"), (OLD, b"HTTP/1.1 100")):
            reader, writer = await asyncio.open_connection(host, int(port))
            lines = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\n{framing}\r\n"
            writer.write(f"{lines}authorization: Bearer {key}\r\n\r\n".encode())
            async with asyncio.timeout(20):
                assert (await reader.readuntil(b"\r\n")).startswith(first)
            writer.transport.abort()


async def test_a_client_passes_through_the_chain_and_its_key_goes_no_further(
    tmp_path: Path, mount: MountedSecret
) -> None:
    async with chain_of(tmp_path, *stages(), config={"api_keys": [str(mount.path)]}) as chain:
        reply = await http(chain.client("small"), CHAT, BODY, headers=bearer(OLD))
        assert (reply.status, reply.json["cascadia"]["path"]) == (200, "small>large")
        for stage in ("small", "large"):
            assert "authorization" not in chain.engine(stage).seen[0].headers


async def test_rotation_refuses_nobody_who_has_a_key(tmp_path: Path, mount: MountedSecret) -> None:
    engine = ScriptedEngine("only", answer())
    async with chain_of(tmp_path, StageOf("only", None, [engine]), config={"api_keys": [str(mount.path)]}) as chain:
        router: Router = chain.router("only")
        assert router.node.clients is not None
        keys: ApiKeys = router.node.clients.keys
        key, statuses = OLD, Counter[int]()

        async def call_on() -> None:
            while True:
                reply = await http(chain.client("only"), CHAT, BODY, headers=bearer(key))
                statuses[reply.status] += 1

        callers = [asyncio.create_task(call_on()) for _ in range(4)]
        try:
            mount.put(team=f"{OLD}\n{NEW}\n".encode())
            await eventually(lambda: len(keys.ids) == 2, "the second key is known")
            key = NEW
            seen = statuses.total()
            await eventually(lambda: statuses.total() > seen + 8, "nobody uses the first key any more")
            mount.put(team=NEW.encode())
            await eventually(lambda: len(keys.ids) == 1, "the first key is gone")
            seen = statuses.total()
            await eventually(lambda: statuses.total() > seen + 4, "requests after the rotation")
        finally:
            for caller in callers:
                caller.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(*callers)
        assert set(statuses) == {200}
        assert (await http(chain.client("only"), CHAT, BODY, headers=bearer(OLD))).status == 401


async def test_without_a_readable_key_nobody_is_let_in(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    async with chain_of(
        tmp_path, StageOf("only", None, [ScriptedEngine("only")]), config={"api_keys": [str(file)]}
    ) as chain:
        client = chain.client("only")
        unknown = await http(client, CHAT, BODY, headers=bearer(OLD))
        assert (unknown.status, unknown.json["error"]["code"]) == (503, "api_keys_unavailable")
        assert unknown.headers["retry-after"] == "1"
        file.write_text("")
        keys = chain.router("only").node.clients
        assert keys is not None
        await eventually(lambda: keys.keys.known, "the empty file is read")
        assert (await http(client, CHAT, BODY, headers=bearer(OLD))).status == 401
        file.write_text(OLD)
        await eventually(lambda: keys.keys.ids, "the key is read")
        assert (await http(client, CHAT, BODY, headers=bearer(OLD))).status == 200


LIMITS = RateLimits(default=RateLimit(requests_per_minute=4), keys={"busy": RateLimit(tokens_per_minute=60)})


async def test_a_key_has_its_requests_of_the_minute(tmp_path: Path, mount: MountedSecret) -> None:
    mount.put(team=OLD.encode(), other=NEW.encode())
    engine = ScriptedEngine("only", answer())
    config = {"api_keys": [str(mount.path)]}
    async with chain_of(tmp_path, StageOf("only", None, [engine]), config=config, rate_limits=LIMITS) as chain:
        client = chain.client("only")
        replies = [await http(client, CHAT, BODY, headers=bearer(OLD)) for _ in range(5)]
        assert [reply.status for reply in replies] == [200] * 4 + [429]
        assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["3", "2", "1", "0", "0"]
        assert replies[0].headers["x-ratelimit-limit-requests"] == "4"
        refused = replies[-1]
        assert 1 <= int(refused.headers["retry-after"]) <= 15
        assert (refused.json["error"]["code"], refused.json["error"]["type"]) == (
            "rate_limit_exceeded",
            "rate_limit_error",
        )
        assert (await http(client, CHAT, BODY, headers=bearer(NEW))).status == 200, "another key has its own"
        metrics = (await http(chain.admin("only"), "/metrics")).body.decode()
        assert 'cascadia_router_client_requests_total{key="team"} 4' in metrics
        assert 'cascadia_router_client_limited_total{key="team",limit="requests"} 1' in metrics
        assert 'cascadia_router_client_tokens_total{key="team"} 40' in metrics
        chain.put(chain.make_policy(2))
        assert (await http(client, CHAT, BODY, headers=bearer(OLD))).status == 200, "limits change with the policy"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_token_budget_pays_for_all_stages(tmp_path: Path, mount: MountedSecret, stream: bool) -> None:
    mount.put(busy=OLD.encode())
    config = {"api_keys": [str(mount.path)]}
    limits = RateLimits(keys={"busy": RateLimit(tokens_per_minute=3000)})  # two leaders: 1500 for each
    long = (
        StageOf("small", 0.9, [ScriptedEngine("small", answer(logprob=-3.0, tokens=300))]),
        StageOf("large", None, [ScriptedEngine("large", answer(tokens=300))]),
    )
    async with chain_of(tmp_path, *long, config=config, rate_limits=limits) as chain:
        clients = chain.router("small").node.clients
        assert clients is not None
        body = BODY | {"stream": stream, "max_tokens": 900}
        for requests in (1, 2, 3):
            reply = await http(chain.client("small"), CHAT, body, headers=bearer(OLD))
            assert reply.status == 200
            charged = 2 * 307 * requests
            await eventually(lambda n=charged: clients.all()[0].tokens == n, "both stages are charged")  # type: ignore[misc]
        denied = await http(chain.client("small"), CHAT, body, headers=bearer(OLD))
        assert (denied.status, denied.headers["x-ratelimit-remaining-tokens"]) == (429, "0")
        assert denied.headers["x-ratelimit-limit-tokens"] == "1500"
        assert (await http(chain.client("large"), CHAT, body, headers=bearer(OLD))).status == 200


async def test_limits_of_requests_come_with_the_policy(tmp_path: Path) -> None:
    engine = ScriptedEngine("only", answer())
    limits = RequestLimits(body_bytes=2048, headers=8)
    async with chain_of(tmp_path, StageOf("only", None, [engine]), limits=limits) as chain:
        client = chain.client("only")
        large = BODY | {"messages": [{"role": "user", "content": "x" * 3000}]}
        assert (await http(client, CHAT, large)).status == 413
        assert (await http(client, CHAT, BODY, headers={f"x-{number}": "1" for number in range(9)})).status == 431
        chain.put(chain.make_policy(2, limits=RequestLimits(body_bytes=8192)))
        assert (await http(client, CHAT, large)).status == 200
