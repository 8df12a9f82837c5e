"""A cascade of processes: simulated engines, a router beside each, an entry router; and load on it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cascadia_api.policy import Endpoint, RouterPolicy, StagePolicy, encode_policy
from tests.support.engine_process import engine_config
from tests.support.router_chain import http

__all__ = ["Load", "Replica", "Running", "cascade_of_processes"]

SCALE = 20.0


@dataclass
class Running:
    """One process that writes its log as JSON lines."""

    process: asyncio.subprocess.Process
    said: dict[str, Any]
    _reader: asyncio.Task[None]

    @classmethod
    async def start(cls, module: str, config: Path, until: str) -> Running:
        """Start a process and wait for an event of its log; `said` holds all that it said before."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module, "--config", str(config), stderr=asyncio.subprocess.PIPE
        )
        assert process.stderr is not None
        said: dict[str, Any] = {}
        try:
            async with asyncio.timeout(60):
                while said.get("event") != until:
                    line = await process.stderr.readline()
                    assert line, f"{module} has ended"
                    said |= json.loads(line) if line.startswith(b"{") else {}
        except BaseException:
            process.kill()
            raise
        return cls(process, said, asyncio.create_task(cls._drop(process.stderr)))

    @staticmethod
    async def _drop(stream: asyncio.StreamReader) -> None:
        while await stream.readline():
            pass

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    async def ended(self) -> int:
        """Exit code."""
        async with asyncio.timeout(60):
            return await self.process.wait()

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        await self._reader


@dataclass
class Replica:
    """An engine and the router beside it, as in a pod."""

    stage: str
    name: str
    engine: Running
    router: Running

    @property
    def admin(self) -> str:
        return str(self.router.said["admin"])


@dataclass
class Processes:
    """A running cascade.

    Attributes:
        entry: A router without an engine: the clients' way in.
        replicas: By name.
    """

    folder: Path
    replicas: dict[str, Replica] = field(default_factory=dict)
    entry: Running | None = None
    revision: int = 0

    @property
    def client(self) -> str:
        assert self.entry is not None
        return str(self.entry.said["client"])

    def put(self, threshold: float, *, without: tuple[str, ...] = (), **changes: Any) -> RouterPolicy:
        """Write a new policy: its plan's id tells the threshold."""
        self.revision += 1
        by_stage: dict[str, list[Endpoint]] = {"small": [], "large": []}
        for replica in self.replicas.values():
            if replica.name not in without:
                address = replica.router.said["peers"]
                by_stage[replica.stage].append(Endpoint(replica=replica.name, address=address))
        policy = RouterPolicy(
            cascade="chat",
            policy_revision=self.revision,
            plan_id=f"at-{threshold:.3f}",
            request_timeout_seconds=300.0,
            stages=[
                StagePolicy(
                    name=name,
                    served_model_name=name,
                    threshold=threshold if name == "small" else None,
                    endpoints=endpoints,
                )
                for name, endpoints in by_stage.items()
            ],
        )
        file = self.folder / "policy.json"
        file.with_suffix(".new").write_bytes(encode_policy(msgspec.structs.replace(policy, **changes)))
        file.with_suffix(".new").rename(file)
        return policy


