"""A cascade under mixed load while everything about it changes: `python -m tests.support.soak --minutes 30`.

Real routers and simulated engines as processes, through the embedded runtime. Whole answers, streams, clients
that leave, pinned requests; thresholds move every second, replicas come and go by plan, and in the second part
engines and routers are killed, one at a time, so that each stage always has a healthy replica. What must hold:

* no request fails before its first byte, whatever is changed or killed;
* a stream that breaks off ends with an error event, and only kills break streams;
* memory stays flat, and once the load ends no request, connection or engine slot is left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from cascadia_local.loopback_http import ask
from cascadia_local.replica import Replica
from cascadia_solver.transition import ReplicaState
from tests.support.embedded import Embedded, Group, embedded, plan_of, until

__all__ = ["Outcome", "Soak"]

CLOCK_SCALE = 5.0
RATE = 16.0
"""Requests per wall second."""
PLANNED_SHARE = 0.4
"""Share of the run without kills: nothing at all may break then."""
CHANGE_SECONDS = 1.0
"""Between two changes of the thresholds, wall s."""
SHAPE_SECONDS = 12.0
"""Between two changes of the replicas, wall s."""
KILL_SECONDS = 6.0
"""Pause after a killed process is back, wall s."""
SHAPES: tuple[tuple[list[Group], list[Group]], ...] = (
    ([(1, 2)], [(4, 2)]),
    ([(1, 3)], [(4, 2)]),
    ([(1, 2)], [(4, 3)]),
    ([(1, 4)], [(4, 2)]),
)
"""Replicas (tensor parallelism, count) of the small and of the large stage."""
GPUS = 20
"""The largest shape's and room to start a replica before another one goes."""
KINDS = {"whole": 45, "stream": 35, "leaves-stream": 8, "leaves-early": 7, "pinned": 5}
REQUEST_DEADLINE_SECONDS = 60.0


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        requests: Requests by kind.
        failed: Requests without an answer, or with an error before its first byte: must stay empty.
        cut: Streams that ended with neither their end nor an error event: must stay empty.
        interrupted: Streams that ended with an error event: by the run's part, `planned` or `kills`.
        escalated: Answers of the large stage after the small one's was rejected.
        kills: Processes killed, by kind.
        revisions: Policies put in force.
        replicas: Replicas started.
        memory: Resident memory of the entry router over time: wall s, MB.
        left: What was left once the load had ended: must stay empty.
    """

    requests: Counter[str] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    interrupted: Counter[str] = field(default_factory=Counter)
    escalated: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    revisions: int = 0
    replicas: int = 0
    memory: list[tuple[float, float]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def growth(self) -> float:
        """Growth of the entry router's memory from the second quarter of the run to its last, MB (medians)."""
        sizes = [size for _, size in self.memory]
        quarter = len(sizes) // 4
        early, late = sorted(sizes[quarter : 2 * quarter]), sorted(sizes[-quarter:])
        return late[len(late) // 2] - early[len(early) // 2]

    def summary(self) -> dict[str, Any]:
        """The figures, for a machine."""
        return {
            "requests": sum(self.requests.values()),
            "byKind": dict(self.requests),
            "failedBeforeFirstByte": len(self.failed),
            "cutWithoutErrorEvent": len(self.cut),
            "interruptedByPlannedChanges": self.interrupted["planned"],
            "interruptedByKills": self.interrupted["kills"],
            "escalated": self.escalated,
            "kills": dict(self.kills),
            "policyRevisions": self.revisions,
            "replicasStarted": self.replicas,
            "entryMemoryMB": [round(self.memory[0][1], 1), round(self.memory[-1][1], 1)],
            "entryMemoryGrowthMB": round(self.growth(), 2),
            "left": self.left,
        }


class Soak:
    """One run.

    Args:
        run: The embedded runtime.
        seconds: Length, wall s.
        seed: Of the load and of what is killed.
    """

    def __init__(self, run: Embedded, seconds: float, seed: int = 0) -> None:
        self.outcome = Outcome()
        self._run = run
        self._runtime = run.runtime
        self._url = f"{run.runtime.endpoint}/chat/completions"
        self._seconds = seconds
        self._random = random.Random(seed)
        self._numbers = count(1)
        self._plans = count(1)
        self._shape = SHAPES[0]
        self._part = "planned"
        self._asked: set[asyncio.Task[None]] = set()
        self._changes: set[asyncio.Task[None]] = set()

    async def go(self) -> Outcome:
        """Run to the end, then look at what is left."""
        await self._runtime.start(self._plan())
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(REQUEST_DEADLINE_SECONDS), connector=aiohttp.TCPConnector(limit=400)
        ) as client:
            background = [asyncio.create_task(each) for each in (self._change(), self._reshape(), self._measure())]
            killer: asyncio.Task[None] | None = None
            begun = time.monotonic()
            while (at := time.monotonic() - begun) < self._seconds:
                if killer is None and at > PLANNED_SHARE * self._seconds:
                    self._part = "kills"
                    killer = asyncio.create_task(self._kill())
                    background.append(killer)
                self._raise_from(background)
                self._start(self._ask(client))
                await asyncio.sleep(self._random.expovariate(RATE))
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            while self._asked:
                await asyncio.wait(self._asked)
            await asyncio.gather(*self._changes)
        await self._look_for_what_is_left()
        policy = self._runtime.policy
        self.outcome.revisions = policy.policy_revision if policy is not None else 0
        return self.outcome

    @staticmethod
    def _raise_from(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            if task.done():
                task.result()

    def _start(self, asking: Any) -> None:
        task = asyncio.create_task(asking)
        self._asked.add(task)
        task.add_done_callback(self._asked.discard)

    # -- load -------------------------------------------------------------------------------------

    async def _ask(self, client: aiohttp.ClientSession) -> None:
        kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
        self.outcome.requests[kind] += 1
        number = next(self._numbers)
        body: dict[str, Any] = {
            "model": "large" if kind == "pinned" else "pair",
            "messages": [{"role": "user", "content": f"Question {number}" + "?" * self._random.choice((1, 300, 3000))}],
            "simulation": {
                "key": str(number),
                "inputTokens": self._random.randint(20, 1500),
                "outputTokens": self._random.randint(5, 400),
            },
        }
        label = f"{kind} {number} ({self._part})"
        try:
            if kind in {"stream", "leaves-stream"}:
                await self._stream(client, body | {"stream": True}, label, leaves=kind == "leaves-stream")
            elif kind == "leaves-early":
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._random.uniform(0.005, 0.2)):
                        async with client.post(self._url, json=body) as answer:
                            await answer.read()
            else:
                async with client.post(self._url, json=body) as answer:
                    if answer.status != 200:
                        self.outcome.failed.append(f"{label}: {answer.status} {(await answer.text())[:300]}")
                    else:
                        self._note(await answer.json())
        except (aiohttp.ClientError, TimeoutError) as error:
            self.outcome.failed.append(f"{label}: {error!r}")

    async def _stream(self, client: aiohttp.ClientSession, body: dict[str, Any], label: str, *, leaves: bool) -> None:
        part = self._part
        events, stay = 0, self._random.randint(0, 20) if leaves else sys.maxsize
        ended = failure = ""
        async with client.post(self._url, json=body) as answer:
            if answer.status != 200:
                self.outcome.failed.append(f"{label}: {answer.status} {(await answer.text())[:300]}")
                return
            try:
                async for raw in answer.content:
                    line = raw.decode().rstrip("\n")
                    if not line.startswith("data:"):
                        continue
                    if events >= stay:
                        return
                    if line == "data: [DONE]":
                        ended = "done"
                        continue
                    event = json.loads(line[5:])
                    if "error" in event:
                        failure = line
                    else:
                        events += 1
                        self._note(event)
            except (aiohttp.ClientError, TimeoutError) as error:
                self.outcome.cut.append(f"{label}: {error!r} after {events} events")
                return
        if failure and not events:
            self.outcome.failed.append(f"{label}: {failure[:300]}")
        elif failure:
            self.outcome.interrupted["kills" if self._part == "kills" else part] += 1
        elif not ended:
            self.outcome.cut.append(f"{label}: no end after {events} events")

    def _note(self, told: dict[str, Any]) -> None:
        path = (told.get("cascadia") or {}).get("path") or ""
        self.outcome.escalated += ">" in path

    # -- change -----------------------------------------------------------------------------------

    def _plan(self) -> Any:
        small, large = self._shape
        return plan_of(small, large, threshold=round(self._random.uniform(0.6, 0.9), 3), number=next(self._plans))

    async def _change(self) -> None:
        while True:
            await asyncio.sleep(CHANGE_SECONDS)
            for task in [task for task in self._changes if task.done()]:
                self._changes.discard(task)
                task.result()
            self._changes.add(asyncio.create_task(self._runtime.apply(self._plan())))

    async def _reshape(self) -> None:
        while True:
            await asyncio.sleep(SHAPE_SECONDS)
            self._shape = self._random.choice([shape for shape in SHAPES if shape != self._shape])

    async def _kill(self) -> None:
        """Kill a process of a replica that is not its stage's only healthy one, until it is back; again."""
        while True:
            ready: dict[str, list[Replica]] = {}
            for replica in self._runtime.replicas.values():
                if replica.state is ReplicaState.Ready:
                    ready.setdefault(replica.desired.stage, []).append(replica)
            # Two healthy ones must stay: the plan may be about to let one of them go.
            spare = [replica for replicas in ready.values() if len(replicas) > 2 for replica in replicas]
            if not spare:
                await asyncio.sleep(0.2)
                continue
            victim = self._random.choice(sorted(spare, key=lambda replica: replica.name))
            kind = self._random.choice(["engine", "router"])
            process = victim.engine if kind == "engine" else victim.router.process
            if process.pid is None:
                continue
            os.kill(process.pid, signal.SIGKILL)
            self.outcome.kills[kind] += 1
            end = time.monotonic() + 60.0
            while victim.state is not ReplicaState.Ready and victim.name in self._runtime.replicas:
                assert time.monotonic() < end, f"{victim.name} is not back 60 s after its {kind} was killed"
                await asyncio.sleep(0.1)
            await asyncio.sleep(KILL_SECONDS)

    # -- memory, and what is left -----------------------------------------------------------------

    async def _measure(self) -> None:
        begun = time.monotonic()
        while True:
            pid = self._runtime._entry.process.pid
            assert pid is not None, "the entry router has died"
            self.outcome.memory.append((round(time.monotonic() - begun, 1), _resident_mb(pid)))
            self.outcome.replicas = max(
                [self.outcome.replicas, *(int(name.rpartition("-")[2]) for name in self._runtime.replicas)]
            )
            await asyncio.sleep(self._seconds / 60)

    async def _look_for_what_is_left(self) -> None:
        """Engines' requests, routers' requests and the entry's client connections, given ten seconds to go."""
        self.outcome.left = ["not looked at"]

        async def nothing() -> bool:
            self.outcome.left = await self._left()
            return not self.outcome.left

        with contextlib.suppress(AssertionError):  # what is left is told in the outcome
            await until(nothing, "nothing is left", deadline_s=10.0)

    async def _left(self) -> list[str]:
        found = []
        port = int(self._runtime.endpoint.rpartition(":")[2].partition("/")[0])
        if connections := _established(port):
            found.append(f"{connections} client connections of the entry")
        routers = [self._runtime._entry, *(replica.router for replica in self._runtime.replicas.values())]
        for router in routers:
            _, text = await ask(router.config.admin, "/metrics")
            for line in text.decode().splitlines():
                name, _, value = line.rpartition(" ")
                busy = name.startswith(("cascadia_router_in_flight", "cascadia_router_endpoint_outstanding"))
                if busy and float(value):
                    found.append(f"{router.process.name}: {line}")
        for replica in self._runtime.replicas.values():
            load = await replica.load()
            if load.running or load.waiting:
                found.append(f"{replica.name}: {load}")
        return found


def _resident_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _established(port: int) -> int:
    """Established connections whose local port is this one."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    states = [(line.split()[1].rpartition(":")[2], line.split()[3]) for line in lines]
    return sum(int(local, 16) == port and state == "01" for local, state in states)


async def soak(directory: Path, minutes: float, seed: int = 0) -> Outcome:
    """Run a cascade for some minutes."""
    async with embedded(directory, scale=CLOCK_SCALE, gpus=GPUS) as run:
        return await Soak(run, 60.0 * minutes, seed).go()


def main() -> int:
    """Run, print the figures as JSON; 1 if anything that must hold did not."""
    parser = argparse.ArgumentParser(description="Routers under mixed load, changes and kills.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cascadia-soak-") as folder:
        outcome = asyncio.run(soak(Path(folder), arguments.minutes, arguments.seed))
    print(json.dumps(outcome.summary(), indent=2))
    for line in [*outcome.failed, *outcome.cut][:20]:
        print(line, file=sys.stderr)
    broken = outcome.failed or outcome.cut or outcome.left or outcome.interrupted["planned"]
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
