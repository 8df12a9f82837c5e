"""One request in one router: where it goes, whether its answer is accepted, what its client is told.

The life of a request, as calls on its `Exchange`::

    enter / process ─► _route ─► EngineCall ─► judge ─► accept: the answer with the decision
                         ▲                       └────► escalate: _route to the next able stage
                         └── call_failed (another replica, then the next stage, then give up)
                       PeerCall ─► relay, relay_end: the peer's bytes as they are

`routing` says how `_route` chooses. At most two engines are lost over one request. Most requests of a stage
that may reject come here only where something is not as usual: see `express`.
"""

from __future__ import annotations

from typing import Final

from cascadia_router.arrival import Arrival
from cascadia_router.completion_body import Usage
from cascadia_router.engine_call import EngineCall
from cascadia_router.event_stream import GatedStream, HeldStream, StraightStream
from cascadia_router.judging import Rejected
from cascadia_router.node import Node
from cascadia_router.observed import Observed
from cascadia_router.openai_errors import engine_error
from cascadia_router.peer_call import PeerCall
from cascadia_router.response_sink import Fault
from cascadia_router.shadow import Accepted
from cascadia_router.stage import Stage
from cascadia_router.whole_answer import WholeAnswer

__all__ = ["Exchange"]

_MOST_LOST: Final = 2
"""A request that was being worked on when an engine or router was lost is repeated once, never more."""


