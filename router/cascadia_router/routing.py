"""Where a request goes: which stage, which replica, and what its call leaves behind there.

Who chooses a replica repeats the choice when it fails; a router that was chosen (`assigned`) answers or
reports its failure. So one request meets at most two replicas of a stage.
"""

from __future__ import annotations

from cascadia_router.affinity import nearest
from cascadia_router.arrival import Arrival
from cascadia_router.balancing import Replica, choose
from cascadia_router.calls import Asker
from cascadia_router.conversation import beginning_key
from cascadia_router.engine_call import EngineCall
from cascadia_router.http1_client import Call
from cascadia_router.node import Node
from cascadia_router.peer_call import PeerCall, remaining_for_peer
from cascadia_router.stage import Stage

__all__ = ["Routed"]


class Routed(Asker):
    """The part of an `Exchange` that knows where the request is now.

    Attributes:
        node: The router.
        request: What the client asked.
        cascade: The policy that governs it: the entry's.
        escalations_left: How often it may still be passed on.
        end: Index of the first stage that must not be asked.
        pinned: Whether the client asked for one stage alone.
    """

    __slots__ = (
        "_asked_at",
        "_assigned",
        "_attempts",
        "_beginning",
        "_call",
        "_counted",
        "_final",
        "_holds",
        "_replica",
        "_stage",
        "_trace",
        "_tried",
        "cascade",
        "end",
        "escalations_left",
        "node",
        "pinned",
        "request",
    )

    def __init__(self, node: Node, arrival: Arrival) -> None:
        self.node = node
        self.request = arrival.request
        self.cascade = arrival.cascade
        self.escalations_left = arrival.escalations_left
        self.pinned = arrival.pinned
        self.end = len(arrival.cascade.stages) if arrival.end is None else arrival.end
        self._assigned = False
        self._attempts = 0
        self._beginning: int | None = None
        self._trace = arrival.trace
        self._tried: tuple[Replica, ...] = ()
        self._stage: Stage | None = None
        self._replica: Replica | None = None
        self._counted = False  # the replica's outstanding includes this request
        self._call: EngineCall | PeerCall | None = None
        self._asked_at = 0.0
        self._final = False  # the answer of our engine is accepted whatever it is
        self._holds = False  # a stream's events are being held, here or further on

    def take_over(self, stage: Stage, own: Replica, asked_at: float) -> None:
        """Begin where our engine has been asked already, in the hope of an answer good enough.

        Args:
            stage: The router's stage.
            own: The replica beside it; its outstanding includes this request.
            asked_at: When it was asked, service s.
        """
        self._stage, self._replica, self._asked_at = stage, own, asked_at
        self._attempts = 1
        self._tried = (own,)
        self._counted = self._holds = True

    def carry_on(self, call: Call) -> EngineCall:
        """Let our engine's answer, of which some is still to come, come here after `take_over`."""
        assert self._stage is not None
        self._call = engine_call = EngineCall(self, self._stage, final=False)
        engine_call.carry_on(call)
        return engine_call

    def process(self, stage: Stage, own: Replica) -> None:
        """Begin at a router that another one chose: this one's engine answers, or nobody here does."""
        self._assigned = True
        self._stage = stage
        self._replica = own
        self._ask_engine(stage, own, self.node.now())

    def _route(self, stages: tuple[Stage, ...]) -> bool:
        """Send the request to the first of these stages that has a replica to take it."""
        for even_open in (False, True):
            for stage in stages:
                if self._send(stage, even_open=even_open):
                    return True
        return False

    def _can_route(self, stages: tuple[Stage, ...]) -> bool:
        """Whether `_route` would find a replica."""
        return any(replica not in self._tried for stage in stages for replica, _ in stage.live.pairs)

    def _ask_own(self, stage: Stage, own: Replica) -> None:
        """Ask our engine for one more answer, after others have failed to give a better one."""
        now = self.node.now()
        self._attempts = 1
        self._stage, self._replica = stage, own
        self._counted = True
        own.outstanding += 1
        own.breaker.sent(now)
        self._ask_engine(stage, own, now)

    def _send(self, stage: Stage, *, even_open: bool) -> bool:
        now = self.node.now()
        replica = self._nearest(stage, now) if self.cascade.affinity and not even_open else None
        if replica is None:
            replica = choose(stage.live, now, exclude=self._tried, even_open=even_open)
        if replica is None:
            return False
        self._attempts = self._attempts + 1 if stage is self._stage else 1
        self._stage = stage
        self._replica = replica
        self._asked_at = now
        self._tried += (replica,)
        self._counted = True
        replica.outstanding += 1
        replica.breaker.sent(now)
        if replica.is_own:
            self._ask_engine(stage, replica, now)
        else:
            self._call = PeerCall(self, stage)
            self._call.start(replica)
        return True

    def _ask_engine(self, stage: Stage, own: Replica, now: float) -> None:
        self._final = final = self._is_final(stage)
        self._holds = not final
        self._asked_at = now
        if not self.pinned:  # pinned requests are no part of the cascade's workload
            self.node.window.slice(now).requests += 1
        self._call = call = EngineCall(self, stage, final=final)
        call.start(own)

    def _able_from(self, first: int) -> tuple[Stage, ...]:
        """Stages from `first` on that may and can answer the request."""
        return self.cascade.able_from(first, self.end, self.request)

    def _nearest(self, stage: Stage, now: float) -> Replica | None:
        """The replica that the request's conversation goes to."""
        if self._beginning is None:
            self._beginning = beginning_key(self.request.content, self.cascade.affinity)
        return nearest(stage.live.pairs, self._beginning, now, exclude=self._tried)

    def _retry(self, stage: Stage) -> bool:
        """Repeat the call on another replica of the stage, within the retry budget."""
        node, now = self.node, self.node.now()
        if choose(stage.live, now, exclude=self._tried) is None:
            return False
        if not node.retries.spend(now, self.cascade.policy.retry_budget):
            node.metrics.retries_refused[stage.name] += 1
            return False
        return self._send(stage, even_open=False)

    def _can_finish(self, stages: tuple[Stage, ...], now: float) -> bool:
        """Whether the first of these stages, as it answers of late, would answer before the deadline."""
        if now >= self.deadline:
            return False
        for stage in stages:
            if stage.live.pairs:
                typical = self.node.answer_times[stage.name].typical(now)
                return typical is None or typical <= remaining_for_peer(self.deadline - now)
        return True

    def _note_answer(self) -> None:
        """A peer's answer is complete: remember how long it took."""
        stage = self._stage
        if stage is not None:
            now = self.node.now()
            self.node.answer_times[stage.name].observe(now, now - self._asked_at)

    def _is_final(self, stage: Stage) -> bool:
        """Whether this stage's answer is accepted whatever it is."""
        if self.pinned or stage.threshold is None or self.escalations_left <= 0:
            return True
        for later in self._able_from(stage.index + 1):  # noqa: SIM110 - three times as fast
            if later.live.pairs:
                return False
        return True

    def _release(self, worked: bool | None) -> None:
        """The call is over; None: without telling whether the replica works."""
        self._call = None
        if self._trace is not None:
            self._trace.ended("" if worked else "abandoned")
        replica = self._replica
        if replica is None:
            return
        if self._counted:
            self._counted = False
            replica.outstanding -= 1
        if worked:
            replica.breaker.succeeded()
        elif worked is None:
            replica.breaker.abandoned()
        else:
            replica.breaker.failed(self.node.now())
