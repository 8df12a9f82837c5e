"""One replica of the embedded runtime: an engine process and the router process beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cascadia_api.clock import ScaledClock
from cascadia_api.policy import RouterConfig
from cascadia_api.report import WorkloadReport
from cascadia_local.loopback_http import UnreachableError, ask
from cascadia_local.ports import LOOPBACK, PortAllocator
from cascadia_local.processes import ChildProcess, Command
from cascadia_solver.transition import DesiredReplica, ObservedReplica, ReplicaState

__all__ = ["EngineLoad", "Replica", "RouterProcess", "RunDirectory"]

START_DEADLINE_S = 180.0
"""Wall seconds for a process to answer its first probe. One that ends is told of at once: this is for one that hangs,
and must be no limit to a machine that has much else to do."""
FIRST_PROBE_DEADLINE_S = 10.0
"""Wall seconds for an answer to a probe of a process that is starting: for the same reason."""
PROBE_DEADLINE_S = 2.0

_REPORT = msgspec.json.Decoder(WorkloadReport)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The folder of a run: configuration files, policy, secret, one log a process.

    Attributes:
        path: The folder.
        secrets: Another one, with what `RouterConfig.secrets` says; None if none is needed.
    """

    path: Path
    secrets: Path | None = None

    @property
    def policy(self) -> Path:
        """The policy that all routers watch."""
        return self.path / "policy.json"

    @property
    def peer_secret(self) -> Path:
        """The secret that signs what routers send each other."""
        return self.path / "peer-secret"

    @property
    def traffic_key(self) -> Path:
        """The API key of the run's own traffic."""
        return self.path / "traffic"


