"""Status of a CascadeDeployment: a summary of bounded size, written by the operator alone.

No metric and no heartbeat is in it: a status that changes without news keeps every watcher busy.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from cascadia_api.schema import ApiModel, Figure, Milliseconds

__all__ = [
    "CONDITION_TYPES",
    "CascadeStatus",
    "Condition",
    "Display",
    "LastReplan",
    "LearntCorrection",
    "PlanSummary",
    "StageStatus",
    "StageSummary",
]

CONDITION_TYPES = (
    "Ready",
    "Planned",
    "Transitioning",
    "MetricsAvailable",
    "QualityTargetMet",
    "LatencyTargetMet",
    "Reconciling",
    "Stalled",
)
"""``Reconciling`` and ``Stalled`` follow kstatus: present only while true."""

Short = Annotated[str, StringConstraints(max_length=253)]
Message = Annotated[str, StringConstraints(max_length=4096)]


class Condition(ApiModel):
    """One condition, as in metav1.Condition."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=63)]
    status: Literal["True", "False", "Unknown"]
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=63)]
    message: Message = ""
    last_transition_time: Annotated[str, StringConstraints(max_length=32)] = Field(
        json_schema_extra={"format": "date-time"}
    )
    observed_generation: int | None = None


class StageSummary(ApiModel):
    """One stage of the plan in force."""

    name: Short
    threshold: Figure | None = None
    reach: Figure
    gpus: int
    pool: Short | None = None
    tensor_parallel: int | None = Field(None, description="Of the largest replica group.")
    pipeline_parallel: int | None = None
    replicas: int = Field(description="Number of replicas, all shapes.")


class PlanSummary(ApiModel):
    """The plan in force."""

    name: Short = Field(description="CascadePlan that holds the whole plan.")
    id: Short
    policy_revision: int
    stages: Annotated[list[StageSummary], Field(max_length=8)]
    quality: Figure = Field(description="Predicted mean quality.")
    quality_lower_bound: Figure | None = None
    p95_ms: Milliseconds = Field(description="Predicted end-to-end p95, ms.")
    cost_per_hour: Figure | None = None
    solver_gap: Figure
    solver_ms: Milliseconds


class StageStatus(ApiModel):
    """Replicas of one stage."""

    name: Short
    desired: int = Field(description="Replicas of the plan.")
    updated: int = Field(description="Replicas that exist as planned.")
    ready: int = Field(description="Of these, ready to serve.")


class LastReplan(ApiModel):
    """The last time that a new plan was considered."""

    time: Short
    trigger: Short
    decision: Literal["Applied", "Proposed", "Skipped", "Rejected"]
    reason: Message


class LearntCorrection(ApiModel):
    """By how much the engines of one kind of replica differ from the cost model, as their own metrics tell."""

    model: Short
    gpu: Short
    shape: Short
    engine_version: Short
    prefill: Figure = Field(description="Prompts take this many times as long as predicted.")
    decode: Figure = Field(description="The same, for tokens after the first.")
    planned_with: Figure | None = Field(
        None, description="`decode` as the plan in force has it; absent where the plan does not use such replicas."
    )


class Display(ApiModel):
    """What `kubectl get` prints."""

    stages: Short = ""
    gpus: Short = ""
    quality: Short = ""
    p95: Short = ""
    cost: Short = ""
    plan: Short = ""
    reason: Short = ""


class CascadeStatus(ApiModel):
    """Status of a CascadeDeployment."""

    observed_generation: int | None = None
    conditions: Annotated[list[Condition], Field(max_length=16)] | None = Field(
        None, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    )
    plan: PlanSummary | None = None
    proposed_plan: Short | None = Field(None, description="CascadePlan that waits for approval.")
    stages: Annotated[list[StageStatus], Field(max_length=8)] | None = None
    last_replan: LastReplan | None = None
    corrections: Annotated[list[LearntCorrection], Field(max_length=32)] | None = Field(
        None,
        description="What the engines have taught and the next plan is made with; a figure stands until it has moved "
        "by more than 5 %.",
    )
    endpoint: Short | None = Field(None, description="URL of the cascade inside the cluster.")
    display: Display | None = Field(None, description="Columns of `kubectl get`.")
