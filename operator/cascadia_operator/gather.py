"""Reads everything about one cascade from the API server: no decision is taken here, and nothing is remembered."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterable
from datetime import UTC, datetime

from pydantic import ValidationError

from cascadia_api.cascade import CascadeDeployment, Planning
from cascadia_api.cascade.scorer import scorer_secrets
from cascadia_api.errors import InputError
from cascadia_api.load import calibration_lines, corrections_text, parse_cascade
from cascadia_api.names import CASCADE_LABEL, KIND, PLAN_KIND
from cascadia_api.plan import CascadePlan
from cascadia_operator.capacity import Snapshot, available_gpus, free_by_node
from cascadia_operator.cluster import Cluster, Object
from cascadia_operator.learning.learnt import read_learnt
from cascadia_operator.manifests.naming import learnt_name, policy_name
from cascadia_operator.manifests.plan_object import (
    INPUTS_ANNOTATION,
    PLACEMENT_ANNOTATION,
    inputs_digest,
    placement_digest,
    planned_corrections,
)
from cascadia_operator.manifests.policy import read_policy
from cascadia_operator.world import CalibrationData, CorrectionsData, Key, StoredPlan, World, instant
from cascadia_solver.live_correction import LiveSource
from cascadia_solver.sources import parse_corrections, source_of

__all__ = ["InvalidCascadeError", "gather", "owned_by"]

log = logging.getLogger("cascadia.operator.gather")

_CHILD_KINDS = ("ConfigMap", "Service", "ServiceAccount", "Role", "RoleBinding")


class InvalidCascadeError(InputError):
    """The stored manifest is not valid: it was stored before a rule existed, or past the API server's validation.

    Attributes:
        document: The object as it is stored.
    """

    def __init__(self, error: InputError, document: Object) -> None:
        super().__init__(error.problems)
        self.document = document


async def gather(cluster: Cluster, key: Key, snapshot: Snapshot | None, now: datetime | None = None) -> World | None:
    """Read one cascade and all that belongs to it.

    Args:
        cluster: Where to read.
        key: Of the cascade.
        snapshot: The cluster's GPUs; None if unknown.
        now: The moment that decisions are taken at; the machine's clock by default.

    Returns:
        None if the cascade is gone or going: the garbage collector does the rest.

    Raises:
        InvalidCascadeError: The stored manifest is not valid.
        ClusterError: The API server failed.
    """
    namespace, name = key
    document = await cluster.get(KIND, namespace, name)
    if document is None or document["metadata"].get("deletionTimestamp"):
        return None
    try:
        cascade = parse_cascade({k: v for k, v in document.items() if k != "status"})
    except InputError as error:
        raise InvalidCascadeError(error, document) from error
    labels = f"{CASCADE_LABEL}={name}"
    uid = cascade.metadata.uid or ""
    calibration = await _calibration(cluster, cascade, namespace)
    corrections = await _corrections(cluster, cascade, namespace)
    pinned = await _pinned_plan(cluster, cascade, namespace)
    plans, statefulsets, pods, *lists = await asyncio.gather(
        cluster.list(PLAN_KIND, namespace, labels=labels),
        cluster.list("StatefulSet", namespace, labels=labels),
        cluster.list("Pod", namespace, labels=labels),
        *(cluster.list(kind, namespace, labels=labels) for kind in _CHILD_KINDS),
    )
    children = {
        (kind, child["metadata"]["name"]): child
        for kind, found in zip(_CHILD_KINDS, lists, strict=True)
        for child in found
        if owned_by(child, uid)
    }
    return World(
        cascade=cascade,
        status=document.get("status") or {},
        plans=_stored_plans([plan for plan in plans if owned_by(plan, uid)]),
        pinned=next(iter(_stored_plans(pinned)), None),
        statefulsets=[statefulset for statefulset in statefulsets if owned_by(statefulset, uid)],
        pods=[pod for pod in pods if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")],
        children=children,
        policy=read_policy(children.get(("ConfigMap", policy_name(name)))),
        calibration=calibration,
        corrections=corrections,
        available=available_gpus(cascade, snapshot),
        free_by_node=free_by_node(cascade, snapshot),
        inputs=inputs_digest(cascade, calibration.digest, corrections.digest),
        now=now or datetime.now(UTC),
        missing_secrets=await _missing_secrets(cluster, cascade, namespace),
        placement=placement_digest(cascade, corrections.digest),
        learnt=read_learnt(children.get(("ConfigMap", learnt_name(name)))),
    )


def owned_by(child: Object, uid: str) -> bool:
    """Whether the cascade of this uid controls an object."""
    references = child["metadata"].get("ownerReferences") or ()
    return any(reference.get("controller") and reference.get("uid") == uid for reference in references)


async def _calibration(cluster: Cluster, cascade: CascadeDeployment, namespace: str) -> CalibrationData:
    if cascade.spec.calibration is None:
        return CalibrationData()
    name = cascade.spec.calibration.config_map_ref.name
    config_map = await cluster.get("ConfigMap", namespace, name)
    if config_map is None:
        return CalibrationData(problem=f"ConfigMap {name} of spec.calibration is not there: create it")
    lines = tuple(calibration_lines(config_map.get("data") or {}))
    if not lines:
        return CalibrationData(problem=f"ConfigMap {name} has no lines in keys that end in .jsonl: add the set")
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]
    return CalibrationData(lines=lines, digest=digest)


async def _corrections(cluster: Cluster, cascade: CascadeDeployment, namespace: str) -> CorrectionsData:
    planning = cascade.spec.planning
    if planning is None or planning.corrections is None:
        return CorrectionsData()
    name = planning.corrections.config_map_ref.name
    config_map = await cluster.get("ConfigMap", namespace, name)
    if config_map is None:
        return CorrectionsData(problem=f"ConfigMap {name} of spec.planning.corrections is not there: create it")
    owners = config_map["metadata"].get("ownerReferences") or ()
    if any(owner.get("kind") == KIND and owner.get("controller") for owner in owners):
        # It changes every minute, and so would the plan.
        return CorrectionsData(
            problem=f"ConfigMap {name} of spec.planning.corrections is one that the operator keeps what it learns in: "
            "of this cascade's it plans with that anyway; of another's, name a copy"
        )
    try:
        text = corrections_text(config_map.get("data") or {})
    except InputError as error:
        return CorrectionsData(problem=str(error))
    digest = hashlib.sha256(text.encode()).hexdigest()[:32]
    return CorrectionsData(text=text, digest=digest, given=_given(planning, text))


def _given(planning: Planning, text: str) -> frozenset[tuple[str, str, str]]:
    """What corrections are of; nothing where they are of no use, which planning says why."""
    try:
        source = source_of(planning, parse_corrections(text))
    except InputError:
        return frozenset()
    assert isinstance(source, LiveSource)
    found = (key for key in source.corrections.by_key if key.engine_version == source.engine_version)
    return frozenset((key.model, key.gpu, key.shape) for key in found)


async def _missing_secrets(cluster: Cluster, cascade: CascadeDeployment, namespace: str) -> list[tuple[str, str]]:
    keys = cascade.spec.routing.api_keys_secret_ref
    tls = cascade.spec.routing.tls
    named = [("spec.routing.apiKeysSecretRef", keys.name)] if keys is not None else []
    if tls is not None:
        named.append(("spec.routing.tls.secretRef", tls.secret_ref.name))
    scorer = dict.fromkeys(each.name for each in scorer_secrets(cascade.spec.routing.scorer))
    named += [("spec.routing.scorer", name) for name in scorer]
    return [(field, name) for field, name in named if not await cluster.name_taken("Secret", namespace, name)]


async def _pinned_plan(cluster: Cluster, cascade: CascadeDeployment, namespace: str) -> list[Object]:
    """The plan of ``spec.planRef``: one that came from Git belongs to nobody and has no labels."""
    if cascade.spec.plan_ref is None:
        return []
    document = await cluster.get(PLAN_KIND, namespace, cascade.spec.plan_ref.name)
    return [document] if document else []


def _stored_plans(documents: Iterable[Object]) -> list[StoredPlan]:
    stored: list[StoredPlan] = []
    for document in documents:
        metadata = document["metadata"]
        try:
            content = CascadePlan.model_validate(document)
        except ValidationError as error:
            log.warning("CascadePlan %s is not readable and is left alone: %s", metadata["name"], error)
            continue
        stored.append(
            StoredPlan(
                name=metadata["name"],
                plan=content.spec.plan,
                inputs=(metadata.get("annotations") or {}).get(INPUTS_ANNOTATION, ""),
                trigger=content.spec.trigger,
                created=instant(metadata["creationTimestamp"]),
                placement=(metadata.get("annotations") or {}).get(PLACEMENT_ANNOTATION, ""),
                corrections=planned_corrections(document),
            )
        )
    return sorted(stored, key=lambda plan: (plan.created, plan.name))
