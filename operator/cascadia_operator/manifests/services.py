"""Services: where clients call, where a stage's ready leaders are, and how ranks find each other."""

from __future__ import annotations

from typing import Any

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.names import CASCADE_LABEL, CLIENT_PORT, DISTRIBUTED_INIT_PORT, PEERS_PORT, STAGE_LABEL
from cascadia_operator.manifests.naming import (
    POD_INDEX_LABEL,
    child_metadata,
    common_labels,
    entry_service_name,
    peers_service_name,
    stage_labels,
    stage_service_name,
)

__all__ = ["services"]


def services(cascade: CascadeDeployment) -> list[dict[str, Any]]:
    """Build the entry Service and two Services a stage, for every model of the manifest.

    Dropped stages have theirs too: a plan that takes them up again finds DNS names that resolvers know.
    """
    built = [_entry(cascade)]
    for model in cascade.spec.models:
        built += [_peers(cascade, model.name), _stage(cascade, model.name)]
    return built


def _entry(cascade: CascadeDeployment) -> dict[str, Any]:
    name = cascade.metadata.name
    spec = {
        # Any ready leader will do: a router outside the first live stage relays there.
        "selector": {CASCADE_LABEL: name, POD_INDEX_LABEL: "0"},
        "ports": [_port("http", CLIENT_PORT) | ({"appProtocol": "https"} if cascade.spec.routing.tls else {})],
    }
    labels = common_labels(name) | {"app.kubernetes.io/component": "entry"}
    return _service(child_metadata(cascade, entry_service_name(name), labels), spec)


def _peers(cascade: CascadeDeployment, stage: str) -> dict[str, Any]:
    name = cascade.metadata.name
    spec = {
        "clusterIP": "None",
        # Ranks look each other up before any of them is ready.
        "publishNotReadyAddresses": True,
        "selector": {CASCADE_LABEL: name, STAGE_LABEL: stage},
        "ports": [_port("peers", PEERS_PORT), _port("dist-init", DISTRIBUTED_INIT_PORT)],
    }
    return _service(child_metadata(cascade, peers_service_name(name, stage), stage_labels(name, stage)), spec)


def _stage(cascade: CascadeDeployment, stage: str) -> dict[str, Any]:
    name = cascade.metadata.name
    spec = {
        "clusterIP": "None",
        "selector": {CASCADE_LABEL: name, STAGE_LABEL: stage, POD_INDEX_LABEL: "0"},
        "ports": [_port("peers", PEERS_PORT)],
    }
    return _service(child_metadata(cascade, stage_service_name(name, stage), stage_labels(name, stage)), spec)


def _service(metadata: dict[str, Any], spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def _port(name: str, port: int) -> dict[str, Any]:
    return {"name": name, "port": port, "protocol": "TCP", "targetPort": port}
