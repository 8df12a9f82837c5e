"""Shadow sampling: of some accepted requests the next stage is asked, too, off the client's path.

What the client got is compared with what the next stage says; both scores and the agreement become a sample
of the workload report, with the probability with which it was drawn. A shadow request is a signed hop like
any other, marked as a shadow: routers further on count it apart, and refuse it when they are busy.

It must harm nobody: it begins after the client has its answer, few run at once, none is queued or repeated,
and none holds up a drain.
"""

from __future__ import annotations

import time
from typing import Protocol

import msgspec

from cascadia_api.report import CalibrationSample, NextAnswer
from cascadia_router.agreement import agreement, answer_text
from cascadia_router.balancing import Replica, least_loaded
from cascadia_router.collected_answer import CollectedAnswer
from cascadia_router.completion_body import CompletionRequest, Usage
from cascadia_router.http1_client import Call
from cascadia_router.metrics import Metrics
from cascadia_router.policy_store import Cascade
from cascadia_router.response_sink import Fault
from cascadia_router.signing import Hop, PeerSecrets
from cascadia_router.stage import Stage
from cascadia_router.whole_answer import WholeAnswer
from cascadia_router.window import Window

__all__ = ["Accepted", "Shadows"]

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""Longer answers are not compared."""


class Comparing(Protocol):
    """The router, as far as shadow requests know it: a `Node`."""

    draining: bool
    metrics: Metrics
    secrets: PeerSecrets
    window: Window

    @property
    def is_busy(self) -> bool:
        """Whether there is no time for what no client waits for."""

    def now(self) -> float:
        """Service time (monotonic), s."""


class Accepted(msgspec.Struct, frozen=True):
    """An accepted answer that was drawn.

    Attributes:
        request_id: The request's id.
        request: What the client asked.
        cascade: The policy that governs it.
        stage: Whose answer was accepted.
        end: Index after the last stage that the client lets answer.
        score: Its score.
        usage: What it took.
        body: The answer, as it was sent.
    """

    request_id: str
    request: CompletionRequest
    cascade: Cascade
    stage: Stage
    end: int
    score: float
    usage: Usage | None
    body: bytes


class Shadows:
    """The shadow requests of one router."""

    def __init__(self, node: Comparing) -> None:
        self._node = node
        self._asked: dict[_Shadow, None] = {}

    @property
    def running(self) -> int:
        """Shadow requests under way."""
        return len(self._asked)

    def ask(self, accepted: Accepted) -> None:
        """Ask the next stage, unless somebody is too busy for that."""
        node, cascade, stage = self._node, accepted.cascade, accepted.stage
        policy, count = cascade.policy.shadow, node.metrics.shadows
        assert policy is not None
        if node.is_busy or len(self._asked) >= policy.max_concurrent:
            count[stage.name, "dropped"] += 1
            return
        now = node.now()
        for later in cascade.able_from(stage.index + 1, accepted.end, accepted.request):
            replica = least_loaded(later.live.pairs, now)
            if replica is not None and not replica.is_own:
                shadow = _Shadow(node, self, accepted, later, replica)
                self._asked[shadow] = None
                shadow.start()
                return
        count[stage.name, "dropped"] += 1

    def tick(self, now: float) -> None:
        """Look at the time, service s (monotonic)."""
        for shadow in list(self._asked):
            if self._node.draining:
                shadow.drop("dropped")
            elif now >= shadow.deadline:
                shadow.drop("failed")

    def over(self, shadow: _Shadow) -> None:
        """A shadow request has ended."""
        self._asked.pop(shadow, None)


class _Shadow(CollectedAnswer):
    """One shadow request; takes the answer."""

    def __init__(self, node: Comparing, shadows: Shadows, accepted: Accepted, stage: Stage, replica: Replica) -> None:
        super().__init__(MAX_ANSWER_BYTES)
        self._node = node
        self._shadows = shadows
        self._accepted = accepted
        self._stage = stage
        self._replica = replica
        self._call: Call | None = None
        self.deadline = node.now() + accepted.cascade.policy.request_timeout_seconds

    def start(self) -> None:
        """Send it."""
        accepted, node, upstream = self._accepted, self._node, self._replica.upstream
        cascade = accepted.cascade
        body = accepted.request.for_shadow(cascade.scorer.logprobs)
        hop = Hop(
            accepted.request_id,
            cascade.revision,
            cascade.policy.plan_id,
            self._stage.name,
            (),
            0,
            cascade.policy.request_timeout_seconds,
            time.time(),
            pinned=True,
            lost=0,
            shadow=True,
        )
        self._replica.outstanding += 1
        self._call = upstream.send(
            b"POST %s HTTP/1.1\r\n%scontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n%s"
            % (
                accepted.request.path,
                upstream.host_line,
                len(body),
                node.secrets.sign(hop, accepted.request.path, body),
                body,
            ),
            self,
        )

    def drop(self, outcome: str) -> None:
        """Give up."""
        if self._call is not None:
            self._call.abort()
        self._end(outcome)

    def _end(self, outcome: str) -> None:
        self._replica.outstanding -= 1
        self._shadows.over(self)
        self._node.metrics.shadows[self._accepted.stage.name, outcome] += 1

    # -- the answer -------------------------------------------------------------------------------

    def answered(self, status: int, body: bytes) -> None:
        """See `CollectedAnswer`."""
        if status == 200:
            self._compare(body)
        else:
            self._end("dropped" if status in {429, 503} else "failed")

    def too_long(self, *, complete: bool) -> None:
        """See `CollectedAnswer`."""
        if complete:
            self._end("failed")
        else:
            self.drop("failed")

    def response_fault(self, fault: Fault) -> None:  # noqa: ARG002
        """See `ResponseSink`."""
        self._end("failed")

    def _compare(self, body: bytes) -> None:
        accepted, node = self._accepted, self._node
        cascade = accepted.cascade
        policy = cascade.policy.shadow
        assert policy is not None
        try:
            answer = WholeAnswer(body, False, cascade.gate_tokens)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self._end("failed")
            return
        outcome = cascade.scorer.at_once(accepted.request, answer)
        usage = accepted.usage
        sample = CalibrationSample(
            request_id=accepted.request_id,
            stage=accepted.stage.name,
            score=accepted.score,
            output_tokens=usage.completion_tokens if usage else 0,
            input_tokens=usage.prompt_tokens if usage else 0,
            inclusion_probability=policy.share,
            next=NextAnswer(
                stage=self._stage.name,
                score=outcome if isinstance(outcome, float) else None,
                output_tokens=answer.usage.completion_tokens if answer.usage else 0,
                agreement=agreement(answer_text(accepted.body), answer_text(body)),
            ),
        )
        node.window.keep_sample(node.now(), sample)
        self._end("compared")
