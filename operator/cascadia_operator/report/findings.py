"""What one reconcile found and did: all that the status is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cascadia_operator.advance import Advance
from cascadia_operator.decide.plan_choice import Choice, Trouble
from cascadia_operator.decide.progress import Progress
from cascadia_operator.learning.learnt import Lesson
from cascadia_operator.world import World
from cascadia_solver.transition import ObservedReplica, ReplicaState, Step

__all__ = ["Findings", "Learning"]


@dataclass(frozen=True, slots=True)
class Learning:
    """How learning from the engines stands.

    Attributes:
        lessons: What the next plan will be made with.
        asks: Whether this operator asks engines at all.
        problem: Why the last look at them came to nothing; empty if it did not.
    """

    lessons: Sequence[Lesson] = ()
    asks: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """What one reconcile found and did.

    Attributes:
        world: The cascade as it was.
        choice: The plan to go for.
        planning: Whether another plan is being made.
        observed: The replicas that existed.
        step: The step that was decided; None without a plan.
        advance: What came of it; None if nothing was done (paused, or no plan).
        progress: Where a transition that is not done stands; None if it is done.
        blocked: What keeps the operator from doing its work; None if nothing does.
        learning: How learning from the engines stands.
    """

    world: World
    choice: Choice
    planning: bool
    observed: Sequence[ObservedReplica]
    step: Step | None
    advance: Advance | None
    progress: Progress | None
    blocked: Trouble | None = None
    learning: Learning = Learning()

    @property
    def done(self) -> bool:
        """Whether the plan is in force: its replicas and no others are ready, and every router knows."""
        return self.step is not None and self.step.done and not (self.advance and self.advance.lacking)

    @property
    def trouble(self) -> Trouble | None:
        """What nobody but a human, or more GPUs, can mend."""
        return self.blocked or self.choice.trouble or (self.progress.trouble if self.progress else None)

    @property
    def waiting_for(self) -> str:
        """What the transition waits for, in words."""
        parts = [self.step.waiting_for] if self.step and self.step.waiting_for else []
        if self.advance and self.advance.lacking:
            parts.append(
                f"routers to take policy revision {self.advance.policy_revision}: {', '.join(self.advance.lacking)}"
            )
        if self.progress and self.progress.shortage:
            parts.append(self.progress.shortage)
        return "; ".join(parts)

    def ready_replicas(self, stage: str) -> int:
        """Ready replicas of a stage, whatever their shape, that get requests."""
        routed = set(self.step.routed) if self.step else set()
        return sum(r.stage == stage and r.state is ReplicaState.Ready and r.name in routed for r in self.observed)
