"""A replica's identity: what makes two replicas the same, and the name of its StatefulSet.

Two replicas are interchangeable when their stage, pool, degrees and *revision* agree. The revision is a
digest of what the user's manifest says about the engine (source, precision, image, arguments), about the
pool's nodes, and about the Secrets that the router needs; whatever the operator itself adds is left out,
so that an upgrade of the operator restarts no engine. Interchangeable replicas differ by a small ordinal.
"""

from __future__ import annotations

from dataclasses import dataclass

from cascadia_api.cascade import CascadeDeployment, Model, Pool
from cascadia_api.cascade.observability import tracing_secrets
from cascadia_api.cascade.scorer import scorer_secrets, secret_file
from cascadia_operator.manifests.naming import digest8
from cascadia_solver.packing import replica_nodes

__all__ = [
    "DEFAULT_RESOURCE",
    "GPUS_PER_NODE",
    "ReplicaIdentity",
    "model_named",
    "pool_named",
    "replica_identity",
    "statefulset_name",
]

GPUS_PER_NODE = 8
"""Where the manifest does not say."""
DEFAULT_RESOURCE = "nvidia.com/gpu"
"""What pods ask for where the pool does not say."""


@dataclass(frozen=True, slots=True)
class ReplicaIdentity:
    """What makes one replica interchangeable with another.

    Attributes:
        stage: Model name.
        pool: GPU pool.
        tensor_parallel: GPUs that share each layer.
        pipeline_parallel: Pipeline stages.
        revision: Digest of the manifest's engine, pool and Secret settings.
    """

    stage: str
    pool: str
    tensor_parallel: int
    pipeline_parallel: int
    revision: str

    @property
    def gpus(self) -> int:
        """GPUs of one such replica."""
        return self.tensor_parallel * self.pipeline_parallel


def model_named(cascade: CascadeDeployment, stage: str) -> Model:
    """The model of a stage.

    Raises:
        KeyError: The manifest has no such model.
    """
    for model in cascade.spec.models:
        if model.name == stage:
            return model
    raise KeyError(stage)


def pool_named(cascade: CascadeDeployment, pool: str) -> Pool:
    """A GPU pool.

    Raises:
        KeyError: The manifest has no such pool.
    """
    for candidate in cascade.spec.gpus.pools:
        if candidate.name == pool:
            return candidate
    raise KeyError(pool)


def replica_identity(
    cascade: CascadeDeployment, stage: str, pool: str, tensor_parallel: int, pipeline_parallel: int
) -> ReplicaIdentity:
    """Identity of a replica of this shape under the manifest as it is now."""
    model, gpus = model_named(cascade, stage), pool_named(cascade, pool)
    settings = {
        "source": model.source.model_dump(mode="json", by_alias=True, exclude_none=True),
        "precision": model.precision or "bf16",
        "engine": model.engine.model_dump(mode="json", by_alias=True, exclude_none=True) if model.engine else {},
        "resource": gpus.resource_name or "",
        "nodeSelector": gpus.node_selector or {},
        "tolerations": [t.model_dump(mode="json", exclude_none=True) for t in gpus.tolerations or ()],
        "nodes": replica_nodes(tensor_parallel, pipeline_parallel, gpus.gpus_per_node or GPUS_PER_NODE),
    }
    keys = cascade.spec.routing.api_keys_secret_ref
    if keys is not None:  # a pod that was started without would go on to serve everybody
        settings["apiKeys"] = keys.model_dump(mode="json", exclude_none=True)
    tls = cascade.spec.routing.tls
    if tls is not None:
        settings["tls"] = tls.secret_ref.name
    files = [secret_file(each) for each in scorer_secrets(cascade.spec.routing.scorer)]
    if files:  # a pod that was started without them could not ask the scorer
        settings["scorerSecrets"] = ",".join(files)
    files = [secret_file(each) for each in tracing_secrets(cascade.spec.routing.tracing)]
    if files:  # a running pod gets no other volumes
        settings["tracingSecrets"] = ",".join(files)
    return ReplicaIdentity(stage, pool, tensor_parallel, pipeline_parallel, digest8(settings))


def statefulset_name(cascade: str, identity: ReplicaIdentity, ordinal: int) -> str:
    """Name of the StatefulSet of the `ordinal`-th interchangeable replica: at most 46 characters.

    The StatefulSet controller appends an 11-character hash for a label of 63, so 52 is the limit.
    """
    key = [
        identity.pool,
        identity.tensor_parallel,
        identity.pipeline_parallel,
        identity.revision,
        ordinal,
    ]
    return f"{cascade}-{identity.stage}-{digest8(key)}"