class Exchange(Observed):
    """One request in this router.

    Attributes:
        lost: Engines and routers that were lost while they worked on it.
    """

    __slots__ = ("_last_status", "_lost_before", "_repeating", "_shown", "_skips", "lost")

    def __init__(self, node: Node, arrival: Arrival) -> None:
        super().__init__(node, arrival)
        self._skips = False  # stages before the first one asked are still to be asked
        self.lost = self._lost_before = arrival.lost
        self._repeating = False
        self._last_status = 0
        self._shown: list[bytes] | None = None  # what was sent, if it is to be compared
        node.took_on(self)
        arrival.connection.in_flight = self

    # -- beginning --------------------------------------------------------------------------------

    def enter(self, pinned: Stage | None, first: int = 0) -> None:
        """Begin at the router that the client called.

        Args:
            pinned: The only stage that may answer, if the client asked for one.
            first: Index of the stage to begin at; those before are asked only if no other can answer.
        """
        self._skips = first > 0
        stages = (pinned,) if pinned is not None else self._able_from(first)
        if not self._route(stages):
            self._give_up()

    # -- answering --------------------------------------------------------------------------------

    def _serve(self, answer: WholeAnswer | HeldStream, stage: Stage, score: float | None, reason: str = "") -> None:
        """Send a held answer; the reason says why it is served although it is not good enough."""
        if reason:
            self.node.metrics.fallbacks[stage.name, reason] += 1
        said = stage.decision(self.path)
        head = said.lines(score, reason)
        self._decision = said.document(score, answer.usage, self.spent, reason)
        body = answer.replay(self._decision)
        self._count_tokens(answer.usage)
        self.answered_by = stage.name
        if isinstance(answer, HeldStream):
            self._reply.replay(body, head)
        elif self._reply_begun is not None:
            self._reply_begun.whole(body, head)
        else:
            self._connection.respond(200, body, head=self._answer_lines() + head)
        self._finish("fallback" if reason else "answered")
        if not reason and score is not None and self._is_drawn():
            self._compare(stage, score, answer.usage, body)

    def _is_drawn(self) -> bool:
        """Whether this accepted answer is to be compared with the next stage's."""
        return bool(self.cascade.shadow_share) and self.node.window.draws(self.cascade.shadow_share)

    def _compare(self, stage: Stage, score: float, usage: Usage | None, body: bytes) -> None:
        self.node.shadows.ask(
            Accepted(self.request_id, self.request, self.cascade, stage, self.end, score, usage, body)
        )

    def relay_events(self, data: bytes) -> None:
        """Events of our engine's stream go on as they come."""
        if self._shown is not None:
            self._shown.append(data)
        reply = self._reply_begun
        if reply is not None and reply.begun:
            self._connection.send(data)
            if reply.slow:
                self._slow_down()
            return
        assert self._stage is not None
        if self._head and not self._fallback and self._is_drawn():
            self._shown = [data]
        self._reply.begin_events(data, self._head or self._stage.decision(self.path).head)
        self._slow_down()

    def straight_stream_ended(self, stream: StraightStream | GatedStream) -> None:
        """Our engine's stream is complete as far as HTTP goes."""
        assert self._stage is not None
        if not stream.done:
            self.call_failed(Fault.BROKEN)
            return
        if self._trace is not None:
            self._trace.took(stream.usage)
        self._release(worked=True)
        self._count_tokens(stream.usage)
        if isinstance(stream, GatedStream):
            now = self.node.now()
            self.node.window.slice(now).accepted += not self._fallback
            self.node.settlement.answers.append((self._asked_at, now, stream.usage, stream.accepted_score))
            self._sample(now, self._stage, stream.accepted_score, stream.usage)
        else:
            self._count_accepted(stream.usage)
        self.answered_by = self._stage.name
        if self._watched:
            self._decision = self._said(stream.usage)
        self._reply.events_end()
        self._finish("fallback" if self._fallback else "answered")
        if self._shown is not None and isinstance(stream, GatedStream) and stream.accepted_score is not None:
            self._compare(self._stage, stream.accepted_score, stream.usage, b"".join(self._shown))

    def relay(self, status: int, head: bytes, length: int | None, data: bytes) -> None:
        """Bytes of a peer's answer go on as they come."""
        self._look_for_tokens(data)
        self._reply.relay(status, head, length, data)
        self._slow_down()

    def _slow_down(self) -> None:
        if self._reply.slow and self._call is not None:
            self._call.pause()

    def is_answered_by(self, stage: str) -> None:
        """A peer has told which stage's answer is coming."""
        self.answered_by = stage

    def relay_whole(self, message: bytes, body: bytes, stage: bytes) -> None:
        """A peer's 200 answer came whole: it goes on as it is, head included."""
        self._release(worked=True)
        self._note_answer()
        self.answered_by = stage.decode("ascii", "replace")
        self._look_for_tokens(body)
        if self._reply_begun is not None:
            self._reply_begun.whole(body, b"")
        else:
            self._connection.pass_on(message, body)
        self._finish("answered")

    def relay_end(self, status: int, head: bytes, length: int | None, data: bytes) -> None:
        """A peer's answer is complete."""
        self._release(worked=True)
        if status == 200:
            self._note_answer()
        self._look_for_tokens(data)
        self._status = status
        self._reply.relay_end(status, head, length, data)
        self._finish("answered" if status < 400 else "refused_by_engine")

    def refused_by_engine(self, status: int, body: bytes) -> None:
        """Our engine found the request wrong (4xx): its answer stands, for a larger model would too."""
        self._release(worked=True)
        assert self._stage is not None
        self.answered_by = self._stage.name
        self._status = status
        self._reply.refuse(status, engine_error(status, body), self._stage.decision(self.path).head)
        self._finish("refused_by_engine")

    # -- failing ----------------------------------------------------------------------------------

    def call_failed(self, fault: Fault, *, status: int = 0, lost: int = 0) -> None:
        """The call failed: repeat it elsewhere, pass the request on, or give up."""
        call, stage, replica = self._call, self._stage, self._replica
        assert stage is not None
        assert replica is not None
        node = self.node
        node.metrics.faults[stage.name, fault.value] += 1
        if self._trace is not None:
            self._trace.ended(fault.value)
        self._last_status = status
        # A killed process may still accept connections while it closes those it has: a repeat that is lost
        # to it, too, was lost to the same death.
        repeated, self._repeating = self._repeating, False
        self.lost += lost + (fault is Fault.SILENT or (fault is Fault.LOST and not repeated))
        if self._reply_begun is not None and self._reply_begun.begun:
            self._release(worked=False)
            self._interrupt("The answer broke off: its server was lost.")
            return
        if fault is Fault.LOST and call is not None and call.reused and self.lost < _MOST_LOST:
            # Most likely the server was closing the idle connection as the request went out.
            self._repeating = True
            call.start(replica, fresh=True)
            return
        if node.now() >= self.deadline or (status == 504 and isinstance(call, PeerCall)):  # its deadline is sooner
            self._release(worked=None)
            self._out_of_time()
            return
        self._release(worked=False)
        if isinstance(call, EngineCall):
            node.window.slice(node.now()).engine_errors += 1
        if self.lost >= _MOST_LOST or (self._assigned and isinstance(call, EngineCall)):
            self._give_up()
        elif self._attempts < 2 and self._retry(stage):
            node.metrics.retries[stage.name] += 1
        elif not self.pinned and self._route(self._able_from(stage.index + 1)):
            assert self._stage is not None
            node.metrics.escalations[stage.name, self._stage.name, "failure"] += 1
        else:
            self._give_up()

    def _give_up(self) -> None:
        """Nobody is left to ask: the answer at hand, or an error."""
        skips, self._skips = self._skips, False
        if skips and self.lost < _MOST_LOST and self._route(self._able_from(0)):
            return
        if self._rejected is not None:
            self._serve_rejected(self._rejected, "unavailable")
        elif self._dropped is not None and self.lost < _MOST_LOST:
            self._ask_again(self._dropped)
        elif self._replica is None:
            self._fail(503, "No stage that can take the request has a replica yet: try again.", "no_live_stage")
        elif self._last_status in {429, 503}:
            self._fail(503, "The stages that can take the request are busy: try again.", "overloaded")
        else:
            self._fail(502, "The stages that can take the request failed to answer it.", "upstream_failed")

    def _out_of_time(self) -> None:
        if self._reply.begun:
            self._interrupt("The answer broke off: the request's deadline has passed.")
        elif self._rejected is not None:
            self._serve_rejected(self._rejected, "deadline")
        else:
            self._fail(504, "The request's deadline has passed.", "deadline_exceeded")

    def _serve_rejected(self, rejected: Rejected, reason: str) -> None:
        """Fail open: an answer under its threshold is better than none."""
        self.path, self.spent = self.path[:-1], self.spent[:-1]
        self._serve(rejected.answer, rejected.stage, rejected.score, reason)

    def _ask_again(self, stage: Stage) -> None:
        """Fail open where the answer under its threshold is not at hand: our engine gives it anew, to its end."""
        own = self.node.own
        assert own is not None
        self._dropped = None
        self._fallback = True
        self.path, self.spent = self.path[:-1], self.spent[:-1]
        self.escalations_left = 0
        self._ask_own(stage, own)

    def _fail(self, status: int, message: str, code: str) -> None:
        self._status = status
        self._reply.fail(status, message, code, lost=self.lost - self._lost_before)
        self._finish("deadline" if status == 504 else "failed")

    def _interrupt(self, message: str) -> None:
        self._reply.interrupt(message)
        self._finish("interrupted")

    # -- time and the client ----------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Look at the time, service s (monotonic). One sweep looks at all requests: they have no timers."""
        if now >= self.deadline:
            self._drop_call()
            if self._scoring is not None:
                self.score_is_late(*self._scoring)
            else:
                self._out_of_time()
        elif self._holds and self.request.stream and not self._reply.begun:
            self._reply.keep_alive(now, self.cascade.policy.streaming.keep_alive_seconds)

    def client_gone(self) -> None:
        """See `InFlight`."""
        self._drop_call()
        if self._scoring is not None:
            self._scoring[1].abort()
        self._finish("disconnected")

    def client_paused(self) -> None:
        """See `InFlight`."""
        self._reply.slow = True
        if self._call is not None:
            self._call.pause()

    def client_resumed(self) -> None:
        """See `InFlight`."""
        self._reply.slow = False
        if self._call is not None:
            self._call.resume()

    def _drop_call(self) -> None:
        call = self._call
        if call is not None:
            call.abort()
            self._release(worked=None)
