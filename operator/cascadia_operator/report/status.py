"""The status of a CascadeDeployment: conditions, the plan's summary, stages, and the columns of `kubectl get`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cascadia_api.errors import InputError
from cascadia_api.names import API_VERSION, CLIENT_PORT, KIND
from cascadia_api.plan import Plan, PlanStage
from cascadia_api.status import CascadeStatus, Display, LastReplan, PlanSummary, StageStatus, StageSummary
from cascadia_operator.cluster import Object
from cascadia_operator.decide.replicas import OutdatedReplica
from cascadia_operator.manifests.naming import cluster_endpoint
from cascadia_operator.report.conditions import conditions, stamped
from cascadia_operator.report.engines import stated_corrections
from cascadia_operator.report.findings import Findings
from cascadia_operator.world import Key, StoredPlan
from cascadia_solver.transition import ReplicaState

__all__ = ["invalid_status", "status_document", "status_of"]

_MESSAGE_MAX = 4000


def status_document(key: Key, status: Mapping[str, Any]) -> Object:
    """What is applied to the status subresource."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"namespace": key.namespace, "name": key.name},
        "status": dict(status),
    }


def status_of(findings: Findings) -> dict[str, Any]:
    """The status that follows from what was found and done."""
    world, stored = findings.world, findings.choice.stored
    namespace, name = world.key
    statements = conditions(findings)
    tls = world.cascade.spec.routing.tls is not None
    stages = _stage_statuses(findings, stored.plan) if stored else []
    status = CascadeStatus.model_validate(
        {
            "observed_generation": world.generation,
            "conditions": stamped(statements, world.status.get("conditions") or (), world.generation, world.now),
            "plan": _summary(findings, stored) if stored else None,
            "stages": stages or None,
            "last_replan": _last_replan(findings),
            "corrections": stated_corrections(findings) or None,
            "endpoint": cluster_endpoint(name, namespace, CLIENT_PORT, tls=tls) if stored else None,
            "display": _display(findings, stages),
        }
    )
    document = status.model_dump(mode="json", by_alias=True, exclude_none=True, context={"kubernetes": True})
    return document | {"display": {column: text for column, text in document["display"].items() if text}}


def invalid_status(document: Object, error: InputError, now: datetime) -> dict[str, Any]:
    """The status of a manifest that is stored though it is not valid: what runs is left alone."""
    before = document.get("status") or {}
    generation = document["metadata"].get("generation") or 0
    message = f"the manifest is not valid: {error}; what runs is left as it is"
    statements = [
        ("Ready", "False", "InvalidSpec", message),
        ("Planned", "False", "InvalidSpec", message),
        ("Stalled", "True", "InvalidSpec", message),
    ]
    kept = {key: value for key, value in before.items() if key not in ("conditions", "observedGeneration", "display")}
    return kept | {
        "observedGeneration": generation,
        "conditions": stamped(statements, before.get("conditions") or (), generation, now),
        "display": (before.get("display") or {}) | {"reason": "InvalidSpec"},
    }


def _summary(findings: Findings, stored: StoredPlan) -> PlanSummary:
    plan = stored.plan
    before = int((findings.world.status.get("plan") or {}).get("policyRevision") or 0)
    return PlanSummary(
        name=stored.name,
        id=plan.plan_id,
        policy_revision=findings.advance.policy_revision if findings.advance else before,
        stages=[_stage_summary(stage) for stage in plan.stages],
        quality=plan.quality.mean,
        quality_lower_bound=plan.quality.lower_bound,
        p95_ms=plan.latency.p95_ms,
        cost_per_hour=plan.cost_per_hour,
        solver_gap=plan.solver.gap,
        solver_ms=plan.solver.elapsed_ms,
    )


def _stage_summary(stage: PlanStage) -> StageSummary:
    largest = max(stage.replicas, key=lambda g: g.tensor_parallel * g.pipeline_parallel, default=None)
    return StageSummary(
        name=stage.name,
        threshold=stage.threshold,
        reach=stage.reach,
        gpus=stage.gpus,
        pool=stage.pool,
        tensor_parallel=largest.tensor_parallel if largest else None,
        pipeline_parallel=largest.pipeline_parallel if largest else None,
        replicas=sum(group.count for group in stage.replicas),
    )


def _stage_statuses(findings: Findings, plan: Plan) -> list[StageStatus]:
    routed = set(findings.step.routed) if findings.step else set()
    statuses: list[StageStatus] = []
    for stage in plan.live_stages:
        wanted = Counter({(stage.pool, g.tensor_parallel, g.pipeline_parallel): g.count for g in stage.replicas})
        exist: Counter[tuple[str | None, int, int]] = Counter()
        ready: Counter[tuple[str | None, int, int]] = Counter()
        for replica in findings.observed:
            if replica.stage != stage.name or isinstance(replica, OutdatedReplica):
                continue
            shape = (replica.pool, replica.tensor_parallel, replica.pipeline_parallel)
            if replica.state in (ReplicaState.Ready, ReplicaState.Starting):
                exist[shape] += 1
            if replica.state is ReplicaState.Ready and replica.name in routed:
                ready[shape] += 1
        statuses.append(
            StageStatus(
                name=stage.name,
                desired=wanted.total(),
                updated=(exist & wanted).total(),
                ready=(ready & wanted).total(),
            )
        )
    return statuses


def _last_replan(findings: Findings) -> LastReplan | None:
    """The last time that a plan was made or refused; its time stands until there is news."""
    choice, now = findings.choice, findings.world.now.strftime("%Y-%m-%dT%H:%M:%SZ")
    before = findings.world.status.get("lastReplan")
    if choice.trouble is not None:
        reason = choice.trouble.message[:_MESSAGE_MAX]
        if before and before.get("decision") == "Rejected" and before.get("reason") == reason:
            return LastReplan.model_validate(before)
        return LastReplan(time=now, trigger="SpecChanged", decision="Rejected", reason=reason)
    if choice.stored is None or not choice.current:
        return LastReplan.model_validate(before) if before else None
    stored = choice.stored
    made = stored.created.strftime("%Y-%m-%dT%H:%M:%SZ")
    return LastReplan(time=made, trigger=stored.trigger, decision="Applied", reason=_made_words(stored))


def _made_words(stored: StoredPlan) -> str:
    alone = "" if stored.plan.replicas_of is None else ": thresholds alone, no replica moves"
    return f"plan {stored.name}{alone}"


def _display(findings: Findings, stages: list[StageStatus]) -> Display:
    world, stored = findings.world, findings.choice.stored
    trouble = findings.trouble
    spec = world.cascade.spec
    allowed = sum(pool.max_gpus for pool in spec.gpus.pools)
    held = sum(replica.gpus for replica in findings.observed)
    ready = next(reason for kind, _, reason, _ in conditions(findings) if kind == "Ready")
    gpus = f"{held}/{allowed}"
    if stored is None:
        return Display(gpus=gpus, reason=trouble.reason if trouble else ready)
    plan = stored.plan
    quality = plan.quality.lower_bound if plan.quality.lower_bound is not None else plan.quality.mean
    serving = sum(1 for stage in stages if stage.desired and stage.ready >= stage.desired)
    return Display(
        stages=f"{serving}/{len(stages)}",
        gpus=gpus,
        quality=f"{quality:.3f}>={float(spec.objective.min_quality):g}",
        p95=f"{plan.latency.p95_ms:.0f}ms",
        cost="" if plan.cost_per_hour is None else f"{plan.cost_per_hour:.2f}",
        plan=plan.plan_id,
        reason=trouble.reason if trouble else ready,
    )
