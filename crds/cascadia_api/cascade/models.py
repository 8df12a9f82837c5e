"""The family of models: where their weights come from, and how their engines are run."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from cascadia_api.cascade.references import SecretKeyReference
from cascadia_api.engine_args import OWNED_ENGINE_ARGS, is_owned
from cascadia_api.names import MODEL_NAME_MAX
from cascadia_api.schema import ApiModel, DnsLabel, Rule, Text

__all__ = ["Engine", "EnvironmentVariable", "HuggingFaceSource", "Model", "ModelSource", "Parallelism", "PvcSource"]

ModelName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", min_length=1, max_length=MODEL_NAME_MAX)
]
Argument = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class HuggingFaceSource(ApiModel):
    """Weights from a Hugging Face repository, downloaded by the engine."""

    repo: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$", max_length=128)] = Field(
        description="Repository, as in `meta-llama/Llama-3.1-8B-Instruct`."
    )
    revision: Text | None = Field(None, description="Branch, tag or commit; the default branch where absent.")
    token_secret_ref: SecretKeyReference | None = Field(
        None, description="Secret key with the access token of gated repositories."
    )


class PvcSource(ApiModel):
    """Weights on a PersistentVolumeClaim that many nodes can read."""

    claim_name: DnsLabel = Field(description="PersistentVolumeClaim in the same namespace.")
    path: Text = Field(description="Folder of the model inside the volume.")
    architecture: Text | None = Field(
        None, description="Catalogue name or repository whose architecture the weights have; planning needs it."
    )


class ModelSource(ApiModel):
    """Where a model's weights come from: exactly one of the fields."""

    hugging_face: HuggingFaceSource | None = Field(None, description="A Hugging Face repository.")
    pvc: PvcSource | None = Field(None, description="A folder on a PersistentVolumeClaim.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.huggingFace) != has(self.pvc)",
            "set exactly one of huggingFace and pvc",
            lambda s: (s.hugging_face is None) != (s.pvc is None),
        ),
    )


class Parallelism(ApiModel):
    """Limits on how one replica of the model may be spread over GPUs."""

    max_tensor_parallel: int | None = Field(None, ge=1, le=64, description="Largest tensor-parallel degree.")
    max_pipeline_parallel: int | None = Field(None, ge=1, le=16, description="Largest pipeline-parallel degree.")


class EnvironmentVariable(ApiModel):
    """An environment variable of the engine container."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128)] = Field(
        description="Name of the variable."
    )
    value: Annotated[str, StringConstraints(max_length=1024)] | None = Field(None, description="Its value.")
    secret_key_ref: SecretKeyReference | None = Field(None, description="Secret key that holds its value.")


_OWNED_LIST = "[" + ", ".join(f"'{argument}'" for argument in OWNED_ENGINE_ARGS) + "]"


class Engine(ApiModel):
    """How SGLang is run for one model."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = Field(
        None, description="Container image; the operator's default where absent."
    )
    extra_args: Annotated[list[Argument], Field(max_length=32)] | None = Field(
        None,
        description="More arguments for SGLang; options that the operator sets (parallelism, ports, …) are refused. "
        "--chunked-prefill-size is planned with.",
    )
    env: Annotated[list[EnvironmentVariable], Field(max_length=32)] | None = Field(
        None, description="Environment variables of the engine container."
    )

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.extraArgs) || self.extraArgs.all(a, !a.startsWith('--') || "
            f"!{_OWNED_LIST}.exists(o, o.startsWith(a.split('=')[0])))",
            "extraArgs must not set or abbreviate an option that the operator owns (model, parallelism, host, "
            "port, metrics, keys): remove it, or set the field of the manifest that controls it",
            lambda e: not any(is_owned(a) for a in e.extra_args or ()),
            ".extraArgs",
        ),
    )


class Model(ApiModel):
    """One model of the cascade."""

    name: ModelName = Field(description="Stage name: short, unique, used in object names, metrics and headers.")
    source: ModelSource = Field(description="Where the weights come from.")
    precision: Literal["bf16", "fp16", "fp8", "int8", "int4", "fp4"] | None = Field(
        None, description="Precision of the weights as served; that of the published checkpoint where absent."
    )
    config_json: Annotated[str, StringConstraints(min_length=2, max_length=32_768)] | None = Field(
        None,
        description="The model's own config.json, as text: planning takes the architecture from it. For models that "
        "the catalogue does not have.",
    )
    parallelism: Parallelism | None = Field(None, description="Limits on tensor and pipeline parallelism.")
    min_replicas: int | None = Field(
        None, ge=0, le=256, description="Least number of replicas; 0 or absent lets the planner drop the stage."
    )
    pools: Annotated[list[DnsLabel], Field(max_length=8)] | None = Field(
        None, description="GPU pools that may serve this model; any where absent."
    )
    engine: Engine | None = Field(None, description="Image, arguments and environment of its engine.")
    prefix_cache_hit_percent: int | None = Field(
        None,
        ge=0,
        le=100,
        description="Share of prompt tokens that this model's engines find in their prefix cache, %; "
        "workload.prefixCacheHitPercent where absent.",
    )
