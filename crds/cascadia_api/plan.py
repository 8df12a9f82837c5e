"""`Plan`: what the planner decides, and `CascadePlan`, the object that holds it in a cluster.

A plan is immutable. Its id is a hash of its canonical inputs, so the same inputs give the same id on
every machine, and an object named after it is never written twice with different content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from cascadia_api.cascade import ObjectMeta
from cascadia_api.schema import ApiModel, Figure, Milliseconds, Money, Rule

__all__ = [
    "PLAN_SCHEMA_VERSION",
    "CascadePlan",
    "FrontierPoint",
    "KeptReplicas",
    "LadderStep",
    "Percentiles",
    "Plan",
    "PlanAlternative",
    "PlanDemand",
    "PlanLatency",
    "PlanQuality",
    "PlanSolver",
    "PlanStage",
    "ReplicaGroup",
    "StageLatency",
    "plan_id",
]

PLAN_SCHEMA_VERSION = 1

Identifier = Annotated[str, StringConstraints(min_length=1, max_length=63)]
Sentence = Annotated[str, StringConstraints(max_length=1024)]
Thresholds = Annotated[list[Figure | None], Field(max_length=8)]


class ReplicaGroup(ApiModel):
    """Replicas of one stage that have the same shape."""

    tensor_parallel: int = Field(ge=1, description="GPUs that share each layer.")
    pipeline_parallel: int = Field(ge=1, description="Pipeline stages.")
    count: int = Field(ge=1, description="Number of such replicas (data parallelism).")
    weight: Figure = Field(description="Share of the stage's load that one such replica takes, 0 to 1.")


class Percentiles(ApiModel):
    """Percentiles of one time, ms."""

    p50_ms: Milliseconds
    p90_ms: Milliseconds
    p95_ms: Milliseconds
    p99_ms: Milliseconds


class StageLatency(ApiModel):
    """What one stage adds to the requests that it serves: its queue and its engine, without the scorer."""

    end_to_end: Percentiles = Field(description="From arrival at the stage to the end of its answer.")
    time_to_first_token: Percentiles = Field(description="From arrival at the stage to its first token.")
    time_per_output_token: Percentiles = Field(description="Of each token after the first.")


class PlanStage(ApiModel):
    """One stage of the plan."""

    name: Identifier = Field(description="Model name in the CascadeDeployment.")
    threshold: Figure | None = Field(
        None, description="Answers with a raw score of at least this are accepted; absent: every answer is."
    )
    reach: Figure = Field(description="Share of requests that this stage serves.")
    skipped: Figure = Field(
        0.0,
        description="Share of requests that get this far and pass the stage by, since they exceed its model's context "
        "window or need what it cannot do; of the last stage: that it refuses.",
    )
    gpus: int = Field(ge=0, description="GPUs of the stage; 0: the stage is dropped.")
    pool: Identifier | None = Field(None, description="Pool that the GPUs come from; absent for a dropped stage.")
    replicas: Annotated[list[ReplicaGroup], Field(max_length=16)] = Field(description="The stage's replicas.")
    p95_ms: Milliseconds | None = Field(None, description="Predicted p95 of the stage's own service time, ms.")
    latency: StageLatency | None = Field(None, description="Predicted times of the stage alone; absent if unknown.")
    utilization: Figure | None = Field(
        None, description="Load over capacity: the stage's rate, by the rate at which its replicas saturate."
    )


class PlanQuality(ApiModel):
    """Predicted quality of the accepted answers."""

    mean: Figure = Field(description="Mean judged worth, 0 to 1.")
    lower_bound: Figure | None = Field(None, description="Simultaneous lower confidence bound; absent under a prior.")
    confidence: Figure | None = Field(None, description="Confidence of the bound.")
    source: Literal["Calibration", "Prior"] = Field(description="Where the figures come from.")
    requests: int | None = Field(None, ge=0, description="Requests of the calibration set.")


class PlanLatency(ApiModel):
    """Predicted end-to-end latency along the whole path of a request, scorers included, ms."""

    p50_ms: Milliseconds
    p90_ms: Milliseconds
    p95_ms: Milliseconds
    p99_ms: Milliseconds
    time_to_first_token_p95_ms: Milliseconds | None = None
    time_per_output_token_p95_ms: Milliseconds | None = None
    time_to_first_token: Percentiles | None = Field(
        None, description="To the first byte that a client sees: held-back answers are seen when they are accepted."
    )
    time_per_output_token: Percentiles | None = Field(
        None, description="Of each token after the first byte; 0 for answers that were held back until complete."
    )
    source: Annotated[str, StringConstraints(max_length=128)] = Field(description="Which estimator.")
    uncertainty_percent: Figure | None = Field(None, description="Median error of the estimator on measurements, %.")
    extrapolates: Annotated[list[Sentence], Field(max_length=16)] = Field(
        default_factory=list, description="In what stages differ from all that the estimator was measured on."
    )


class LadderStep(ApiModel):
    """One threshold vector that the routers may step to without moving a replica, strictest first."""

    thresholds: Thresholds = Field(description="One entry a model; null where a stage accepts all or is dropped.")
    reach: Annotated[list[Figure], Field(max_length=8)]
    quality_mean: Figure
    quality_lower_bound: Figure | None = None
    max_requests_per_second: Figure = Field(description="Rate that the plan's replicas carry at these thresholds.")


class FrontierPoint(ApiModel):
    """One plan that no other beats in latency, cost and quality at once."""

    thresholds: Thresholds
    gpus: Annotated[list[int], Field(max_length=8)] = Field(description="GPUs of each model.")
    p95_ms: Milliseconds
    cost_per_hour: Money | None = None
    quality_mean: Figure
    quality_lower_bound: Figure | None = None
    chosen: bool = False


class PlanAlternative(ApiModel):
    """A plan that was not chosen, and why: material for explanations."""

    name: Annotated[str, StringConstraints(max_length=128)]
    p95_ms: Milliseconds | None = None
    quality_mean: Figure | None = None
    cost_per_hour: Money | None = None
    reason: Sentence


class PlanSolver(ApiModel):
    """How the plan was found."""

    status: Literal["Optimal", "Feasible", "TimedOut"]
    objective: Literal["MaxStage", "EndToEnd"]
    gap: Figure = Field(description="Relative gap between the plan and the lower bound, ≥ 0.")
    elapsed_ms: Milliseconds = Field(description="CPU time of planning, ms.")
    threshold_vectors: int = Field(ge=0, description="Threshold vectors that were searched.")
    version: Annotated[str, StringConstraints(max_length=32)]


class PlanDemand(ApiModel):
    """The traffic that the plan was made for: what drift is measured against.

    Quantiles are at 5, 25, 50, 75 and 95 %.
    """

    requests_per_second: Figure
    input_tokens_mean: Figure
    output_tokens_mean: Figure
    input_token_quantiles: Annotated[list[Figure], Field(max_length=5)] = Field(description="Of all requests.")
    output_token_quantiles: Annotated[list[Figure], Field(max_length=5)] = Field(
        description="Of the first live stage's answers."
    )
    score_deciles: Annotated[list[Figure], Field(max_length=9)] = Field(
        default_factory=list, description="Deciles of the first live stage's raw scores; empty where unknown."
    )
    source: Literal["Manifest", "Trace", "Observed"]


class KeptReplicas(ApiModel):
    """Where a plan of thresholds alone has its replicas from."""

    plan_id: Annotated[str, StringConstraints(pattern=r"^p-[0-9a-f]{12}$")] = Field(
        description="The plan that placed them: no replica moves between it and this one."
    )
    requests_per_second: Figure = Field(description="Rate that they were placed for.")


class Plan(ApiModel):
    """Thresholds, allocation, parallelism and prediction."""

    schema_version: Literal[1] = 1
    plan_id: Annotated[str, StringConstraints(pattern=r"^p-[0-9a-f]{12}$")]
    cascade: Identifier = Field(description="Name of the CascadeDeployment.")
    thresholds: Thresholds = Field(description="One entry a model; null where a stage accepts all or is dropped.")
    stages: Annotated[list[PlanStage], Field(min_length=1, max_length=8)] = Field(
        description="Every model of the manifest, in order; dropped ones with 0 GPUs."
    )
    ladder: Annotated[list[LadderStep], Field(max_length=16)] = Field(
        description="Threshold vectors within the quality floor, strictest first."
    )
    quality: PlanQuality
    latency: PlanLatency
    cost_per_hour: Money | None = Field(None, description="Price of its GPUs for one hour; absent without prices.")
    demand: PlanDemand
    frontier: Annotated[list[FrontierPoint], Field(max_length=64)] = Field(
        description="Plans that no other beats; beside thresholds planned alone, those found when all was planned."
    )
    alternatives: Annotated[list[PlanAlternative], Field(max_length=16)] = Field(default_factory=list)
    solver: PlanSolver
    replicas_of: KeptReplicas | None = Field(
        None, description="Set where thresholds alone were planned, for replicas that run; absent: all was planned."
    )
    scorer: Identifier = Field(description="Id of the scorer whose scores the thresholds are.")
    warnings: Annotated[list[Sentence], Field(max_length=16)] = Field(default_factory=list)

    @property
    def live_stages(self) -> tuple[PlanStage, ...]:
        """Stages that have GPUs, in order."""
        return tuple(stage for stage in self.stages if stage.gpus)

    @property
    def gpus(self) -> int:
        """GPUs of all stages."""
        return sum(stage.gpus for stage in self.stages)

    def for_kubernetes(self) -> dict[str, Any]:
        """The plan as a CascadePlan's ``spec.plan``: decimal strings in place of floats, no nulls but in lists."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, context={"kubernetes": True})

    def for_json(self) -> dict[str, Any]:
        """The plan as `cascadia plan -o json` prints it."""
        return self.model_dump(mode="json", by_alias=True)


