"""Whether an answer is good enough: what the scorer says of it, and what follows from that.

A scorer may have to ask somebody. Meanwhile the request holds the answer and no call; the client, the
deadline and a scorer's failure are looked after as ever.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from cascadia_router.arrival import Arrival
from cascadia_router.completion_body import Usage
from cascadia_router.event_stream import GatedStream, HeldStream
from cascadia_router.node import Node
from cascadia_router.routing import Routed
from cascadia_router.scorers.protocol import Outcome, Pending, Unscored
from cascadia_router.stage import Stage
from cascadia_router.trace import INTERNAL
from cascadia_router.whole_answer import WholeAnswer

__all__ = ["Judged", "Rejected"]


class Rejected:
    """The best answer so far, kept while a later stage is asked."""

    __slots__ = ("answer", "score", "stage")

    def __init__(self, answer: WholeAnswer | HeldStream, stage: Stage, score: float | None) -> None:
        self.answer = answer
        self.stage = stage
        self.score = score


class Judged(Routed):
    """The part of an `Exchange` that judges our engine's answers.

    Attributes:
        deadline: Service time (monotonic), s.
        path: Stages whose answers were rejected, in order.
        spent: What these took.
        request_id: Its id, the same on each hop.
    """

    __slots__ = (
        "_answered_at",
        "_document",
        "_dropped",
        "_fallback",
        "_head",
        "_rejected",
        "_scoring",
        "deadline",
        "path",
        "request_id",
        "spent",
    )

    def __init__(self, node: Node, arrival: Arrival) -> None:
        super().__init__(node, arrival)
        self.request_id = arrival.request_id
        self.path = arrival.path
        self.spent = arrival.spent
        self.deadline = arrival.http.arrived * node.scale + arrival.remaining
        self._rejected: Rejected | None = None
        self._dropped: Stage | None = None  # whose answer was rejected by its beginning, and is not at hand
        self._fallback = False  # the answer that goes on is under its threshold, and no later stage could answer
        self._document: Callable[[Usage | None], bytes] | None = None  # what that says at its end
        self._head = b""  # header lines of the answer that goes on as it comes
        self._answered_at = 0.0
        self._scoring: tuple[WholeAnswer | HeldStream, Pending] | None = None  # our engine has answered

    @abstractmethod
    def _serve(self, answer: WholeAnswer | HeldStream, stage: Stage, score: float | None, reason: str = "") -> None:
        """Send a held answer; the reason says why it is served although it is not good enough."""

    @property
    def served_model(self) -> str:
        """See `Case`."""
        assert self._stage is not None
        return self._stage.served_model

    def judge(self, answer: WholeAnswer | HeldStream) -> None:
        """The engine has answered: accept or escalate."""
        if self._trace is not None:
            self._trace.took(answer.usage)
        if not self._final:
            self.weigh(answer, self.cascade.scorer.at_once(self.request, answer))
            return
        stage = self._stage
        assert stage is not None
        self._release(worked=True)
        self._count_accepted(answer.usage)
        self._serve(answer, stage, None)

    def _count_accepted(self, usage: Usage | None) -> None:
        """Count an answer of our engine that is accepted whatever it is."""
        if not self.pinned:
            now = self.node.now()
            self.node.window.slice(now).accepted += 1
            self.node.settlement.answers.append((self._asked_at, now, usage, None))

    def weigh(self, answer: WholeAnswer | HeldStream, outcome: Outcome | None) -> None:
        """The engine has answered, and the scorer has said this of it at once; None: it has to ask somebody."""
        self._release(worked=True)
        self._answered_at = self.node.now()
        if outcome is None:
            if self._trace is not None:
                scorer = self.cascade.scorer.id
                self._trace.begin(f"score {scorer}", INTERNAL, {"cascadia.scorer": scorer})
            self._scoring = (answer, self.cascade.scorer.ask(self, answer))
        else:
            self._decide(answer, outcome)

    def scored(self, outcome: Outcome) -> None:
        """See `Case`."""
        if self._scoring is not None:
            answer, _ = self._scoring
            self._scoring = None
            if self._trace is not None:
                self._trace.ended(outcome.reason if isinstance(outcome, Unscored) else "")
            self._decide(answer, outcome)

    def score_is_late(self, answer: WholeAnswer | HeldStream, pending: Pending) -> None:
        """No time is left to wait for a score: the answer at hand is better than none."""
        pending.abort()
        self._scoring = None
        if self._trace is not None:
            self._trace.ended("deadline")
        self._decide(answer, Unscored(self.cascade.scorer.id, "deadline"))

    def _decide(self, answer: WholeAnswer | HeldStream, outcome: Outcome) -> None:
        """Accept or escalate."""
        stage, now = self._stage, self.node.now()
        assert stage is not None
        piece = self.node.window.slice(now)
        score = outcome if isinstance(outcome, float) else None
        self.node.settlement.answers.append((self._asked_at, self._answered_at, answer.usage, score))
        self._sample(now, stage, score, answer.usage)
        reason = self._objection(now, stage, outcome)
        if not reason:
            piece.accepted += 1
            self._serve(answer, stage, score)
            return
        later = self._able_from(stage.index + 1)
        if not self._can_finish(later, now):
            self._serve(answer, stage, score, "deadline")
        elif self._escalate(answer, stage, score, reason, answer.usage, later):
            piece.escalated += 1
        else:
            self._serve(answer, stage, score, "unavailable")

    def judge_beginning(self, stream: GatedStream) -> None:
        """The first tokens of our engine's stream are there: let the rest go on, or drop it and escalate.

        It is dropped only if a later stage is there to take the request.
        """
        stage, call, node = self._stage, self._call, self.node
        assert stage is not None
        assert call is not None
        now = node.now()
        outcome = self.cascade.scorer.at_once(self.request, stream)
        score = outcome if isinstance(outcome, float) else None
        reason = self._objection(now, stage, outcome)
        later = self._able_from(stage.index + 1)
        kept = ""  # why it goes on all the same
        if reason and not self._can_finish(later, now):
            kept = "deadline"
        elif reason and not self._can_route(later):
            kept = "unavailable"
        elif reason:
            call.abort()  # the engine sees the connection closed and stops
            self._release(worked=True)
            node.settlement.answers.append((self._asked_at, now, None, score))
            self._sample(now, stage, score, None)
            self._escalate(None, stage, score, reason, Usage(completion_tokens=stream.scored_tokens), later)
            node.window.slice(now).escalated += 1
            return
        self._fallback = bool(kept)
        if kept:
            node.metrics.fallbacks[stage.name, kept] += 1
        said, spent = stage.decision(self.path), self.spent
        self._head = said.lines(score, kept)
        self._document = lambda usage: said.document(score, usage, spent, kept)
        stream.open(score, self._document)

    def _objection(self, now: float, stage: Stage, outcome: Outcome | None) -> str:
        """Why an answer is not good enough; empty if it is."""
        if isinstance(outcome, float):
            return "score" if stage.threshold is not None and outcome < stage.threshold else ""
        node, policy = self.node, self.cascade.policy
        if outcome is not None:
            node.metrics.scorer_errors[stage.name, outcome.scorer, outcome.reason] += 1
        node.window.slice(now).scorer_errors += 1
        node.budget.count(now)
        escalates = policy.on_scorer_error == "Escalate"
        spent = escalates and not node.spend_escalation(now, policy.escalation_budget)
        decision = "budget_spent" if spent else "escalate" if escalates else "accept"
        node.metrics.unscored[stage.name, decision] += 1
        return "scorer_error" if decision == "escalate" else ""

    def _sample(self, now: float, stage: Stage, score: float | None, usage: Usage | None) -> None:
        rate = self.cascade.sample_rate
        if score is not None and self.node.window.draws(rate):
            self.node.keep_sample(now, self.request_id, stage.name, score, usage, rate)

    def _escalate(
        self,
        answer: WholeAnswer | HeldStream | None,
        stage: Stage,
        score: float | None,
        reason: str,
        usage: Usage | None,
        later: tuple[Stage, ...],
    ) -> bool:
        """Pass the request on; False if no later stage is there to take it.

        Args:
            answer: The rejected answer; None if it was dropped after its beginning.
            stage: Our stage.
            score: The answer's score.
            reason: For the metrics.
            usage: What the answer took, as far as it is known.
            later: The stages that may take the request.
        """
        path, spent = self.path, self.spent
        self.path = (*path, stage.name)
        tokens = (usage.prompt_tokens, usage.completion_tokens) if usage is not None else (0, 0)
        self.spent = (*spent, (stage.name, *tokens))
        self.escalations_left -= 1
        if answer is None:
            self._dropped = stage
        else:
            self._rejected = Rejected(answer, stage, score)
        if not self._route(later):
            self.path, self.spent = path, spent
            return False
        assert self._stage is not None
        self.node.metrics.escalations[stage.name, self._stage.name, reason] += 1
        return True
