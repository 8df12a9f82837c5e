"""The StatefulSet of one replica: its pods are the replica's ranks.

In each pod the router is a native sidecar: it starts before the engine and ends after it. The engine
listens on loopback, which the kubelet cannot reach, so every probe and the drain go to the router's admin
port. A change of the template restarts nothing (``OnDelete``); what has to restart an engine is part of
the replica's identity and makes another StatefulSet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cascadia_api.cascade import CascadeDeployment, Model, Pool
from cascadia_api.cascade.observability import tracing_secrets
from cascadia_api.cascade.scorer import scorer_secrets, secret_file
from cascadia_api.names import ADMIN_PORT, CASCADE_LABEL, CLIENT_PORT, PEERS_PORT, REPLICA_LABEL
from cascadia_operator.manifests import router_config
from cascadia_operator.manifests.engine_argv import MODEL_VOLUME_PATH, POD_INDEX_VARIABLE, engine_command
from cascadia_operator.manifests.naming import (
    PIPELINE_PARALLEL_LABEL,
    POD_INDEX_LABEL,
    POOL_LABEL,
    REVISION_LABEL,
    TENSOR_PARALLEL_LABEL,
    child_metadata,
    peer_secret_name,
    peers_service_name,
    policy_name,
    router_account_name,
    stage_labels,
)
from cascadia_operator.manifests.replica import (
    DEFAULT_RESOURCE,
    GPUS_PER_NODE,
    ReplicaIdentity,
    model_named,
    pool_named,
)
from cascadia_operator.settings import Images
from cascadia_solver.packing import replica_nodes

__all__ = ["leader_host", "statefulset"]

_PROPAGATION_SECONDS = 15
"""Time for routers and kube-proxies to learn that a pod is going."""
_ENGINE_EXIT_SECONDS = 25
"""SGLang looks every few seconds whether its last request has finished before it exits."""
_DISCONNECT_VARIABLE = "SGLANG_REQUEST_STATE_WAIT_TIMEOUT"
"""Seconds between SGLang's looks at who still waits for an answer that comes whole, or for one in its queue (4 by
default): so long it works for a client that has left."""
_MODEL_LOAD_SECONDS = 3600
"""Budget of a start: hundreds of gigabytes of weights may come over the network."""

_MODEL_CACHE_PATH = "/cache/huggingface"
_API_ACCESS_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
_ROUTER_UID = 65532


def leader_host(cascade: CascadeDeployment, stage: str, replica: str) -> str:
    """DNS name of a replica's rank 0."""
    service = peers_service_name(cascade.metadata.name, stage)
    return f"{replica}-0.{service}.{cascade.metadata.namespace or 'default'}.svc"


@dataclass(frozen=True, slots=True)
class _Replica:
    """A replica, and what the manifest says of it."""

    cascade: CascadeDeployment
    identity: ReplicaIdentity
    name: str
    model: Model
    pool: Pool
    nodes: int


def statefulset(cascade: CascadeDeployment, identity: ReplicaIdentity, name: str, images: Images) -> dict[str, Any]:
    """Build the StatefulSet of one replica, under a name by `statefulset_name`."""
    pool = pool_named(cascade, identity.pool)
    nodes = replica_nodes(identity.tensor_parallel, identity.pipeline_parallel, pool.gpus_per_node or GPUS_PER_NODE)
    replica = _Replica(cascade, identity, name, model_named(cascade, identity.stage), pool, nodes)
    labels = stage_labels(cascade.metadata.name, identity.stage) | {
        REPLICA_LABEL: name,
        POOL_LABEL: identity.pool,
        TENSOR_PARALLEL_LABEL: str(identity.tensor_parallel),
        PIPELINE_PARALLEL_LABEL: str(identity.pipeline_parallel),
        REVISION_LABEL: identity.revision,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": child_metadata(cascade, name, labels),
        "spec": {
            "replicas": nodes,
            "serviceName": peers_service_name(cascade.metadata.name, identity.stage),
            "selector": {"matchLabels": {CASCADE_LABEL: cascade.metadata.name, REPLICA_LABEL: name}},
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "template": {"metadata": _pod_metadata(replica, labels), "spec": _pod_spec(replica, images)},
        },
    }


def _pod_metadata(replica: _Replica, labels: dict[str, str]) -> dict[str, Any]:
    cascade = replica.cascade
    template = cascade.spec.pod_template
    policy = f"{cascade.metadata.namespace or 'default'}/{policy_name(cascade.metadata.name)}"
    return {
        # The operator's own labels win: its selectors depend on them.
        "labels": dict((template and template.labels) or {}) | labels,
        "annotations": dict((template and template.annotations) or {})
        | router_config.router_annotations(
            stage=replica.identity.stage,
            replica=replica.name,
            policy=policy,
            nodes=replica.nodes,
            api_keys=cascade.spec.routing.api_keys_secret_ref is not None,
            tls=cascade.spec.routing.tls is not None,
            secrets=bool(scorer_secrets(cascade.spec.routing.scorer) or tracing_secrets(cascade.spec.routing.tracing)),
        ),
    }


