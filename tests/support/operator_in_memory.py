"""An operator on a cluster in memory, with plans that a test hands out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from cascadia_api.plan import Plan
from cascadia_operator.acknowledgement import TakenForGranted
from cascadia_operator.capacity import CapacitySource
from cascadia_operator.cluster import Object
from cascadia_operator.decide.plan_choice import PlanFailure
from cascadia_operator.learning.engines import Engine
from cascadia_operator.learning.learner import Learner
from cascadia_operator.planning import Planner, PlanningJob, PlanningOutcome
from cascadia_operator.reconcile import Reconciler
from cascadia_operator.settings import Images
from cascadia_operator.world import Key
from cascadia_solver.engine_window import EngineCounters
from tests.support.memory_cluster import MemoryCluster
from tests.support.operator_cases import LARGE, MEDIUM, SMALL, cascade_document, plan

LOOK_SECONDS = 60.0
KEY = Key("serving", "chat")
MODELS = [SMALL, MEDIUM, LARGE]
FIRST = plan({"small": [(1, 1, 2)], "medium": [(4, 1, 1)], "large": [(8, 1, 1)]})
SECOND = plan({"small": [(1, 1, 3)], "medium": [(2, 1, 1)], "large": [(8, 1, 1)]})


class HandedOutPlans:
    """Planning that answers at once with what the test has laid ready."""

    def __init__(self, *outcomes: Plan | PlanFailure) -> None:
        self.outcomes = list(outcomes)
        self.jobs: list[PlanningJob] = []

    async def run(self, job: PlanningJob) -> PlanningOutcome:
        self.jobs.append(job)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Plan):
            return PlanningOutcome(plan=outcome.for_json())
        return PlanningOutcome(failure=outcome, result="infeasible")


class Stubborn:
    """Routers that take no policy until they are told to."""

    def __init__(self) -> None:
        self.taken = 0

    async def lacking(self, revision: int, leaders: list[Object]) -> list[str]:
        return [pod["metadata"]["name"] for pod in leaders] if revision > self.taken else []


class Operator:
    """A reconciler with its planner, on a cluster; `restart` forgets all that it remembers.

    Args:
        cluster: Where.
        plans: What planning answers.
        acknowledgement: How routers are asked for their policy.
        ask: Answers for the engines' metrics; None: nobody asks.
    """

    def __init__(
        self,
        cluster: MemoryCluster,
        plans: HandedOutPlans,
        acknowledgement: Any = None,
        ask: Callable[[Engine], EngineCounters | str] | None = None,
    ) -> None:
        self.cluster, self.plans = cluster, plans
        self.acknowledgement = acknowledgement or TakenForGranted()
        self.ask = ask
        self.restart()

    def restart(self) -> None:
        self.planned = asyncio.Event()
        self.planner = Planner(self.plans, 10.0, lambda _: self.planned.set())
        self.learner: Learner | None = None
        if self.ask is not None:
            self.learner = Learner(self.cluster, LOOK_SECONDS, self.ask, lambda: self.cluster.clock().timestamp())
        self.reconciler = Reconciler(
            self.cluster,
            self.planner,
            self.acknowledgement,
            Images(),
            CapacitySource(self.cluster, lifetime_seconds=0),
            self.cluster.clock,
            learner=self.learner,
        )

    async def reconcile(self) -> float | None:
        again = await self.reconciler.reconcile(KEY)
        await asyncio.sleep(0)  # lets the planning task answer
        if self.learner is not None:
            await self.learner.idle()
        return again

    async def settle(self, *, passes: int = 30, between: Callable[[], None] | None = None) -> None:
        """Reconcile while pods become ready and go, until nothing is written any more."""
        for _ in range(passes):
            self.cluster.writes.clear()
            await self.reconcile()
            if between is not None:
                between()
            self.cluster.finish_deletions()
            self.cluster.run_pods()
            self.cluster.advance(1)
            await self.reconcile()
            if not self.cluster.writes:
                return
        raise AssertionError(f"still writing: {self.cluster.writes}")

    @property
    def status(self) -> dict[str, Any]:
        found = self.cluster.objects["CascadeDeployment", *KEY]
        return found.get("status", {})

    def condition(self, kind: str) -> tuple[str, str]:
        found = next((c for c in self.status.get("conditions", ()) if c["type"] == kind), None)
        return (found["status"], found["reason"]) if found else ("", "")

    def replicas(self) -> dict[str, str]:
        return {s["metadata"]["name"]: s["metadata"]["uid"] for s in self.cluster.kinds("StatefulSet")}


def nodes(cluster: MemoryCluster, count: int, gpus: int = 8) -> None:
    """Put so many GPU nodes, ready."""
    for index in range(count):
        cluster.put(
            {
                "kind": "Node",
                "metadata": {"name": f"gpu-{index}"},
                "status": {
                    "allocatable": {"nvidia.com/gpu": str(gpus), "cpu": "96"},
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            }
        )


def cluster_with_chat() -> MemoryCluster:
    """Four nodes of eight GPUs, and the manifest `chat` of `MODELS`."""
    made = MemoryCluster()
    nodes(made, 4)
    made.put(cascade_document(MODELS))
    return made