class RouterProcess:
    """One router process, with an engine beside it or (the entry) without.

    Args:
        name: Of the process, for messages and files.
        config: Its bootstrap configuration.
        run: The run's folder.
        on_exit: Called when it ends without having been asked to.
    """

    def __init__(
        self, name: str, config: RouterConfig, run: RunDirectory, on_exit: Callable[[ChildProcess, int], None]
    ) -> None:
        self.config = config
        self.ready = False
        self.revision = 0
        path = run.path / f"{name}.json"
        path.write_bytes(msgspec.json.encode(config))
        self.process = ChildProcess(
            name, Command("cascadia_router", ("--config", str(path))), run.path, on_exit=on_exit
        )

    async def wait_until_listening(self) -> None:
        """Wait until it answers.

        Raises:
            ProcessFailedError: It does not.
        """
        await self.process.wait_until(
            lambda: self._answers("/healthz", FIRST_PROBE_DEADLINE_S), deadline_s=START_DEADLINE_S
        )

    async def _answers(self, path: str, deadline_s: float = PROBE_DEADLINE_S) -> bool:
        try:
            status, _ = await ask(self.config.admin, path, deadline_s=deadline_s)
        except UnreachableError:
            return False
        return status == 200

    async def probe(self) -> None:
        """See whether it is ready and which policy it enforces."""
        if self.process.pid is None:
            self.ready = False
            return
        self.ready = await self._answers("/readyz")
        try:
            status, body = await ask(self.config.admin, "/cascade/policy", deadline_s=PROBE_DEADLINE_S)
            self.revision = int(json.loads(body).get("policyRevision") or 0) if status == 200 else 0
        except (UnreachableError, ValueError):
            self.revision = 0

    async def in_flight(self) -> int:
        """Requests that it holds; 0 if it does not answer."""
        try:
            status, body = await ask(self.config.admin, "/cascade/report", deadline_s=PROBE_DEADLINE_S)
            return _REPORT.decode(body).in_flight if status == 200 else 0
        except (UnreachableError, msgspec.MsgspecError):
            return 0

    async def report(self, window_seconds: float) -> WorkloadReport | None:
        """Its workload report; None if it does not answer."""
        try:
            status, body = await ask(self.config.admin, f"/cascade/report?windowSeconds={window_seconds:g}")
            return _REPORT.decode(body) if status == 200 else None
        except (UnreachableError, msgspec.MsgspecError):
            return None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine is busy with; nothing where it does not say.

    Attributes:
        running: Requests in its batch.
        waiting: Requests in its queue.
        cache_share: Share of its key-value cache in use.
    """

    running: int = 0
    waiting: int = 0
    cache_share: float = 0.0


class Replica:
    """An engine and the router beside it.

    Args:
        name: Unique name.
        desired: What the plan wants it to be.
        engine_command: Returns the command of an engine that listens on the given address.
        run: The run's folder.
        ports: Where its ports come from.
        clock: The run's clock.
        on_exit: Called when one of its processes ends without having been asked to.
    """

    def __init__(
        self,
        name: str,
        desired: DesiredReplica,
        engine_command: Callable[[str, Path], Command],
        run: RunDirectory,
        ports: PortAllocator,
        clock: ScaledClock,
        on_exit: Callable[[ChildProcess, int], None],
    ) -> None:
        self.name = name
        self.desired = desired
        self.retiring: asyncio.Task[None] | None = None
        self._started = False
        self._ports = ports
        self._taken = [ports.take() for _ in range(3)]
        engine, peers, admin = (f"{LOOPBACK}:{port}" for port in self._taken)
        self.engine_address = engine
        self.engine = ChildProcess(
            f"{name}-engine", engine_command(engine, run.path / f"{name}-engine.json"), run.path, on_exit=on_exit
        )
        self.router = RouterProcess(
            f"{name}-router",
            RouterConfig(
                stage=desired.stage,
                replica=name,
                engine=engine,
                peers=peers,
                admin=admin,
                policy_file=str(run.policy),
                peer_secret_file=str(run.peer_secret),
                secrets=None if run.secrets is None else str(run.secrets),
                clock_scale=clock.scale,
                clock_epoch=clock.epoch,
            ),
            run,
            on_exit,
        )

    @property
    def state(self) -> ReplicaState:
        """Where it is in its life."""
        if self.retiring is not None:
            return ReplicaState.Draining
        if not self._started:
            return ReplicaState.Starting
        if self.engine.given_up or self.router.process.given_up:
            return ReplicaState.Failed
        running = self.engine.pid is not None and self.router.process.pid is not None
        return ReplicaState.Ready if running and self.router.ready else ReplicaState.Starting

    @property
    def peers_address(self) -> str:
        """``host:port`` of its router's stage port."""
        assert self.router.config.peers is not None
        return self.router.config.peers

    def observed(self, *, routed: bool) -> ObservedReplica:
        """The replica as the transition sees it."""
        desired = self.desired
        return ObservedReplica(
            name=self.name,
            stage=desired.stage,
            pool=desired.pool,
            tensor_parallel=desired.tensor_parallel,
            pipeline_parallel=desired.pipeline_parallel,
            state=self.state,
            routed=routed,
        )

    async def start(self) -> None:
        """Start both processes; returns once both answer. A simulated model loads on after that.

        Raises:
            ProcessFailedError: One of them does not start.
        """
        await asyncio.gather(self.engine.start(), self.router.process.start())
        await self.router.wait_until_listening()
        await self.engine.wait_until(self._engine_answers, deadline_s=START_DEADLINE_S)
        self._started = True

    async def _engine_answers(self) -> bool:
        try:
            await ask(self.engine_address, "/health", deadline_s=FIRST_PROBE_DEADLINE_S)
        except UnreachableError:
            return False
        return True

    async def retire(self, *, drain_deadline_s: float) -> None:
        """Let its requests finish, then stop both processes.

        Args:
            drain_deadline_s: Wall seconds for the requests.
        """
        if self.router.process.pid is not None and self.router.revision:
            # Unreachable: it has crashed, or a request has outlived its deadline; there is nothing to wait for.
            with contextlib.suppress(UnreachableError):
                await ask(self.router.config.admin, "/drain", method="POST", deadline_s=drain_deadline_s)
        await self.stop()

    async def stop(self) -> None:
        """Stop both processes: the router first, then the engine that nobody asks any more."""
        await self.router.process.stop()
        await self.engine.stop(with_signal=signal.SIGINT)
        self._ports.give_back(*self._taken)

    async def load(self) -> EngineLoad:
        """What its engine is busy with."""
        try:
            status, body = await ask(self.engine_address, "/v1/loads", deadline_s=PROBE_DEADLINE_S)
            loads = json.loads(body)["loads"] if status == 200 else []
        except (UnreachableError, ValueError, KeyError):
            loads = []
        return EngineLoad(
            running=sum(load["num_running_reqs"] for load in loads),
            waiting=sum(load["num_waiting_reqs"] for load in loads),
            cache_share=max((load["token_usage"] for load in loads), default=0.0),
        )