def plan_id(inputs: Mapping[str, Any]) -> str:
    """Id of the plan for these canonical inputs: ``p-`` and twelve hexadecimal digits.

    Args:
        inputs: JSON-able; key order does not matter.
    """
    document = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return "p-" + hashlib.sha256(document.encode()).hexdigest()[:12]


class CascadePlanSpec(ApiModel):
    """An immutable plan."""

    plan: Plan = Field(description="The whole plan.")
    generation: int = Field(ge=0, description="metadata.generation of the CascadeDeployment that it was made for.")
    trigger: Literal["Created", "SpecChanged", "Drift", "Capacity", "SolverUpgraded", "Manual"] = Field(
        description="Why it was made."
    )
    trigger_message: Sentence = Field("", description="The numbers behind the trigger.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self == oldSelf", "a CascadePlan is immutable: create another", lambda _: True),
    )


class CascadePlanStatus(ApiModel):
    """What became of the plan."""

    phase: Literal["Proposed", "Approved", "Applied", "Superseded", "Expired"] | None = None
    approved_by: Annotated[str, StringConstraints(max_length=253)] | None = None
    message: Sentence | None = None


class CascadePlan(ApiModel):
    """A plan of a CascadeDeployment: owned by it, immutable, the last ten are kept."""

    api_version: Literal["cascadia.dev/v1alpha1"]
    kind: Literal["CascadePlan"]
    metadata: ObjectMeta
    spec: CascadePlanSpec
    status: CascadePlanStatus | None = None
