"""Events: the story of a cascade in few, documented reasons, one for each change.

``PlanComputed``: another plan is gone for. ``TransitionStarted`` and ``TransitionCompleted``: the way to
it. ``Stalled``: somebody has to act; the condition of the same name says how. ``Resumed``: nobody has to
any more. Events expire; whatever must be acted on is in the conditions too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cascadia_api.names import API_VERSION, FIELD_MANAGER, KIND
from cascadia_operator.cluster import Object
from cascadia_operator.report.conditions import stated

__all__ = ["Happening", "event_manifest", "happenings"]

_NOTE_MAX = 1000


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that is worth an Event.

    Attributes:
        reason: One of the documented reasons.
        message: The facts.
        warning: Whether somebody should look.
    """

    reason: str
    message: str
    warning: bool = False


def happenings(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Happening]:
    """What has happened between two statuses."""
    found: list[Happening] = []
    plan, earlier = after.get("plan") or {}, before.get("plan") or {}
    if plan.get("name") and plan.get("name") != earlier.get("name"):
        live = [s for s in plan["stages"] if s["gpus"]]
        shape = ", ".join(
            f"{s['name']} {s['replicas']}x TP{s['tensorParallel']} PP{s['pipelineParallel']}" for s in live
        )
        found.append(Happening("PlanComputed", f"{plan['name']}: {shape}; predicted p95 {float(plan['p95Ms']):.0f} ms"))
    was, now = stated(before, "Transitioning"), stated(after, "Transitioning")
    if now.get("status") == "True" and was.get("status") != "True":
        found.append(Happening("TransitionStarted", now["message"]))
    if was.get("status") == "True" and now.get("reason") == "Done":
        found.append(Happening("TransitionCompleted", now["message"]))
    was, now = stated(before, "Stalled"), stated(after, "Stalled")
    if now and now["reason"] != was.get("reason"):
        found.append(Happening("Stalled", f"{now['reason']}: {now['message']}", warning=True))
    if was and not now:
        found.append(Happening("Resumed", f"no longer stalled by {was['reason']}"))
    return found


def event_manifest(happening: Happening, document: Object, now: datetime) -> Object:
    """The Event of a happening about a CascadeDeployment."""
    metadata = document["metadata"]
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata.get("uid", ""),
        },
        "reason": happening.reason,
        "message": happening.message[:_NOTE_MAX],
        "type": "Warning" if happening.warning else "Normal",
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": FIELD_MANAGER,
        "action": "Reconcile",
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
