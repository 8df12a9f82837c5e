"""The embedded runtime: a cascade's engines and routers as processes of this machine.

One loop, level-triggered like the operator's: it looks at what runs, asks `transition.next_step` what
may be done now on the way to the target plan, does it, and looks again. Whatever happens (a new
plan, a crash, a replica that is ready at last) is the same case to it, and it keeps no state but the
processes themselves and the policy file.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import time
from collections.abc import Callable

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.clock import ScaledClock
from cascadia_api.errors import CascadiaError
from cascadia_api.plan import Plan
from cascadia_api.policy import RouterConfig, RouterPolicy
from cascadia_api.report import WorkloadReport
from cascadia_local.ending import read_served, served_words
from cascadia_local.engines import EngineStarter
from cascadia_local.events import EventLog
from cascadia_local.policy_file import PolicyFile, build_policy
from cascadia_local.ports import LOOPBACK, PortAllocator
from cascadia_local.processes import ChildProcess, describe_exit
from cascadia_local.replica import Replica, RouterProcess, RunDirectory
from cascadia_solver.transition import DesiredReplica, Step, next_step

__all__ = ["EmbeddedRuntime"]

TICK_S = 0.25
"""Wall seconds between two looks."""
ACKNOWLEDGE_DEADLINE_S = 10.0
"""Wall seconds for all ready routers to take a policy before they are asked again."""
CONCURRENT_STARTS = 2
"""Process pairs that start at the same time: an interpreter's start is CPU-bound."""
DRAIN_MARGIN_S = 5.0


