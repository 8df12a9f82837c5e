"""Chains of real routers on loopback, in the test's event loop, in front of scripted engines."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cascadia_api.policy import Endpoint, RouterConfig, RouterPolicy, StagePolicy, encode_policy
from cascadia_router.server import Router
from tests.support.scripted_engine import ScriptedEngine

__all__ = ["Chain", "Reply", "StageOf", "chain_of", "eventually", "http", "read_reply"]

SECRET = b"a secret between routers"


async def eventually(condition: Callable[[], object], what: str, seconds: float = 10.0) -> None:
    """Wait until a condition of this process holds.

    Raises:
        AssertionError: It did not in time.
    """
    try:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - what routers and engines do raises no event
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


@dataclass
class Reply:
    """One HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Payloads of the `data` lines of an event stream, `[DONE]` as it is."""
        payloads = [line[5:].strip() for line in self.body.split(b"\n") if line.startswith(b"data:")]
        return [payload.decode() if payload == b"[DONE]" else json.loads(payload) for payload in payloads]


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = b""
    if headers.get("transfer-encoding") == "chunked":
        while size := int((await reader.readline()).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await reader.read()
    return Reply(int(first.split(" ")[1]), headers, body)


async def http(
    address: str,
    path: str,
    body: Any = None,
    *,
    headers: dict[str, str] | None = None,
    method: str | None = None,
    seconds: float = 20.0,
) -> Reply:
    """One request on a connection of its own."""
    payload = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    method = method or ("GET" if body is None else "POST")
    lines = [f"{method} {path} HTTP/1.1", "host: test", f"content-length: {len(payload)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write("\r\n".join((*lines, "", "")).encode() + payload)
            return await read_reply(reader)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


@dataclass
class StageOf:
    """One stage of a chain: a router beside each engine."""

    name: str
    threshold: float | None
    engines: list[ScriptedEngine]
    context_window: int | None = None
    capabilities: list[str] = field(default_factory=lambda: ["tools", "images"])
    weights: list[float] | None = None


class Chain:
    """A running cascade.

    Attributes:
        routers: By stage name, one a replica.
        policy: The policy put in force last.
    """

    def __init__(
        self, folder: Path, stages: list[StageOf], clock_scale: float, config: dict[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self.stages = stages
        self.routers: dict[str, list[Router]] = {}
        self.entries: list[Router] = []
        self._clock_scale = clock_scale
        self._config = config or {}
        self._secret_file = folder / "peer-secret"
        self._secret_file.write_bytes(SECRET)
        self.policy: RouterPolicy | None = None

    def engine(self, stage: str, index: int = 0) -> ScriptedEngine:
        return next(each for each in self.stages if each.name == stage).engines[index]

    def router(self, stage: str, index: int = 0) -> Router:
        return self.routers[stage][index]

    def client(self, stage: str, index: int = 0) -> str:
        """Address of a router's client port."""
        return self.routers[stage][index].addresses["client"]

    def admin(self, stage: str, index: int = 0) -> str:
        return self.routers[stage][index].addresses["admin"]

    def all(self) -> list[Router]:
        return [router for routers in self.routers.values() for router in routers] + self.entries

    async def start(self) -> None:
        for stage in self.stages:
            self.routers[stage.name] = []
            for index, engine in enumerate(stage.engines):
                await engine.start()
                router = Router(self.config(stage.name, f"{stage.name}-{index}", engine.address))
                await router.start()
                self.routers[stage.name].append(router)

    def config(self, stage: str | None, replica: str | None, engine: str | None) -> RouterConfig:
        return RouterConfig(
            stage=stage,
            replica=replica,
            engine=engine,
            client="127.0.0.1:0",
            peers="127.0.0.1:0" if engine else None,
            admin="127.0.0.1:0",
            policy_file=str(self.folder / "policy.json"),
            peer_secret_file=str(self._secret_file),
            clock_scale=self._clock_scale,
            **self._config,
        )

    async def add_entry(self) -> Router:
        """An entry router without an engine."""
        router = Router(self.config(None, None, None))
        await router.start()
        self.entries.append(router)
        if self.policy is not None:
            router.node.policies.take(encode_policy(self.policy), "test")
        return router

    def make_policy(self, revision: int, **changes: Any) -> RouterPolicy:
        stages = [
            StagePolicy(
                name=stage.name,
                served_model_name=f"served-{stage.name}",
                threshold=stage.threshold,
                context_window=stage.context_window,
                capabilities=stage.capabilities,  # type: ignore[arg-type]
                endpoints=[
                    Endpoint(
                        replica=f"{stage.name}-{index}",
                        address=router.addresses["peers"],
                        weight=stage.weights[index] if stage.weights else 1.0,
                    )
                    for index, router in enumerate(self.routers[stage.name])
                ],
            )
            for stage in self.stages
        ]
        policy = RouterPolicy(cascade="chat", policy_revision=revision, plan_id=f"plan-{revision}", stages=stages)
        return msgspec.structs.replace(policy, **changes)

    def put(self, policy: RouterPolicy, only: list[Router] | None = None) -> None:
        """Put a policy in force at once (the watched file has tests of its own)."""
        self.policy = policy
        for router in self.all() if only is None else only:
            router.node.policies.take(encode_policy(policy), "test")

    async def ready(self) -> None:
        for router in self.all():
            own = router.node.own
            if own is not None:
                await eventually(lambda own=own: own.ready, "engine ready")  # type: ignore[misc]

    def stop_timers(self) -> None:
        """From now on routers do only what a connection brings about: no look at the time, no sweep, no probe."""
        for router in self.all():
            for task in router._tasks:
                task.cancel()

    async def stop(self) -> None:
        for router in self.all():
            await router.close()
        for stage in self.stages:
            for engine in stage.engines:
                await engine.stop()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def chain_of(
    folder: Path,
    *stages: StageOf,
    clock_scale: float = 1.0,
    wait: bool = True,
    config: dict[str, Any] | None = None,
    **policy: Any,
) -> AsyncIterator[Chain]:
    """Run a cascade of these stages; `config` has further fields of every router's bootstrap."""
    chain = Chain(folder, list(stages), clock_scale, config)
    try:
        await chain.start()
        chain.put(chain.make_policy(1, **policy))
        if wait:
            await chain.ready()
        yield chain
    finally:
        await chain.stop()
