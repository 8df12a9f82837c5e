"""One reconcile of one cascade: gather, decide, build, apply, report.

Level-triggered: whatever happened before, also half of a reconcile, the next one starts from what is in
the cluster and takes it one step on.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime

from cascadia_api.errors import CascadiaError
from cascadia_api.names import PLAN_KIND
from cascadia_operator.acknowledgement import Acknowledgement
from cascadia_operator.advance import Advance, advance, clear_leftovers, lay_foundation
from cascadia_operator.apply import NameTakenError, contains
from cascadia_operator.capacity import CapacitySource
from cascadia_operator.cluster import AlreadyExistsError, Cluster, ClusterError, ForbiddenError, Object, RefusedError
from cascadia_operator.decide.plan_choice import Choice, Trouble, choose_plan
from cascadia_operator.decide.progress import progress_of
from cascadia_operator.decide.pruning import plans_to_prune
from cascadia_operator.decide.steps import step_towards
from cascadia_operator.gather import InvalidCascadeError, gather, owned_by
from cascadia_operator.learning.engines import lessons_for
from cascadia_operator.learning.learner import Learner
from cascadia_operator.learning.learnt import as_corrections
from cascadia_operator.manifests.plan_object import INPUTS_ANNOTATION, plan_object
from cascadia_operator.metrics import CASCADE_GPUS
from cascadia_operator.planning import Planner
from cascadia_operator.report.events import event_manifest, happenings
from cascadia_operator.report.findings import Findings, Learning
from cascadia_operator.report.status import invalid_status, status_document, status_of
from cascadia_operator.settings import Images
from cascadia_operator.world import Key, World
from cascadia_solver.live_correction import LiveCorrections

__all__ = ["Reconciler"]

log = logging.getLogger("cascadia.operator.reconcile")

_AFTER_POLICY_SECONDS = 0.1
"""After a new policy, which is not watched: short, and yet no race with somebody who keeps changing it."""
_SECRET_SECONDS = 10.0
"""Between looks for a Secret that is missing: Secrets are not watched."""
_ACKNOWLEDGEMENT_SECONDS = 1.0
"""Between looks at a transition that waits for routers: what they enforce raises no event, unlike all else."""


class Reconciler:
    """Takes one cascade at a time one step on.

    Args:
        cluster: The cluster.
        planner: Makes plans beside.
        acknowledgement: How routers are asked for the policy that they enforce.
        images: Default images of the pods.
        capacity: Free GPUs of the cluster.
        clock: The moment now.
        learner: Learns from the engines' metrics; None where they cannot be asked for.
    """

    def __init__(
        self,
        cluster: Cluster,
        planner: Planner,
        acknowledgement: Acknowledgement,
        images: Images,
        capacity: CapacitySource,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        learner: Learner | None = None,
    ) -> None:
        self._cluster = cluster
        self._planner = planner
        self._acknowledgement = acknowledgement
        self._images = images
        self._capacity = capacity
        self._clock = clock
        self._learner = learner

    async def reconcile(self, key: Key) -> float | None:
        """Take a cascade one step on.

        Returns:
            Seconds until it should be looked at again though nothing happens: None where it does not matter,
            infinity where the cascade is gone.

        Raises:
            ClusterError: The API server failed; worth trying again.
        """
        try:
            world = await gather(self._cluster, key, await self._capacity.snapshot(), self._clock())
        except InvalidCascadeError as error:
            await self._report(key, error.document, invalid_status(error.document, error, self._clock()))
            return None
        if world is None:
            self._planner.forget(key)
            if self._learner is not None:
                self._learner.forget(key)
            with contextlib.suppress(KeyError):
                CASCADE_GPUS.remove(*key)
            return math.inf
        if await self._store_plan(world):
            return 0.0
        choice = choose_plan(world, self._planner.failure(world))
        learning = self._learning(world)
        if choice.trigger:
            taught = as_corrections(learning.lessons)
            self._planner.start(world, choice.trigger, choice.trigger_message, choice.keeping, taught)
        findings = await self._act(world, choice, learning)
        CASCADE_GPUS.labels(*key).set(sum(replica.gpus for replica in findings.observed))
        await self._report(key, _document(world), status_of(findings))
        again = _look_again(findings)
        if self._learner is None or world.cascade.spec.paused:
            return again
        self._learner.look(world)
        return self._learner.look_seconds if again is None else min(again, self._learner.look_seconds)

    def _learning(self, world: World) -> Learning:
        return Learning(
            lessons=lessons_for(world.cascade, world.learnt, self._images, world.corrections.given),
            asks=self._learner is not None,
            problem=self._learner.problem(world.key) if self._learner is not None else "",
        )

    async def _store_plan(self, world: World) -> bool:
        """Store a plan that was made for the present inputs, unless it is stored; return whether one was."""
        made = self._planner.made(world)
        if made is None or any(stored.inputs == world.inputs for stored in world.plans):
            return False
        manifest = plan_object(
            world.cascade,
            made.plan,
            inputs=world.inputs,
            placement=world.placement,
            trigger=made.trigger,
            message=made.message,
            corrections=LiveCorrections.from_json(made.learnt).by_key if made.learnt else {},
        )
        try:
            await self._cluster.create(manifest)
        except AlreadyExistsError:
            await self._adopt_plan(world, manifest["metadata"]["name"])
        return True

    async def _adopt_plan(self, world: World, name: str) -> None:
        """Note on a plan that exists that it follows from the present inputs too."""
        existing = await self._cluster.get(PLAN_KIND, world.key.namespace, name)
        if existing is None or not owned_by(existing, world.cascade.metadata.uid or ""):
            raise ClusterError(f"CascadePlan {name} is of a deleted cascade of the same name: it is waited for")
        await self._cluster.annotate(PLAN_KIND, world.key.namespace, name, {INPUTS_ANNOTATION: world.inputs})

    async def _act(self, world: World, choice: Choice, learning: Learning) -> Findings:
        """Decide the next step and carry it out, unless the cascade is paused."""
        step, observed, policy_plan = step_towards(world, choice)
        advanced: Advance | None = None
        blocked: Trouble | None = None
        if not world.cascade.spec.paused:
            try:
                await lay_foundation(self._cluster, world)
                if step is not None and policy_plan is not None:
                    advanced = await advance(
                        self._cluster, self._acknowledgement, self._images, world, step, policy_plan, observed
                    )
                if step is not None and step.done:
                    await clear_leftovers(self._cluster, world)
                for stored in plans_to_prune(world, choice.stored):
                    await self._cluster.delete(PLAN_KIND, world.key.namespace, stored.name)
            except NameTakenError as error:
                blocked = Trouble("NameTaken", str(error))
            except RefusedError as error:
                blocked = Trouble("Refused", f"the API server refuses what the operator wants: {error}")
            except ForbiddenError as error:
                blocked = Trouble("Forbidden", f"the operator's account lacks a right: {error}")
        done = step is not None and step.done and not (advanced and advanced.lacking)
        moving = step is not None and choice.stored is not None and not done and not world.cascade.spec.paused
        return Findings(
            world=world,
            choice=choice,
            planning=self._planner.running(world),
            observed=observed,
            step=step,
            advance=advanced,
            progress=progress_of(world, choice.stored, step) if moving and choice.stored and step else None,
            blocked=blocked,
            learning=learning,
        )

    async def _report(self, key: Key, document: Object, status: dict[str, object]) -> None:
        before = document.get("status") or {}
        if contains(before, status) and contains(status, before):
            return
        await self._cluster.apply_status(status_document(key, status))
        for happening in happenings(before, status):
            log.info("%s: %s: %s", key, happening.reason, happening.message)
            try:
                await self._cluster.create(event_manifest(happening, document, self._clock()))
            except CascadiaError as error:
                log.warning("an Event is lost: %s", error)


def _document(world: World) -> Object:
    metadata = world.cascade.metadata
    return {
        "metadata": {"name": world.key.name, "namespace": world.key.namespace, "uid": metadata.uid},
        "status": dict(world.status),
    }


def _look_again(findings: Findings) -> float | None:
    if findings.world.missing_secrets:
        return _SECRET_SECONDS
    if findings.advance is not None and findings.advance.policy_changed:
        return _AFTER_POLICY_SECONDS
    if findings.advance is not None and findings.advance.lacking:
        return _ACKNOWLEDGEMENT_SECONDS
    if findings.progress is None or findings.progress.trouble is not None:
        return None
    return max(1.0, (findings.progress.deadline - findings.world.now).total_seconds())
