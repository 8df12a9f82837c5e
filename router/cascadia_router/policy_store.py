"""The policy in force, and the few before it that requests under way still follow.

The plan at entry governs a whole request: a router further along the chain looks the entry's revision
up here. Only where the replicas *are* is always taken from the newest policy.
"""

from __future__ import annotations

import asyncio
import logging
import weakref

import msgspec

from cascadia_api.policy import RouterPolicy, StagePolicy, decode_policy
from cascadia_router.balancing import ReplicaTable, Targets
from cascadia_router.completion_body import CompletionRequest
from cascadia_router.decision import header_text
from cascadia_router.json_log import fields
from cascadia_router.scorers.building import Workbench
from cascadia_router.scorers.protocol import Scorer
from cascadia_router.stage import Stage
from cascadia_router.whereabouts import Whereabouts

__all__ = ["Cascade", "PolicyStore"]

log = logging.getLogger("cascadia.router.policy")

REMEMBERED = 4
"""Policies kept by revision, the one in force included."""


class Cascade:
    """One revision of the policy, ready for use.

    Attributes:
        policy: As written.
        name: What clients call it.
        revision: Its revision.
        stages: Its live stages, smallest model first.
        by_name: The same by name.
        plan_line: Its plan's id as a header line.
        leaders: Routers that clients may call: one beside each replica.
        rung: Index in the ladder of its thresholds, where they are not the policy's own; else None.
        max_in_flight: Requests that a router holds at once.
        sample_rate: Share of scored answers kept as samples.
        shadow_share: Share of accepted answers that are compared with the next stage's.
        access_log: Share of answered requests that the access log has; None: there is no access log.
        tracing: How requests are traced; None: they are not.
        gate_tokens: How many of an answer's first tokens are scored; None for all.
        scorer: What scores answers.
        affinity: Bytes of a conversation's beginning that choose its replica; 0: the load alone does.
        latch_seconds: See `BalancingPolicy.session_latch_seconds`.
        judged: The first stage if its answers may be rejected, requests pass it by for no reason but their
            needs, and its scorer needs each token's log-probability.
    """

    def __init__(self, policy: RouterPolicy, scorer: Scorer, rung: int | None = None) -> None:
        self.policy = policy
        self.rung = rung
        self.name = policy.cascade
        self.revision = policy.policy_revision
        plan = (policy.plan_id, policy.policy_revision, rung)
        self.stages = tuple(Stage(index, stage, plan) for index, stage in enumerate(policy.stages))
        self.by_name = {stage.name: stage for stage in self.stages}
        self.plan_line = b"x-cascadia-plan: %s\r\n" % header_text(policy.plan_id)
        self.leaders = max(1, sum(len(stage.endpoints) for stage in policy.stages))
        self.max_in_flight = policy.max_in_flight
        self.gate_tokens = policy.streaming.gate_tokens
        self.shadow_share = 0.0 if policy.shadow is None else policy.shadow.share
        self.access_log = None if policy.access_log is None else policy.access_log.share
        self.tracing = policy.tracing
        self.scorer = scorer
        self.sample_rate = policy.sample_rate
        self._windowed = any(stage.context_window is not None for stage in policy.stages)
        may_reject = policy.max_escalations > 0 and len(self.stages) > 1 and self.stages[0].threshold is not None
        balancing = policy.balancing
        self.affinity = balancing.prefix_bytes if balancing.policy == "PrefixAffinity" else 0
        self.latch_seconds = balancing.session_latch_seconds
        usual = not self._windowed and scorer.logprobs == 1 and not self.affinity and self.latch_seconds is None
        self.judged = self.stages[0] if may_reject and usual else None

    def able_from(self, first: int, end: int, request: CompletionRequest) -> tuple[Stage, ...]:
        """Stages from `first` to before `end` that can answer the request; the last if none can: estimates err."""
        later = self.stages[first:end]
        if not request.needs and not self._windowed:
            return later
        able = tuple(stage for stage in later if stage.can_answer(request))
        return able or later[-1:]

    def at_rung(self, rung: int) -> Cascade:
        """The same with another threshold vector of the ladder."""
        vector = (*self.policy.ladder[rung][:-1], None)
        stages = [
            msgspec.structs.replace(stage, threshold=threshold)
            for stage, threshold in zip(self.policy.stages, vector, strict=True)
        ]
        return Cascade(msgspec.structs.replace(self.policy, stages=stages), self.scorer, rung)

    def ladder_position(self) -> int | None:
        """Index of its thresholds in the ladder; None if they are none of its vectors."""
        vector = [stage.threshold for stage in self.stages]
        return self.policy.ladder.index(vector) if vector in self.policy.ladder else None


