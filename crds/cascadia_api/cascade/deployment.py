"""The manifest as a whole: its sections, when plans are made anew and how they replace each other."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from cascadia_api.cascade.gpus import Gpus
from cascadia_api.cascade.models import Model
from cascadia_api.cascade.objective import Objective
from cascadia_api.cascade.references import LocalObjectReference
from cascadia_api.cascade.routing import Routing
from cascadia_api.cascade.workload import Calibration, Planning, Workload
from cascadia_api.names import CASCADE_NAME_MAX
from cascadia_api.schema import ApiModel, DnsLabel, LabelMap, Rule, Text

__all__ = ["CascadeDeployment", "CascadeDeploymentSpec", "ObjectMeta", "PodTemplate", "Replanning", "Rollout"]


class Replanning(ApiModel):
    """When a new plan is made for changed traffic."""

    mode: Literal["Automatic", "Advisory", "Disabled"] = Field(
        "Automatic", description="Automatic applies a better plan, Advisory proposes it, Disabled does neither."
    )
    interval_seconds: int = Field(60, ge=5, le=86_400, description="Time between looks at the traffic, s.")
    cooldown_seconds: int = Field(600, ge=0, le=86_400, description="Least time between two placements, s.")
    min_improvement_percent: int = Field(
        10, ge=0, le=100, description="Least improvement of the minimised figure that justifies moving replicas, %."
    )


class Rollout(ApiModel):
    """How a new plan replaces the running one."""

    strategy: Literal["InPlace", "MakeBeforeBreak", "Recreate"] = Field(
        "InPlace",
        description="InPlace frees GPUs stage by stage, MakeBeforeBreak adds first where GPUs are free, "
        "Recreate stops everything first.",
    )
    progress_deadline_seconds: int = Field(
        1800, ge=30, le=86_400, description="Time without progress after which the rollout counts as Stalled, s."
    )


class PodTemplate(ApiModel):
    """The part of pods that a platform team may set, for all models of the cascade."""

    labels: LabelMap | None = Field(None, description="More labels on pods.")
    annotations: (
        Annotated[dict[str, Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=32)] | None
    ) = Field(None, description="More annotations on pods.")
    service_account_name: DnsLabel | None = Field(
        None, description="ServiceAccount of the pods; the operator makes one where absent."
    )
    priority_class_name: DnsLabel | None = Field(None, description="PriorityClass of the pods.")
    scheduler_name: Text | None = Field(None, description="Scheduler of the pods.")
    image_pull_secrets: Annotated[list[LocalObjectReference], Field(max_length=8)] | None = Field(
        None, description="Secrets for pulling images."
    )


class CascadeDeploymentSpec(ApiModel):
    """What a cascade is made of and what it has to achieve."""

    models: Annotated[list[Model], Field(min_length=1, max_length=8)] = Field(
        description="The family of models, smallest first: each is a stage of the cascade."
    )
    gpus: Gpus = Field(description="The GPU budget.")
    objective: Objective = Field(description="Quality floor, latency targets and what to minimise.")
    routing: Routing = Field(default_factory=Routing, description="Scoring, escalation and streaming.")
    workload: Workload = Field(description="The traffic to plan for until real traffic has been seen.")
    calibration: Calibration | None = Field(
        None, description="Calibration set; a published prior is assumed where absent, without a quality bound."
    )
    planning: Planning | None = Field(
        None, description="Where step times come from; the built-in roofline where absent."
    )
    replanning: Replanning = Field(default_factory=Replanning, description="When to plan again.")
    plan_ref: LocalObjectReference | None = Field(
        None, description="Pins the CascadePlan of this name: it is applied and no other."
    )
    rollout: Rollout = Field(default_factory=Rollout, description="How plans replace each other.")
    pod_template: PodTemplate | None = Field(None, description="Labels, accounts and priorities of the pods.")
    paused: bool = Field(False, description="Stop reconciling; what runs keeps running.")
    suspend: bool = Field(False, description="Release all GPUs; the plan and its history stay.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.models.all(m, self.models.exists_one(n, n.name == m.name))",
            "model names must be unique: rename one",
            lambda s: len({m.name for m in s.models}) == len(s.models),
            ".models",
        ),
        Rule(
            "self.models.all(m, !has(m.pools) || m.pools.all(p, self.gpus.pools.exists(q, q.name == p)))",
            "models[].pools must name pools of gpus.pools",
            lambda s: all(p in {q.name for q in s.gpus.pools} for m in s.models for p in m.pools or ()),
            ".models",
        ),
        Rule(
            "self.objective.minimize != 'Cost' || self.gpus.pools.all(p, has(p.pricePerGpuHour))",
            "minimize: Cost needs pricePerGpuHour on every pool",
            lambda s: s.objective.minimize != "Cost" or all(p.price_per_gpu_hour for p in s.gpus.pools),
            ".gpus",
        ),
    )


class ObjectMeta(ApiModel):
    """The part of a manifest's metadata that Cascadia reads; the rest is kept as it is."""

    model_config = ApiModel.model_config | {"extra": "allow"}

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1)]
    namespace: str | None = None
    uid: str | None = None
    generation: int | None = None
    annotations: dict[str, str] | None = None


class CascadeDeployment(ApiModel):
    """An ordered family of language models served as one endpoint within a GPU budget and a quality floor."""

    api_version: Literal["cascadia.dev/v1alpha1"]
    kind: Literal["CascadeDeployment"]
    metadata: ObjectMeta
    spec: CascadeDeploymentSpec = Field(description="What the cascade is made of and what it has to achieve.")
    status: dict[str, Any] | None = None

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"size(self.metadata.name) <= {CASCADE_NAME_MAX}",
            f"metadata.name must have at most {CASCADE_NAME_MAX} characters: longer StatefulSet names create no pods",
            lambda c: len(c.metadata.name) <= CASCADE_NAME_MAX,
            "",
        ),
    )