@contextlib.asynccontextmanager
async def cascade_of_processes(folder: Path, small: int = 2, large: int = 1) -> AsyncIterator[Processes]:
    """Run so many replicas of two stages and an entry router; about half of the small one's answers are accepted."""
    (folder / "secret").write_bytes(b"a secret between routers")
    running = Processes(folder)
    started: list[Running] = []

    async def process(module: str, name: str, config: dict[str, Any], until: str) -> Running:
        path = folder / f"{name}.json"
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
        made = await Running.start(module, path, until)
        started.append(made)
        return made

    def router_config(stage: str | None, name: str | None, engine: str | None) -> dict[str, Any]:
        return {
            "stage": stage, "replica": name, "engine": engine, "client": "127.0.0.1:0",
            "peers": "127.0.0.1:0" if engine else None, "admin": "127.0.0.1:0",
            "policyFile": str(folder / "policy.json"), "peerSecretFile": str(folder / "secret"), "clockScale": SCALE,
        }  # fmt: skip

    async def replica(stage: str, name: str) -> Replica:
        ability = {"name": stage, "ability": 0.5 if stage == "small" else 1.5}
        config = engine_config(servedModelName=stage, stage=stage, model=ability, clockScale=SCALE)
        engine = await process("cascadia_local.simulated_engine", f"{name}-engine", config, "ready")
        router = await process(
            "cascadia_router", f"{name}-router", router_config(stage, name, engine.said["address"]), "listening"
        )
        return Replica(stage, name, engine, router)

    names = [("small", f"small-{k}") for k in range(small)] + [("large", f"large-{k}") for k in range(large)]
    try:
        for made in await asyncio.gather(*(replica(stage, name) for stage, name in names)):
            running.replicas[made.name] = made
        running.entry = await process("cascadia_router", "entry", router_config(None, None, None), "listening")
        running.put(0.8)
        for each in [running.entry, *(made.router for made in running.replicas.values())]:
            async with asyncio.timeout(60):
                while (await http(each.said["admin"], "/readyz")).status != 200:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
        yield running
    finally:
        for each in started:
            await each.kill()


class Load:
    """Closed-loop load on an address: every worker asks again when it is answered; every other request is a stream.

    Attributes:
        outcomes: How many requests ended how: ``answered``, ``interrupted`` (an error event after some of the
            answer), ``broken`` (after some of the answer, without one), ``failed`` (before any of it).
        failures: What was said of those that failed.
        decisions: The `cascadia` objects of the answers.
    """

    def __init__(self, address: str, workers: int = 6) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        self.decisions: list[dict[str, Any]] = []
        self._address = address
        self._numbers = itertools.count()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(workers)]
        self._stopping = False

    async def until(self, more: int) -> None:
        """Wait until so many more requests have ended."""
        target = self.outcomes.total() + more
        await self.reaches(lambda: self.outcomes.total() >= target, f"{more} more requests end")

    async def reaches(self, condition: Callable[[], bool], what: str) -> None:
        try:
            async with asyncio.timeout(90):
                while not condition():
                    for task in self._tasks:
                        if task.done():
                            task.result()
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"not in time: {what}; {self.outcomes}, {self.failures[:3]}") from None

    async def stop(self) -> None:
        """Let what is under way end."""
        self._stopping = True
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks)

    async def _work(self) -> None:
        while not self._stopping:
            number = next(self._numbers)
            body = {
                "model": "chat",
                "stream": number % 2 == 0,
                "messages": [{"role": "user", "content": f"Question {number}?"}],
                "simulation": {"key": f"load-{number}", "outputTokens": 60 + number % 80},
            }
            self.outcomes[await self._ask(json.dumps(body).encode(), stream=number % 2 == 0)] += 1

    async def _ask(self, body: bytes, *, stream: bool) -> str:
        host, _, port = self._address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        received = b""
        try:
            writer.write(head % len(body) + body)
            async with asyncio.timeout(60):
                while data := await reader.read(65536):
                    received += data
        except ConnectionError:
            pass  # judged by what had come
        finally:
            writer.close()
        return self._judge(received, stream=stream)

    def _judge(self, received: bytes, *, stream: bool) -> str:
        head, _, rest = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            self.failures.append(received.decode(errors="replace")[:500])
            return "failed"
        if b'"error":' in rest:
            if b'"content":' in rest:
                return "interrupted"
            self.failures.append(rest.decode(errors="replace")[:500])
            return "failed"
        whole = b"data: [DONE]\n\n" in rest if stream else rest.endswith(b"}")
        if not whole:
            return "broken"
        text = rest[rest.rindex(b'"cascadia":') + len(b'"cascadia":') :]
        self.decisions.append(json.JSONDecoder().raw_decode(text.decode())[0])
        return "answered"
