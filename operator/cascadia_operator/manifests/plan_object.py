"""The CascadePlan that holds a plan, and the digest of what the plan was made from.

The digest is kept on the object: an operator that starts again finds by it that nothing has to be planned.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.engine_args import chunked_prefill_size
from cascadia_api.errors import InputError
from cascadia_api.names import API_VERSION, GROUP, PLAN_KIND, REPLAN_ANNOTATION
from cascadia_api.plan import Plan
from cascadia_operator.manifests.naming import child_metadata, common_labels, plan_object_name
from cascadia_solver.live_correction import Correction, CorrectionKey

__all__ = [
    "CORRECTIONS_ANNOTATION",
    "INPUTS_ANNOTATION",
    "PLACEMENT_ANNOTATION",
    "inputs_digest",
    "placement_digest",
    "plan_object",
    "planned_corrections",
]

INPUTS_ANNOTATION = f"{GROUP}/inputs"
PLACEMENT_ANNOTATION = f"{GROUP}/placement-inputs"
CORRECTIONS_ANNOTATION = f"{GROUP}/corrections"
_FLOOR_FIELDS = frozenset({"minQuality", "confidence", "minQualityOverloaded"})

_PLANNED_MODEL_FIELDS = frozenset(
    {"name", "source", "precision", "configJson", "parallelism", "minReplicas", "pools", "prefixCacheHitPercent"}
)
_PLANNED_POOL_FIELDS = frozenset({"name", "gpu", "gpuSpec", "maxGpus", "gpusPerNode", "pricePerGpuHour"})


def inputs_digest(cascade: CascadeDeployment, calibration: str, corrections: str = "") -> str:
    """Digest of what a plan follows from: the parts of the manifest that planning reads, and what it refers to.

    The GPUs that happen to be free and the planner's version are left out: they come and go, and a change
    of them alone moves no replica.

    Args:
        cascade: The manifest.
        calibration: Digest of the calibration set; empty for none.
        corrections: Digest of the corrections of step times; empty for none.
    """
    return _digest(_inputs(cascade, corrections) | {"calibration": calibration})


def placement_digest(cascade: CascadeDeployment, corrections: str = "") -> str:
    """Digest of what replicas follow from, whatever the load and the quality floor.

    Where it has not changed, thresholds alone may be enough: no engine is other than the plan in force wants it.
    """
    inputs = _inputs(cascade, corrections)
    objective = {k: v for k, v in inputs["objective"].items() if k not in _FLOOR_FIELDS}
    return _digest({k: v for k, v in inputs.items() if k != "workload"} | {"objective": objective})


def _inputs(cascade: CascadeDeployment, corrections: str) -> dict[str, Any]:
    """What planning reads of a manifest."""
    spec = cascade.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {
        "models": [_planned(model) for model in spec["models"]],
        "pools": [{k: v for k, v in pool.items() if k in _PLANNED_POOL_FIELDS} for pool in spec["gpus"]["pools"]],
        "objective": spec["objective"],
        "scorer": _scorer(cascade),
        "maxEscalations": spec["routing"].get("maxEscalations"),
        "workload": spec["workload"],
        **_cost(cascade, corrections),
        **_asked(cascade),
    }


def _planned(model: dict[str, Any]) -> dict[str, Any]:
    """What planning reads of a model."""
    arguments = model.get("engine", {}).get("extraArgs", ())
    try:
        size: int | str | None = chunked_prefill_size(arguments)
    except InputError as error:
        size = str(error)
    fields = {k: v for k, v in model.items() if k in _PLANNED_MODEL_FIELDS}
    return fields if size is None else fields | {"chunkedPrefillSize": size}


def _asked(cascade: CascadeDeployment) -> dict[str, Any]:
    """What was asked for beside the manifest: another plan, for what has been learnt since."""
    value = (cascade.metadata.annotations or {}).get(REPLAN_ANNOTATION)
    return {} if value is None else {"replan": value}


def _cost(cascade: CascadeDeployment, corrections: str) -> dict[str, Any]:
    """Where step times come from; nothing where the manifest does not say."""
    planning = cascade.spec.planning
    if planning is None:
        return {}
    return {"cost": [planning.cost_source or "Roofline", planning.engine_version, corrections]}


def _scorer(cascade: CascadeDeployment) -> list[str | int]:
    """What planning reads of the scorer: whose scores they are, and what they cost; not where a judge runs."""
    routing = cascade.spec.routing
    return [routing.scorer_id, routing.scorer.planned_latency_ms]


def _digest(inputs: dict[str, Any]) -> str:
    document = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(document.encode()).hexdigest()[:32]


def plan_object(
    cascade: CascadeDeployment,
    plan: Plan,
    *,
    inputs: str,
    trigger: str,
    message: str = "",
    placement: str = "",
    corrections: Mapping[CorrectionKey, Correction] | None = None,
) -> dict[str, Any]:
    """Build the CascadePlan of a plan.

    Args:
        cascade: Its owner.
        plan: The plan.
        inputs: Digest of what it was made from (`inputs_digest`).
        trigger: Why it was made, as in `CascadePlanSpec.trigger`.
        message: The numbers behind the trigger.
        placement: Digest of what its replicas follow from (`placement_digest`); empty: plans after it are made anew.
        corrections: Those that the operator had learnt and it was made with; None where that is not known.
    """
    annotations = {INPUTS_ANNOTATION: inputs, PLACEMENT_ANNOTATION: placement}
    if corrections is not None:
        annotations[CORRECTIONS_ANNOTATION] = json.dumps(
            [[*key, round(known.factor("decode"), 4)] for key, known in sorted(corrections.items())]
        )
    spec: dict[str, Any] = {
        "plan": plan.for_kubernetes(),
        "generation": cascade.metadata.generation or 0,
        "trigger": trigger,
    }
    if message:
        spec["triggerMessage"] = message
    return {
        "apiVersion": API_VERSION,
        "kind": PLAN_KIND,
        "metadata": child_metadata(
            cascade,
            plan_object_name(cascade.metadata.name, plan.plan_id),
            common_labels(cascade.metadata.name),
            annotations,
        ),
        "spec": spec,
    }


def planned_corrections(document: Mapping[str, Any]) -> dict[CorrectionKey, float] | None:
    """The factors of decoding that a CascadePlan was made with; None where it does not say."""
    text = (document["metadata"].get("annotations") or {}).get(CORRECTIONS_ANNOTATION)
    try:
        return None if text is None else {CorrectionKey(*map(str, key)): float(f) for *key, f in json.loads(text)}
    except (ValueError, TypeError):
        return None
