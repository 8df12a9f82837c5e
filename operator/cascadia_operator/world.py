"""What is in the cluster for one cascade, gathered once for each reconcile; decisions are functions of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.plan import Plan
from cascadia_api.policy import RouterPolicy
from cascadia_operator.cluster import Object
from cascadia_operator.learning.learnt import Learnt
from cascadia_solver.live_correction import CorrectionKey

__all__ = ["CalibrationData", "CorrectionsData", "Key", "StoredPlan", "World", "instant"]


class Key(NamedTuple):
    """Which CascadeDeployment."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class CalibrationData:
    """The calibration set that a manifest refers to.

    Attributes:
        lines: Its lines; empty if the manifest refers to none.
        digest: Digest of the lines; empty if the manifest refers to none.
        problem: Why it cannot be had; empty if it can.
    """

    lines: tuple[str, ...] = ()
    digest: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class CorrectionsData:
    """The corrections of step times that a manifest refers to.

    Attributes:
        text: The file of corrections; empty if the manifest refers to none.
        digest: Digest of the text; empty if the manifest refers to none.
        problem: Why they cannot be had; empty if they can.
        given: Model, GPU and shape of the replicas that there are any of.
    """

    text: str = ""
    digest: str = ""
    problem: str = ""
    given: frozenset[tuple[str, str, str]] = frozenset()


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A CascadePlan of the cascade.

    Attributes:
        name: Of the object.
        plan: The plan that it holds.
        inputs: Digest of what it was made from.
        trigger: Why it was made.
        created: When.
        placement: Digest of what its replicas follow from, whatever the load and the quality floor.
        corrections: Factors of decoding that the operator had learnt and it was made with; None if that is not known.
    """

    name: str
    plan: Plan
    inputs: str
    trigger: str
    created: datetime
    placement: str = ""
    corrections: Mapping[CorrectionKey, float] | None = None


@dataclass(frozen=True, slots=True)
class World:
    """One cascade and everything about it in the cluster.

    Attributes:
        cascade: The manifest, valid.
        status: Its status as it stands; empty at first sight.
        plans: Its plans, oldest first.
        pinned: The plan that ``spec.planRef`` names, whoever owns it; None if there is none.
        statefulsets: Its replicas' StatefulSets.
        pods: Its pods, those of deleted StatefulSets included.
        children: Its other children by kind and name.
        policy: The policy that its ConfigMap holds, if a router would take it.
        calibration: The calibration set that it refers to.
        missing_secrets: Secrets that its routers need and that are not there: field of the manifest, name.
        available: GPUs of each pool that it may hold.
        inputs: Digest of what a plan for it follows from now.
        placement: Digest of the part that replicas follow from, whatever the load and the quality floor.
        now: When this was gathered.
        corrections: The corrections of step times that it refers to.
        free_by_node: GPUs that it may hold on each node of a pool, most first; nothing where nodes may not be
            looked at.
        learnt: What its engines have taught.
    """

    cascade: CascadeDeployment
    status: Mapping[str, Any]
    plans: Sequence[StoredPlan]
    pinned: StoredPlan | None
    statefulsets: Sequence[Object]
    pods: Sequence[Object]
    children: Mapping[tuple[str, str], Object]
    policy: RouterPolicy | None
    calibration: CalibrationData
    available: Mapping[str, int]
    inputs: str
    now: datetime
    missing_secrets: Sequence[tuple[str, str]] = ()
    placement: str = ""
    corrections: CorrectionsData = field(default_factory=CorrectionsData)
    free_by_node: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    learnt: Learnt = field(default_factory=Learnt)

    @property
    def key(self) -> Key:
        """Namespace and name of the cascade."""
        return Key(self.cascade.metadata.namespace or "default", self.cascade.metadata.name)

    @property
    def generation(self) -> int:
        """Generation of the manifest."""
        return self.cascade.metadata.generation or 0

    def plan_named(self, name: str) -> StoredPlan | None:
        """The plan in the CascadePlan of this name."""
        return next((stored for stored in self.plans if stored.name == name), None)


def instant(text: str) -> datetime:
    """A moment as the API server writes it."""
    return datetime.fromisoformat(text)
