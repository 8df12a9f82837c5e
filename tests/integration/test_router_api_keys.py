"""API keys at the client port of real routers: who is let in, and a rotation under load."""

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

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
