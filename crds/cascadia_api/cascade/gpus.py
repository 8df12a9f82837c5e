"""The GPU budget: pools of GPUs, and the nodes that hold them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from cascadia_api.schema import ApiModel, DecimalString, DnsLabel, LabelMap, LabelValue, Rule, Text

__all__ = ["GpuSpec", "Gpus", "Pool", "Toleration"]


class Toleration(ApiModel):
    """A toleration of the pods of a pool."""

    key: Text | None = Field(None, description="Taint key; all keys where absent and operator is Exists.")
    operator: Literal["Exists", "Equal"] | None = Field(None, description="Equal where absent.")
    value: LabelValue | None = Field(None, description="Taint value for Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Taint effect; all where absent."
    )


class GpuSpec(ApiModel):
    """A GPU in numbers of its datasheet, for kinds that the catalogue does not have."""

    memory_gigabytes: int = Field(ge=1, le=4096, description="Device memory, 10^9 bytes.")
    memory_gigabytes_per_second: int = Field(ge=1, le=1_000_000, description="Memory bandwidth, GB/s.")
    bf16_teraflops: int = Field(ge=1, le=1_000_000, description="Dense 16-bit matrix arithmetic, 10^12/s.")
    fp8_teraflops: int = Field(ge=0, le=1_000_000, description="Dense fp8 matrix arithmetic, 10^12/s; 0: it has none.")
    link_gigabytes_per_second: int = Field(
        ge=1, le=100_000, description="Bandwidth to the other GPUs of the node, one way, GB/s."
    )
    fp4_teraflops: int | None = Field(
        None, ge=0, le=1_000_000, description="Dense fp4 matrix arithmetic, 10^12/s; none where absent."
    )


class Pool(ApiModel):
    """GPUs of one kind."""

    name: DnsLabel = Field(description="Name of the pool, unique in the manifest.")
    gpu: Text = Field(
        description="GPU of the catalogue, as in `H100-SXM-80GB` (docs/cost-model.md lists them), or a name of your "
        "own with gpuSpec."
    )
    gpu_spec: GpuSpec | None = Field(None, description="The GPU's numbers, where the catalogue does not have it.")
    max_gpus: int = Field(ge=1, le=4096, description="Most GPUs that the cascade may take from this pool: a ceiling.")
    gpus_per_node: int | None = Field(None, ge=1, le=16, description="GPUs of one node; 8 where absent.")
    price_per_gpu_hour: DecimalString | None = Field(
        None, description="Price of one GPU for one hour, any currency; needed to minimise Cost."
    )
    resource_name: (
        Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$", max_length=128)] | None
    ) = Field(None, description="Extended resource that pods ask for; `nvidia.com/gpu` where absent.")
    node_selector: LabelMap | None = Field(None, description="Labels of the pool's nodes.")
    tolerations: Annotated[list[Toleration], Field(max_length=16)] | None = Field(
        None, description="Tolerations of pods on this pool."
    )


class Gpus(ApiModel):
    """The GPU budget."""

    pools: Annotated[list[Pool], Field(min_length=1, max_length=8)] = Field(description="One or several kinds of GPU.")

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.pools.all(p, self.pools.exists_one(q, q.name == p.name))",
            "pool names must be unique: rename one",
            lambda g: len({p.name for p in g.pools}) == len(g.pools),
            ".pools",
        ),
    )