def _pod_spec(replica: _Replica, images: Images) -> dict[str, Any]:
    cascade, pool = replica.cascade, replica.pool
    template = cascade.spec.pod_template
    request_timeout = cascade.spec.routing.request_timeout_seconds
    account = (template and template.service_account_name) or router_account_name(cascade.metadata.name)
    spec: dict[str, Any] = {
        "serviceAccountName": account,
        # The router alone gets a token, as a volume: an engine has no business with the API.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": _PROPAGATION_SECONDS + request_timeout + _ENGINE_EXIT_SECONDS,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "initContainers": [_router(cascade, images)],
        "containers": [_engine(replica, images)],
        "volumes": _volumes(replica),
    }
    if pool.node_selector:
        spec["nodeSelector"] = dict(pool.node_selector)
    if pool.tolerations:
        spec["tolerations"] = [t.model_dump(mode="json", exclude_none=True) for t in pool.tolerations]
    if template and template.priority_class_name:
        spec["priorityClassName"] = template.priority_class_name
    if template and template.scheduler_name:
        spec["schedulerName"] = template.scheduler_name
    if template and template.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": reference.name} for reference in template.image_pull_secrets]
    return spec


def _router(cascade: CascadeDeployment, images: Images) -> dict[str, Any]:
    return {
        "name": "router",
        "image": images.router,
        "restartPolicy": "Always",
        "command": ["python", "-m", "cascadia_router"],
        "args": ["--config", f"{router_config.ROUTER_CONFIG_FOLDER}/$({POD_INDEX_VARIABLE}).json"],
        "env": [_pod_index()],
        "ports": [
            {"name": "client", "containerPort": CLIENT_PORT, "protocol": "TCP"},
            {"name": "peers", "containerPort": PEERS_PORT, "protocol": "TCP"},
            {"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"},
        ],
        # The engine starts only after this: it must not wait for the engine.
        "startupProbe": _probe("/healthz", period=1, timeout=1, failures=60),
        "livenessProbe": _probe("/healthz", period=10, timeout=3, failures=3),
        "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"memory": _router_memory(cascade)}},
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _ROUTER_UID,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "router-config", "mountPath": router_config.ROUTER_CONFIG_FOLDER, "readOnly": True},
            {"name": "policy", "mountPath": router_config.POLICY_FOLDER, "readOnly": True},
            {"name": "peers", "mountPath": router_config.PEER_SECRET_FOLDER, "readOnly": True},
            {"name": "api-access", "mountPath": _API_ACCESS_PATH, "readOnly": True},
            *_secret_mounts(cascade),
        ],
    }


def _router_memory(cascade: CascadeDeployment) -> str:
    """Room for the process, its connections, and bodies that are held once as they came and once on their way."""
    return f"{256 + 2 * math.ceil(cascade.spec.routing.limits.buffered_bytes / 2**20)}Mi"


