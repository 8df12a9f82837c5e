"""`CascadeDeployment`: what a user writes.

The custom resource definition is generated from these models (`crd`), so the field docs are what
``kubectl explain`` shows. Defaults are given in the schema only outside lists: a defaulted field inside
a list item would show as a permanent difference in GitOps tools.
"""

from __future__ import annotations

from cascadia_api.cascade.access import KeyRateLimit, RateLimit, RateLimits, RequestLimits, Tls
from cascadia_api.cascade.deployment import (
    CascadeDeployment,
    CascadeDeploymentSpec,
    ObjectMeta,
    PodTemplate,
    Replanning,
    Rollout,
)
from cascadia_api.cascade.gpus import Gpus, GpuSpec, Pool, Toleration
from cascadia_api.cascade.models import (
    Engine,
    EnvironmentVariable,
    HuggingFaceSource,
    Model,
    ModelSource,
    Parallelism,
    PvcSource,
)
from cascadia_api.cascade.objective import LatencyTarget, Objective
from cascadia_api.cascade.observability import AccessLog, Tracing
from cascadia_api.cascade.references import ApiKeysReference, LocalObjectReference, SecretKeyReference, SecretName
from cascadia_api.cascade.routing import Balancing, Overload, Routing, ShadowSampling, Streaming
from cascadia_api.cascade.scorer import CalibrationPoint, HttpScorer, Judge, Scorer, ScorerPart, SelfVerify, Validator
from cascadia_api.cascade.workload import (
    Calibration,
    CapabilityNeeds,
    Corrections,
    Planning,
    TokenLengths,
    Workload,
)

__all__ = [
    "AccessLog",
    "ApiKeysReference",
    "Balancing",
    "Calibration",
    "CalibrationPoint",
    "CapabilityNeeds",
    "CascadeDeployment",
    "CascadeDeploymentSpec",
    "Corrections",
    "Engine",
    "EnvironmentVariable",
    "GpuSpec",
    "Gpus",
    "HttpScorer",
    "HuggingFaceSource",
    "Judge",
    "KeyRateLimit",
    "LatencyTarget",
    "LocalObjectReference",
    "Model",
    "ModelSource",
    "ObjectMeta",
    "Objective",
    "Overload",
    "Parallelism",
    "Planning",
    "PodTemplate",
    "Pool",
    "PvcSource",
    "RateLimit",
    "RateLimits",
    "Replanning",
    "RequestLimits",
    "Rollout",
    "Routing",
    "Scorer",
    "ScorerPart",
    "SecretKeyReference",
    "SecretName",
    "SelfVerify",
    "ShadowSampling",
    "Streaming",
    "Tls",
    "TokenLengths",
    "Toleration",
    "Tracing",
    "Validator",
    "Workload",
]
