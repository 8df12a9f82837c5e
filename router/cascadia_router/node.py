"""What the exchanges of one router share: who it is, what it knows, what it counts."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from time import monotonic
from typing import Protocol

from cascadia_api.clock import ScaledClock
from cascadia_api.policy import RouterConfig, TracingPolicy
from cascadia_api.report import CalibrationSample
from cascadia_router.access_log import AccessLog
from cascadia_router.answer_times import AnswerTimes
from cascadia_router.api_keys import ApiKeys
from cascadia_router.balancing import Replica, ReplicaTable
from cascadia_router.clients import Clients
from cascadia_router.completion_body import Usage
from cascadia_router.http1_client import Upstream
from cascadia_router.ladder_watch import Entered, LadderWatch
from cascadia_router.line_writer import LineWriter
from cascadia_router.metrics import Metrics
from cascadia_router.policy_store import PolicyStore
from cascadia_router.scorers.building import Workbench
from cascadia_router.scorers.surroundings import Surroundings
from cascadia_router.session_latch import SessionLatch
from cascadia_router.settlement import Settlement
from cascadia_router.shadow import Shadows
from cascadia_router.share_budget import ShareBudget
from cascadia_router.signing import PeerSecrets
from cascadia_router.trace import Value
from cascadia_router.tracer import Tracer
from cascadia_router.waiting_room import WaitingRoom
from cascadia_router.window import Window

__all__ = ["Held", "Node"]

log = logging.getLogger("cascadia.router")

STANDARD_OUTPUT = 1
"""Where the access log goes, and nothing else does."""
RETRY_SECONDS = 10.0
"""Window of the retry budget, service s."""
RETRIES_PER_SECOND = 10
"""So many are allowed in any case, on average over the window: a quiet cascade must survive a dying replica."""


class Held(Entered, Protocol):
    """A request that a router holds."""

    def tick(self, now: float) -> None:
        """Look at the time, service s (monotonic)."""


class Node:
    """One router.

    Attributes:
        config: Its bootstrap.
        clock: Service time.
        scale: Service seconds per wall second.
        secrets: Sign what routers send each other; a follower, which sends nothing, has one that nobody knows.
        clients: Who may call the client port; None: everybody.
        own: The replica beside it; None for an entry router or a follower.
        replicas: All replicas it knows.
        workbench: Makes the policies' scorers.
        policies: The policy in force and those before.
        metrics: Counters.
        window: The workload of the last minutes.
        budget: Of escalations by scorer errors at the own stage.
        retries: Of calls repeated on another replica.
        answer_times: Of other routers, by stage.
        settlement: What is still to be counted in the metrics, the window and the budget.
        shadows: Comparisons with the next stage, off the clients' paths.
        access_log: What is told of each request, if a policy asks for it.
        tracer: Traces of requests, if a policy asks for them.
        ladder: Steps along the plan's ladder.
        latch: Stages that conversations stay with.
        exchanges: Requests held now, in order of arrival.
        room: Requests that wait to be; the client port sets it.
        draining: Whether it is on its way out: unready, and connections close after their answer.
    """

    def __init__(self, config: RouterConfig, peer_secrets: PeerSecrets | None) -> None:
        self.config = config
        self.clock = ScaledClock(scale=config.clock_scale, epoch=config.clock_epoch)
        self.scale = config.clock_scale
        self.secrets = peer_secrets or PeerSecrets([secrets.token_bytes(32)])
        self.clients = Clients(ApiKeys(config.api_keys)) if config.api_keys is not None else None
        self.own: Replica | None = None
        if config.engine is not None and config.role == "Leader":
            self.own = Replica(config.replica or "", Upstream(config.engine), is_own=True)
            self.own.ready = False  # until the engine has said otherwise
        self.replicas = ReplicaTable(self.own, config.stage)
        self.workbench = Workbench(self._surroundings())
        self.policies = PolicyStore(self.replicas, self.workbench)
        self.metrics = Metrics()
        self.window = Window(self.now())
        self.budget = ShareBudget()
        self.retries = ShareBudget(RETRY_SECONDS, RETRIES_PER_SECOND * RETRY_SECONDS)
        self.answer_times: defaultdict[str, AnswerTimes] = defaultdict(AnswerTimes)
        self.settlement = Settlement(self.metrics, self.window, self.budget)
        self.shadows = Shadows(self)
        self.access_log = AccessLog(LineWriter(STANDARD_OUTPUT), self.scale)
        about: dict[str, Value] = {"service.instance.id": config.replica, "cascadia.stage": config.stage}
        self.tracer = Tracer(about, self.metrics.spans, config.secrets)
        self.ladder = LadderWatch(self.policies, self.settlement.lateness, self.window, self.metrics)
        self.latch = SessionLatch()
        self.exchanges: dict[Held, None] = {}
        self.room: WaitingRoom | None = None
        self.draining = False
        self._id_prefix = b"req-%s-" % secrets.token_hex(8).encode()
        self._ids = 0
        self._taken_on = self._seen = 0
        self._idle_waiters: list[asyncio.Future[None]] = []

    def _surroundings(self) -> Surroundings:
        config = self.config
        return Surroundings(
            now=self.now,
            scale=self.scale,
            engine=f"http://{config.engine}/v1" if config.engine is not None else None,
            secrets=config.secrets,
            took=lambda scorer, seconds: self.metrics.scorer_seconds[scorer].observe(seconds),
        )

    def now(self) -> float:
        """Service time (monotonic), s."""
        return monotonic() * self.scale

    def new_request_id(self) -> bytes:
        """An id that no other request of the cascade has."""
        self._ids = number = self._ids + 1
        return b"%s%x" % (self._id_prefix, number)

    def spend_escalation(self, now: float, share: float) -> bool:
        """Whether an answer that could not be scored may escalate, and count it if so: see `ShareBudget`."""
        self.settlement.settle()
        return self.budget.spend(now, share)

    def keep_sample(
        self, now: float, request_id: str, stage: str, score: float, usage: Usage | None, probability: float
    ) -> None:
        """Keep a scored answer that was drawn as a sample with this probability."""
        sample = CalibrationSample(
            request_id=request_id,
            stage=stage,
            score=score,
            output_tokens=usage.completion_tokens if usage else 0,
            input_tokens=usage.prompt_tokens if usage else 0,
            inclusion_probability=probability,
        )
        self.window.keep_sample(now, sample)

    def took_on(self, exchange: Held) -> None:
        """A request is held from now on."""
        self.exchanges[exchange] = None
        self._taken_on += 1

    def let_go(self, exchange: Held) -> bool:
        """A request is over; False if it was already."""
        if exchange not in self.exchanges:
            return False
        del self.exchanges[exchange]
        if self.room is not None and self.room.waiting:
            self.room.wake(self.has_room)
        else:
            self._tell_idle()
        return True

    def _tell_idle(self) -> None:
        """Wake those who wait for the last request to end, if it has."""
        if self._idle_waiters and self._is_idle():
            for waiter in self._idle_waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._idle_waiters.clear()

    def _is_idle(self) -> bool:
        return not (self.exchanges or (self.room is not None and self.room.waiting))

    @property
    def is_busy(self) -> bool:
        """Whether there is no time for what no client waits for."""
        cascade = self.policies.current
        return (
            self.draining
            or cascade is None
            or self.policies.steps > 0
            or bool(self.room is not None and self.room.waiting)
            or len(self.exchanges) > cascade.max_in_flight // 2
        )

    @property
    def tracing(self) -> TracingPolicy | None:
        """Where spans go now."""
        cascade = self.policies.current
        return None if cascade is None else cascade.tracing

    def has_room(self) -> bool:
        """Whether one more request may be held."""
        cascade = self.policies.current
        return cascade is None or len(self.exchanges) < cascade.max_in_flight

    async def wait_idle(self, seconds: float, *, quiet: float = 0.0) -> bool:
        """Wait until no request is held or waits, and for `quiet` service seconds none has been.

        Args:
            seconds: Longest wait, service s.
            quiet: See above.

        Returns:
            Whether it came to that.
        """
        if self._is_idle() and not quiet:
            return True
        try:
            async with asyncio.timeout(self.clock.wall(seconds)):
                while True:
                    if not self._is_idle():
                        waiter = asyncio.get_running_loop().create_future()
                        self._idle_waiters.append(waiter)
                        await waiter
                    seen = self._taken_on
                    await asyncio.sleep(self.clock.wall(quiet))
                    if self._taken_on == seen and self._is_idle():
                        return True
        except TimeoutError:
            return False

    def tick(self) -> None:
        """Let every request look at the time."""
        self.settlement.settle()
        now = self.now()
        self.shadows.tick(now)
        self.access_log.writer.flush()
        self.tracer.flush(self.tracing)
        self.retries.count(now, self._taken_on - self._seen)
        self._seen = self._taken_on
        if self.room is not None:
            self.room.tick(now, self._taken_on - len(self.exchanges))
            if self.room.waiting:  # a policy may have made room
                self.room.wake(self.has_room)
        self._tell_idle()
        waiting = len(self.room.waiting) if self.room is not None else 0
        self.ladder.look(now, self.exchanges, len(self.exchanges), waiting)
        for exchange in list(self.exchanges):
            try:
                exchange.tick(now)
            except Exception:
                log.exception("a request could not look at the time")