def _engine(replica: _Replica, images: Images) -> dict[str, Any]:
    model, identity, nodes = replica.model, replica.identity, replica.nodes
    gpus = {replica.pool.resource_name or DEFAULT_RESOURCE: str(identity.gpus // nodes)}
    command = engine_command(
        model,
        identity.tensor_parallel,
        identity.pipeline_parallel,
        nodes=nodes,
        leader_host=leader_host(replica.cascade, identity.stage, replica.name),
    )
    return {
        "name": "engine",
        "image": (model.engine.image if model.engine else None) or images.engine,
        "command": command,
        "env": _engine_env(model, nodes),
        "resources": {"requests": gpus, "limits": dict(gpus)},
        # The router answers for the engine, by role: a follower's engine knows /health only.
        "startupProbe": _probe("/engine/started", period=10, timeout=5, failures=_MODEL_LOAD_SECONDS // 10),
        # SGLang's /health generates a token and may take 20 s under load.
        "livenessProbe": _probe("/engine/live", period=30, timeout=25, failures=3),
        "readinessProbe": _probe("/readyz", period=5, timeout=3, failures=2),
        "lifecycle": {"preStop": {"httpGet": {"path": "/drain", "port": ADMIN_PORT, "scheme": "HTTP"}}},
        "securityContext": {"allowPrivilegeEscalation": False},
        "volumeMounts": [
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - the container's, not the host's
            _model_mount(model),
        ],
    }


def _engine_env(model: Model, nodes: int) -> list[dict[str, Any]]:
    """The engine's environment; the user's entries replace the operator's of the same name."""
    entries: dict[str, dict[str, Any]] = {
        _DISCONNECT_VARIABLE: {"name": _DISCONNECT_VARIABLE, "value": "1"},
    }
    if nodes > 1:
        entries[POD_INDEX_VARIABLE] = _pod_index()
    source = model.source.hugging_face
    if source is not None:
        entries["HF_HOME"] = {"name": "HF_HOME", "value": _MODEL_CACHE_PATH}
        if source.token_secret_ref is not None:
            entries["HF_TOKEN"] = _secret_env("HF_TOKEN", source.token_secret_ref.name, source.token_secret_ref.key)
    for variable in (model.engine.env if model.engine else None) or ():
        if variable.secret_key_ref is not None:
            reference = variable.secret_key_ref
            entries[variable.name] = _secret_env(variable.name, reference.name, reference.key)
        else:
            entries[variable.name] = {"name": variable.name, "value": variable.value or ""}
    return list(entries.values())


def _volumes(replica: _Replica) -> list[dict[str, Any]]:
    name = replica.cascade.metadata.name
    ranks = [("0", router_config.LEADER_ANNOTATION)]
    ranks += [(str(rank), router_config.FOLLOWER_ANNOTATION) for rank in range(1, replica.nodes)]
    return [
        {
            "name": "router-config",
            "downwardAPI": {
                "items": [
                    {
                        "path": f"{rank}.json",
                        "fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{annotation}']"},
                    }
                    for rank, annotation in ranks
                ]
            },
        },
        {"name": "policy", "configMap": {"name": policy_name(name), "optional": True}},
        {"name": "peers", "secret": {"secretName": peer_secret_name(name)}},
        {
            "name": "api-access",
            "projected": {
                "sources": [
                    {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                    {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    {
                        "downwardAPI": {
                            "items": [
                                {
                                    "path": "namespace",
                                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                                }
                            ]
                        }
                    },
                ]
            },
        },
        *_secret_volumes(replica.cascade),
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        _model_volume(replica.model),
    ]


def _secret_volumes(cascade: CascadeDeployment) -> list[dict[str, Any]]:
    """The user's Secrets that the router needs: not optional, for without them it would serve strangers."""
    volumes: list[dict[str, Any]] = []
    keys = cascade.spec.routing.api_keys_secret_ref
    if keys is not None:
        secret: dict[str, Any] = {"secretName": keys.name}
        if keys.key is not None:
            secret["items"] = [{"key": keys.key, "path": keys.key}]
        volumes.append({"name": "api-keys", "secret": secret})
    tls = cascade.spec.routing.tls
    if tls is not None:
        volumes.append({"name": "tls", "secret": {"secretName": tls.secret_ref.name}})
    scorers = scorer_secrets(cascade.spec.routing.scorer)
    sources: list[dict[str, Any]] = [
        {"secret": {"name": each.name, "items": [{"key": each.key, "path": secret_file(each)}]}} for each in scorers
    ]
    sources += [  # optional: requests are answered, traced or not
        {"secret": {"name": each.name, "items": [{"key": each.key, "path": secret_file(each)}], "optional": True}}
        for each in tracing_secrets(cascade.spec.routing.tracing)
        if each not in scorers
    ]
    if sources:
        volumes.append({"name": "scorer-secrets", "projected": {"sources": sources}})
    return volumes


def _secret_mounts(cascade: CascadeDeployment) -> list[dict[str, Any]]:
    folders = {
        "api-keys": router_config.API_KEYS_FOLDER,
        "tls": router_config.TLS_FOLDER,
        "scorer-secrets": router_config.SECRETS_FOLDER,
    }
    names = [volume["name"] for volume in _secret_volumes(cascade)]
    return [{"name": name, "mountPath": folders[name], "readOnly": True} for name in names]


def _model_volume(model: Model) -> dict[str, Any]:
    if model.source.pvc is not None:
        return {"name": "model", "persistentVolumeClaim": {"claimName": model.source.pvc.claim_name, "readOnly": True}}
    return {"name": "model", "emptyDir": {}}


def _model_mount(model: Model) -> dict[str, Any]:
    if model.source.pvc is not None:
        return {"name": "model", "mountPath": MODEL_VOLUME_PATH, "readOnly": True}
    return {"name": "model", "mountPath": _MODEL_CACHE_PATH}


def _probe(path: str, *, period: int, timeout: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": ADMIN_PORT, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def _pod_index() -> dict[str, Any]:
    field = {"apiVersion": "v1", "fieldPath": f"metadata.labels['{POD_INDEX_LABEL}']"}
    return {"name": POD_INDEX_VARIABLE, "valueFrom": {"fieldRef": field}}


def _secret_env(name: str, secret: str, key: str) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
