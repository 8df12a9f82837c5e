"""The conditions of a CascadeDeployment.

``Ready`` means that the plan for the present manifest is in force, all of it. It stays True in a
transition that the operator began by itself while every stage has a replica that serves. ``Reconciling``
and ``Stalled`` follow kstatus: they are there only while true, and never both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cascadia_operator.report.engines import metrics_available
from cascadia_operator.report.findings import Findings

__all__ = ["OWN_TRIGGERS", "conditions", "stamped", "stated"]

OWN_TRIGGERS = frozenset({"Drift", "Capacity", "SolverUpgraded"})
"""Triggers of plans that the operator makes of its own accord, not because the manifest changed."""

_MESSAGE_MAX = 4000

Statement = tuple[str, str, str, str]
"""Type, status, reason and message of a condition."""


def conditions(findings: Findings) -> list[Statement]:
    """Every condition that holds now, in a fixed order."""
    stated_now = [_ready(findings), _planned(findings), _transitioning(findings), metrics_available(findings)]
    stated_now += _unknowns()
    trouble = findings.trouble
    if trouble is not None:
        stated_now.append(("Stalled", "True", trouble.reason, trouble.message))
    elif findings.planning or (_at_work(findings) and not findings.done):
        stated_now.append(("Reconciling", "True", *_work(findings)))
    return stated_now


def _at_work(findings: Findings) -> bool:
    return not findings.world.cascade.spec.paused and findings.step is not None


def _work(findings: Findings) -> tuple[str, str]:
    if findings.planning:
        return "Planning", findings.choice.trigger_message or "a plan is being made"
    return "Transitioning", findings.waiting_for


def _ready(findings: Findings) -> Statement:
    spec, choice = findings.world.cascade.spec, findings.choice
    if spec.suspend:
        return "Ready", "False", "Suspended", "spec.suspend is set: no GPU is held"
    if findings.blocked is not None:
        return "Ready", "False", findings.blocked.reason, findings.blocked.message
    if choice.trouble is not None:
        stays = " The plan before stays in force." if choice.stored is not None else ""
        return "Ready", "False", choice.trouble.reason, choice.trouble.message + stays
    if choice.stored is None or not choice.current:
        if spec.paused:
            return "Ready", "False", "Paused", "spec.paused is set: the manifest as it stands is not planned for"
        stays = ": the plan before stays in force meanwhile" if choice.stored is not None else ""
        return "Ready", "False", "Planning", f"a plan for the manifest as it stands is being made{stays}"
    if findings.done:
        live = choice.stored.plan.live_stages
        return "Ready", "True", "Serving", f"all replicas of {len(live)} stages are ready and get requests"
    if _still_serving(findings):
        return "Ready", "True", "Serving", f"every stage serves during the transition: {findings.waiting_for}"
    if spec.paused:
        return "Ready", "False", "Paused", f"spec.paused is set, and the plan is not in force: {findings.waiting_for}"
    if findings.progress is not None and findings.progress.trouble is not None:
        return "Ready", "False", findings.progress.trouble.reason, findings.progress.trouble.message
    return "Ready", "False", "Transitioning", findings.waiting_for


def _still_serving(findings: Findings) -> bool:
    stored, step = findings.choice.stored, findings.step
    was_ready = _status_of(findings.world.status, "Ready") == "True"
    if stored is None or step is None or stored.trigger not in OWN_TRIGGERS or not was_ready:
        return False
    return all(findings.ready_replicas(stage) for stage in step.stages)


def _planned(findings: Findings) -> Statement:
    choice = findings.choice
    if choice.trouble is not None:
        return "Planned", "False", choice.trouble.reason, choice.trouble.message
    if choice.stored is not None and choice.current:
        plan = choice.stored.plan
        message = f"{choice.stored.name}: {plan.gpus} GPUs, gap {100 * plan.solver.gap:.3g} % to the bound"
        return "Planned", "True", plan.solver.status, message
    if findings.planning:
        return "Planned", "Unknown", "Planning", choice.trigger_message or "a plan is being made"
    return "Planned", "False", "NotPlanned", "no plan answers the manifest as it stands, and none is being made"


def _transitioning(findings: Findings) -> Statement:
    if findings.step is None:
        return "Transitioning", "False", "NoPlan", "there is no plan to go for yet"
    if findings.done:
        return "Transitioning", "False", "Done", "what runs is what the plan wants"
    if findings.world.cascade.spec.paused:
        return "Transitioning", "False", "Paused", f"spec.paused is set; it would wait for: {findings.waiting_for}"
    return "Transitioning", "True", "InProgress", findings.waiting_for


def _unknowns() -> list[Statement]:
    """Conditions about measured traffic: said to be unknown rather than left out or guessed."""
    return [
        ("QualityTargetMet", "Unknown", "NoSamples", "no judged answers have been collected"),
        ("LatencyTargetMet", "Unknown", "NoSamples", "no measured latencies have been collected"),
    ]


def stamped(
    statements: Sequence[Statement], before: Sequence[Mapping[str, Any]], generation: int, now: datetime
) -> list[dict[str, Any]]:
    """Give each condition its time of transition: the old one where its status is the old one.

    Args:
        statements: What holds now.
        before: The conditions in the status.
        generation: Of the manifest that was looked at.
        now: The moment.
    """
    old = {condition["type"]: condition for condition in before}
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message[:_MESSAGE_MAX],
            "lastTransitionTime": old[kind]["lastTransitionTime"]
            if kind in old and old[kind]["status"] == status
            else stamp,
            "observedGeneration": generation,
        }
        for kind, status, reason, message in statements
    ]


def stated(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """One condition of a status; empty if it is not there."""
    return next((c for c in status.get("conditions") or () if c["type"] == kind), {})


def _status_of(status: Mapping[str, Any], kind: str) -> str:
    return str(stated(status, kind).get("status", ""))