class EmbeddedRuntime:
    """Runs a cascade.

    Args:
        cascade: The manifest.
        engines: Makes the commands of its engines.
        run: Folder for configuration, policy and logs.
        clock: The run's clock.
        events: Told what happens.
        port: Loopback port of the endpoint.
        api_keys: File or folder with the API keys that clients need; None if they need none.

    Attributes:
        cascade: The manifest.
        plan: The plan in force; None before the first is.
        replicas: What runs, by name.
        traffic_key: API key of the run's own traffic; None if clients need none.
    """

    def __init__(
        self,
        cascade: CascadeDeployment,
        engines: EngineStarter,
        run: RunDirectory,
        clock: ScaledClock,
        events: EventLog,
        *,
        port: int,
        api_keys: str | None = None,
    ) -> None:
        self.cascade = cascade
        self.plan: Plan | None = None
        self.replicas: dict[str, Replica] = {}
        self.endpoint = f"http://{LOOPBACK}:{port}/v1"
        self._engines = engines
        self._run = run
        self._clock = clock
        self._events = events
        self._ports = PortAllocator()
        self._policy = PolicyFile(run.policy)
        self._target: Plan | None = None
        self._plans: dict[str, Plan] = {}
        self._numbers = itertools.count(1)
        self._starts = asyncio.Semaphore(CONCURRENT_STARTS)
        self._starting: set[asyncio.Task[None]] = set()
        self._wake, self._done = asyncio.Event(), asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._listed: frozenset[str] = frozenset()
        """Replicas that some router may still send to: of the last policy that all took, and of any later one."""
        self._waiting_for = ""
        self._moved_at = 0.0
        run.peer_secret.write_text(secrets.token_hex(32))
        run.peer_secret.chmod(0o600)
        self.traffic_key: str | None = None
        if api_keys is not None:
            self.traffic_key = secrets.token_hex(32)
            run.traffic_key.touch(mode=0o600)
            run.traffic_key.write_text(self.traffic_key)
        self._entry = RouterProcess(
            "entry-router",
            RouterConfig(
                client=f"{LOOPBACK}:{port}",
                admin=f"{LOOPBACK}:{self._ports.take()}",
                policy_file=str(run.policy),
                peer_secret_file=str(run.peer_secret),
                api_keys=None if api_keys is None else [api_keys, str(run.traffic_key)],
                clock_scale=clock.scale,
                clock_epoch=clock.epoch,
            ),
            run,
            self._crashed,
        )

    @property
    def target(self) -> Plan | None:
        """The plan on the way to which the runtime is, or which is in force."""
        return self._target

    @property
    def policy(self) -> RouterPolicy | None:
        """The policy in force."""
        return self._policy.policy

    async def start(self, plan: Plan) -> None:
        """Start the endpoint and a plan's replicas; returns once the plan is in force.

        Raises:
            CascadiaError: A process does not start, or nothing has moved for the progress deadline.
        """
        self._set_target(plan)
        self._loop = asyncio.create_task(self._reconcile(), name="reconcile")
        await self._until_in_force()

    async def apply(self, plan: Plan) -> None:
        """Go from the plan in force to another one while requests flow; returns once it is in force.

        Raises:
            CascadiaError: Nothing has moved for the progress deadline. The runtime goes on trying.
        """
        self._set_target(plan)
        await self._until_in_force()

    def _set_target(self, plan: Plan) -> None:
        self._target = plan
        self._plans[plan.plan_id] = plan
        self._done.clear()
        self._moved_at = self._clock.monotonic()
        self._wake.set()

    async def _until_in_force(self) -> None:
        deadline = self.cascade.spec.rollout.progress_deadline_seconds
        assert self._loop is not None
        while not self._done.is_set():
            done = asyncio.ensure_future(self._done.wait())
            await asyncio.wait({done, self._loop}, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
            done.cancel()
            self.check()
            still = self._clock.monotonic() - self._moved_at
            if still > deadline:
                raise CascadiaError(
                    f"the roll-out has not moved for {still:.0f} s of service (progressDeadlineSeconds "
                    f"{deadline}); it waits for {self._waiting_for}"
                )

    def check(self) -> None:
        """Raise what ended the runtime, if anything did."""
        if self._loop is not None and self._loop.done() and not self._loop.cancelled():
            self._loop.result()

    async def stop(self, tell: Callable[[int], None] | None = None) -> None:
        """Stop everything: the endpoint first, which takes no more requests and finishes those in flight.

        Args:
            tell: Told how many requests are in flight, until none is.
        """
        if self._loop is not None:
            self._loop.cancel()
            with contextlib.suppress(asyncio.CancelledError, CascadiaError):
                await self._loop
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        held = await self._entry.in_flight()
        drained = asyncio.create_task(self._entry.process.stop(grace_s=self.drain_seconds), name="drain")
        while not drained.done():
            if tell is not None:
                tell(held)
            await asyncio.wait({drained}, timeout=TICK_S)
            held = await self._entry.in_flight()
        retiring = [r.retiring for r in self.replicas.values() if r.retiring is not None]
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        await asyncio.gather(*(replica.stop() for replica in self.replicas.values()))
        self.replicas.clear()

    def kill(self) -> None:
        """End every process at once, whatever it is doing; `stop` then returns soon."""
        self._entry.process.kill()
        for replica in self.replicas.values():
            replica.router.process.kill()
            replica.engine.kill()

    @property
    def drain_seconds(self) -> float:
        """Longest wait for requests in flight, wall seconds."""
        return self._clock.wall(self.cascade.spec.routing.request_timeout_seconds) + DRAIN_MARGIN_S

    def served(self) -> str:
        """What the endpoint served in its life, in words; empty before it has ended in order."""
        process = self._entry.process
        served = read_served(process.log)
        return "" if served is None else served_words(served, restarts=process.restarts)

    async def reports(self, window_seconds: float) -> list[WorkloadReport]:
        """Workload reports of all routers that answer, the entry's first."""
        routers = [self._entry, *(replica.router for replica in self.replicas.values())]
        answers = await asyncio.gather(*(router.report(window_seconds) for router in routers))
        return [answer for answer in answers if answer is not None]

    def _crashed(self, process: ChildProcess, code: int) -> None:
        for replica in self.replicas.values():
            if process in (replica.engine, replica.router.process):
                replica.router.ready = False  # until a probe says otherwise
        text = f"{process.name} {describe_exit(code)}"
        self._events.add("Crash", f"{text}; {'given up' if process.given_up else 'starting it again'}")
        self._wake.set()

    async def _reconcile(self) -> None:
        await self._look()
        while True:
            assert self._target is not None
            target = self._target
            step = next_step(
                target,
                [replica.observed(routed=name in self._listed) for name, replica in self.replicas.items()],
                capacity={pool.name: pool.max_gpus for pool in self.cascade.spec.gpus.pools},
                strategy=self.cascade.spec.rollout.strategy,
                current_plan=self.plan,
            )
            self._waiting_for = step.waiting_for
            if await self._publish(step):
                self._take(step)
            if step.done and target is self._target:
                self.plan = target
                self._done.set()
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            self._raise_failed_starts()
            await self._look()

    def _state(self) -> tuple[object, ...]:
        """What counts as progress when it changes."""
        return tuple((name, replica.state) for name, replica in sorted(self.replicas.items()))

    async def _look(self) -> None:
        before = self._state()
        running = [replica.router for replica in self.replicas.values() if replica.retiring is None]
        await asyncio.gather(*(router.probe() for router in [self._entry, *running]))
        if self._state() != before:
            self._moved_at = self._clock.monotonic()

    async def _publish(self, step: Step) -> bool:
        """Write the step's policy unless it is in force; return whether every ready router has taken it."""
        addresses = {name: (r.desired.stage, r.peers_address) for name, r in self.replicas.items()}
        plan = self._plans[step.policy_plan_id]
        policy = build_policy(self.cascade, plan, step, addresses, self._policy.revision or 1)
        if policy != self._policy.policy:
            policy = build_policy(self.cascade, plan, step, addresses, self._policy.revision + 1)
            self._listed |= frozenset(step.routed)
            self._policy.write(policy)
            if policy.policy_revision == 1:
                await self._entry.process.start()
                await self._entry.wait_until_listening()
            self._events.add("Policy", f"revision {policy.policy_revision}: {_policy_words(policy)}")
            self._moved_at = self._clock.monotonic()
        if not await self._acknowledged(policy.policy_revision):
            return False
        self._listed = frozenset(step.routed)
        return True

    async def _acknowledged(self, revision: int) -> bool:
        end = time.monotonic() + ACKNOWLEDGE_DEADLINE_S
        while True:
            ready = [r.router for r in self.replicas.values() if r.router.ready and r.router.process.pid is not None]
            behind = [router for router in [self._entry, *ready] if router.revision < revision]
            if not behind:
                return True
            if time.monotonic() > end:
                names = ", ".join(router.process.name for router in behind)
                self._events.add("Warning", f"policy revision {revision} not taken yet by {names}")
                return False
            await asyncio.sleep(TICK_S / 5)
            await asyncio.gather(*(router.probe() for router in behind))

    def _take(self, step: Step) -> None:
        for desired in step.start:
            self._start_replica(desired)
        for name in step.delete:
            replica = self.replicas.get(name)  # gone, if it finished while the policy was being taken
            if replica is not None and replica.retiring is None:
                replica.retiring = asyncio.create_task(self._retire(replica), name=f"retire {name}")

    def _start_replica(self, desired: DesiredReplica) -> None:
        name = f"{desired.stage}-{next(self._numbers)}"

        replica = Replica(
            name,
            desired,
            lambda listen, path: self._engines(desired, listen, path),
            self._run,
            self._ports,
            self._clock,
            self._crashed,
        )
        self.replicas[name] = replica
        self._events.add("Replica", f"{name} starts on {_gpus(desired)}")

        async def start() -> None:
            async with self._starts:
                await replica.start()
            self._wake.set()

        task = asyncio.create_task(start(), name=f"start {name}")
        self._starting.add(task)

    def _raise_failed_starts(self) -> None:
        for task in [task for task in self._starting if task.done()]:
            self._starting.discard(task)
            task.result()

    async def _retire(self, replica: Replica) -> None:
        await replica.retire(drain_deadline_s=self.drain_seconds)
        del self.replicas[replica.name]
        self._moved_at = self._clock.monotonic()
        self._events.add("Replica", f"{replica.name} has finished its requests and freed {_gpus(replica.desired)}")
        self._wake.set()


def _gpus(desired: DesiredReplica) -> str:
    shape = f"TP{desired.tensor_parallel}" + (
        f" PP{desired.pipeline_parallel}" if desired.pipeline_parallel > 1 else ""
    )
    return f"{desired.gpus} GPU{'s' if desired.gpus > 1 else ''} of {desired.pool} ({shape})"


def _policy_words(policy: RouterPolicy) -> str:
    parts = []
    for stage in policy.stages:
        threshold = "" if stage.threshold is None else f" ≥ {stage.threshold:.3f}"
        parts.append(f"{stage.name}{threshold} on {len(stage.endpoints)}")
    return f"{' > '.join(parts)} ({policy.plan_id})"