class PolicyStore:
    """Takes policy documents as they appear, remembers the last few, and knows where their replicas are.

    Attributes:
        current: The policy in force; None before the first.
        entry: What governs requests that enter the cascade here: the policy in force, or the same with the
            thresholds of a step further down its ladder.
        steps: How many steps down that is.
        rejected: Documents refused as invalid.
        whereabouts: What is known of replicas' places beyond the policy; `place` puts it in force.
    """

    def __init__(self, replicas: ReplicaTable, workbench: Workbench | None = None) -> None:
        self.current: Cascade | None = None
        self.entry: Cascade | None = None
        self.steps = 0
        self.rejected = 0
        self.whereabouts = Whereabouts()
        self._replicas = replicas
        self._workbench = workbench or Workbench()
        self._remembered: dict[int, Cascade] = {}
        self._rungs: dict[tuple[int, int], Cascade] = {}  # by revision and index in the ladder
        self._followed: weakref.WeakSet[Cascade] = weakref.WeakSet()  # requests follow older ones, too
        self._taken: asyncio.Future[None] | None = None

    def take(self, document: bytes, source: str) -> bool:
        """Put a document in force if it is valid and newer than the one in force.

        A document that is not leaves everything as it was.

        Args:
            document: JSON of a `RouterPolicy`.
            source: Where it came from, for the log.
        """
        try:
            policy = decode_policy(document)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return self._refuse(source, str(error))
        if self.current is not None and policy.policy_revision <= self.current.revision:
            if policy.policy_revision < self.current.revision:
                log.info(
                    "older policy ignored",
                    extra=fields(source=source, revision=policy.policy_revision, inForce=self.current.revision),
                )
            return False
        try:
            scorer = self._workbench.scorer(policy.scorer)
        except ValueError as error:
            return self._refuse(source, f"scorer: {error}")
        before, self.current = self.current, Cascade(policy, scorer)
        self._remembered[policy.policy_revision] = self.current
        self._followed.add(self.current)
        while len(self._remembered) > REMEMBERED:
            oldest = min(self._remembered)
            del self._remembered[oldest]
            self._rungs = {key: cascade for key, cascade in self._rungs.items() if key[0] != oldest}
        same = before is not None and before.policy.ladder == policy.ladder
        same = same and before is not None and before.ladder_position() == self.current.ladder_position()
        self.step(self.steps if same else 0)
        log.info(
            "policy taken",
            extra=fields(source=source, revision=policy.policy_revision, plan=policy.plan_id),
        )
        if self._taken is not None:
            self._taken.set_result(None)
            self._taken = None
        return True

    def _refuse(self, source: str, reason: str) -> bool:
        self.rejected += 1
        log.error("policy refused", extra=fields(source=source, reason=reason))
        return False

    @property
    def ladder_depth(self) -> int:
        """Vectors of the ladder below the thresholds of the policy in force."""
        place = self.current.ladder_position() if self.current is not None else None
        return 0 if self.current is None or place is None else len(self.current.policy.ladder) - 1 - place

    def step(self, steps: int) -> None:
        """Let requests that enter from now on go by the thresholds so many steps down the ladder.

        Args:
            steps: At most `ladder_depth`; 0: those of the policy in force.
        """
        cascade = self.current
        place = cascade.ladder_position() if cascade is not None else None
        self.steps = steps
        if steps and cascade is not None and place is not None:
            self.entry = self._at_rung(cascade, place + steps)
        else:
            self.entry = cascade
        self.place()

    def _at_rung(self, cascade: Cascade, rung: int) -> Cascade:
        key = (cascade.revision, rung)
        found = self._rungs.get(key)
        if found is None:
            found = self._rungs[key] = cascade.at_rung(rung)
            self._followed.add(found)
        return found

    def taken(self) -> asyncio.Future[None]:
        """A future that is done once the next policy has been taken."""
        if self._taken is None or self._taken.done():
            self._taken = asyncio.get_running_loop().create_future()
        return self._taken

    @property
    def services(self) -> frozenset[str]:
        """Services whose EndpointSlices tell where the replicas of the policy in force are."""
        stages = self.current.policy.stages if self.current is not None else []
        return frozenset(stage.service for stage in stages if stage.service is not None)

    def unplaced(self) -> set[str]:
        """Addresses of the policy in force that nobody has told better ones for."""
        own = self._replicas.own
        return {
            endpoint.address
            for stage in (self.current.policy.stages if self.current is not None else [])
            if not self.whereabouts.told(stage)
            for endpoint in stage.endpoints
            if own is None or endpoint.replica != own.name
        }

    def place(self) -> None:
        """Send what is sent from now on to where the replicas are known to be."""
        for cascade in self._followed:
            for stage in cascade.stages:
                stage.targets = self._placed(stage.policy)
        newest = self.current.by_name if self.current is not None else {}
        for cascade in self._followed:
            for stage in cascade.stages:
                now = newest.get(stage.name)
                stage.live = now.targets if now is not None and now.targets.pairs else stage.targets
        stages = [stage for cascade in self._remembered.values() for stage in cascade.stages]
        self._replicas.keep_only({replica for stage in stages for replica, _ in stage.targets.pairs})
        self.whereabouts.keep_only([stage.policy for stage in stages])

    def _placed(self, stage: StagePolicy) -> Targets:
        placed = []
        for endpoint in stage.endpoints:
            places = self.whereabouts.places(stage, endpoint)
            for place in places:
                name = endpoint.replica if len(places) == 1 else f"{endpoint.replica}@{place.address}"
                replica = self._replicas.replica(stage.name, name, place.address)
                replica.is_known_ready(ready=place.ready)
                placed.append((replica, endpoint.weight / len(places)))
        return Targets(placed)

    def at(self, revision: int, rung: int | None = None) -> Cascade | None:
        """The policy of that revision if it is remembered, else the one in force.

        Args:
            revision: Of the policy.
            rung: Index in its ladder of the thresholds to go by; None: its own.
        """
        cascade = self._remembered.get(revision, self.current)
        if rung is None or cascade is None or cascade.revision != revision or rung >= len(cascade.policy.ladder):
            return cascade
        known = self._rungs.get((revision, rung))
        if known is None:
            known = self._at_rung(cascade, rung)
            self.place()
        return known
