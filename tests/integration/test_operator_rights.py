"""What the operator and its routers may do on a real API server, and which Secrets they mount unread."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from cascadia_api.names import (
    PEERS_PORT,
    REPLICA_LABEL,
    STAGE_LABEL,
)
from cascadia_operator import router_port
from cascadia_operator.acknowledgement import HttpAcknowledgement
from cascadia_operator.manifests.router_config import LEADER_ANNOTATION, PEER_SECRET_KEY
from tests.integration.conftest import GpuNodes
from tests.support.control_plane import wait_for
from tests.support.control_plane.ports import free_ports
from tests.support.control_plane.processes import ServerProcess, stop_all
from tests.support.operator_cascades import WAIT_S, Cascades, example
from tests.support.operator_process import OperatorUnderTest, its_own_rights


def test_a_router_takes_the_policy_with_the_rights_that_it_is_given(
    gpu_nodes: GpuNodes,
    cascades: Cascades,
    operator: OperatorUnderTest,
    api_client: client.ApiClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The configuration, account, Role and policy that the operator makes, in the hands of a real router."""
    operator.start()
    cascades.apply(example("pair.yaml"))
    cascades.wait_ready("pair")
    pod = next(pod for pod in cascades.pods("pair") if pod.metadata.labels[STAGE_LABEL] == "small")
    core: Any = client.CoreV1Api(api_client)
    token = core.create_namespaced_service_account_token("pair-router", cascades.namespace, {"spec": {}}).status.token
    secret = core.read_namespaced_secret("pair-peers", cascades.namespace).data[PEER_SECRET_KEY]
    files = {"token": token, "peers": base64.b64decode(secret).decode()}
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    client_port, peers_port, admin_port = free_ports(3)
    changes = {
        "client": f"127.0.0.1:{client_port}",
        "peers": f"127.0.0.1:{peers_port}",
        "admin": f"127.0.0.1:{admin_port}",
        "policyFile": str(tmp_path / "policy.json"),
        "peerSecretFile": str(tmp_path / "peers"),
    }
    config = tmp_path / "router.json"
    config.write_text(json.dumps(json.loads(pod.metadata.annotations[LEADER_ANNOTATION]) | changes))
    environment = {
        "CASCADIA_API_SERVER": api_client.configuration.host,
        "CASCADIA_API_TOKEN_FILE": str(tmp_path / "token"),
        "CASCADIA_API_CA_FILE": str(api_client.configuration.ssl_ca_cert),
    }
    command = [sys.executable, "-m", "cascadia_router", "--config", str(config)]
    router = ServerProcess("router", command, tmp_path / "router.log", environment)
    monkeypatch.setattr(router_port, "ADMIN_PORT", admin_port)
    revision = int(cascades.get("pair")["status"]["plan"]["policyRevision"])
    leader = {"metadata": {"name": pod.metadata.name, "uid": pod.metadata.uid}, "status": {"podIP": "127.0.0.1"}}

    def acknowledged() -> bool:
        router.check()
        return not asyncio.run(HttpAcknowledgement().lacking(revision, [leader]))

    others = {
        each.metadata.labels[REPLICA_LABEL]: f"{each.status.pod_ip}:{PEERS_PORT}"
        for each in cascades.pods("pair")
        if each.metadata.name != pod.metadata.name and each.metadata.name.endswith("-0")
    }
    assert others

    def placed() -> bool:
        router.check()
        with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/cascade/endpoints", timeout=10) as answer:
            seen = {each["replica"]: each["address"] for each in json.load(answer) if each["ready"]}
        return others.items() <= seen.items()

    try:
        wait_for("the router to take the policy", acknowledged, timeout_s=WAIT_S, seen=router.last_lines)
        wait_for("the router to know all replicas' addresses", placed, timeout_s=WAIT_S, seen=router.last_lines)
    finally:
        stop_all([router], timeout_s=10)


def test_it_needs_no_more_rights_than_it_says(
    gpu_nodes: GpuNodes,
    cascades: Cascades,
    operator: OperatorUnderTest,
    api_client: client.ApiClient,
    tmp_path: Path,
) -> None:
    core: Any = client.CoreV1Api(api_client)
    with its_own_rights(operator, api_client, cascades.namespace, tmp_path):
        operator.start()
        pair = example("pair.yaml")
        pair["spec"]["routing"] = {"apiKeysSecretRef": {"name": "pair-keys"}}
        cascades.apply(pair)
        assert cascades.wait_stalled("pair")["reason"] == "SecretNotFound"
        core.create_namespaced_secret(cascades.namespace, {"metadata": {"name": "pair-keys"}})
        cascades.wait_ready("pair")
        pair["spec"]["suspend"] = True
        cascades.apply(pair)
        cascades.wait("the GPUs to be released", lambda: not cascades.replicas("pair") and not cascades.pods("pair"))


def test_secrets_for_the_router_are_waited_for_and_mounted_but_never_read(
    gpu_nodes: GpuNodes, cascades: Cascades, operator: OperatorUnderTest, api_client: client.ApiClient
) -> None:
    core: Any = client.CoreV1Api(api_client)
    operator.start()
    pair = example("pair.yaml")
    pair["spec"]["routing"] = {
        "apiKeysSecretRef": {"name": "pair-keys"},
        "tls": {"secretRef": {"name": "pair-tls"}},
        "rateLimits": {"default": {"requestsPerMinute": 60}},
        "limits": {"bodyBytes": 65536},
    }
    cascades.apply(pair)
    stalled = cascades.wait_stalled("pair")
    assert stalled["reason"] == "SecretNotFound"
    for name, field in (("pair-keys", "apiKeysSecretRef"), ("pair-tls", "tls.secretRef")):
        assert f"spec.routing.{field} names Secret {name}, which is not there" in stalled["message"]
    assert not cascades.replicas("pair")
    assert not [s for s in core.list_namespaced_secret(cascades.namespace).items if s.metadata.name != "pair-peers"]

    for name in ("pair-keys", "pair-tls"):
        core.create_namespaced_secret(
            cascades.namespace, {"metadata": {"name": name}, "stringData": {"team": "sk-0123456789abcdef"}}
        )
    status = cascades.wait_ready("pair")["status"]
    assert status["endpoint"].startswith("https://pair.")
    for pod in cascades.pods("pair"):
        mounted = {v.name: v.secret.secret_name for v in pod.spec.volumes if v.secret is not None}
        assert mounted == {"peers": "pair-peers", "api-keys": "pair-keys", "tls": "pair-tls"}
        (router,) = pod.spec.init_containers
        folders = {m.name: m.mount_path for m in router.volume_mounts if m.name in mounted}
        assert folders == {
            "peers": "/etc/cascadia/peers",
            "api-keys": "/etc/cascadia/keys",
            "tls": "/etc/cascadia/tls",
        }
        (engine,) = pod.spec.containers
        assert not {m.name for m in engine.volume_mounts} & set(mounted)
        config = json.loads(pod.metadata.annotations[LEADER_ANNOTATION])
        assert config["apiKeys"] == ["/etc/cascadia/keys"]
        assert config["tls"] == {"certificate": "/etc/cascadia/tls/tls.crt", "key": "/etc/cascadia/tls/tls.key"}
    policy = json.loads(core.read_namespaced_config_map("pair-policy", cascades.namespace).data["policy.json"])
    assert policy["rateLimits"]["default"] == {"requestsPerMinute": 60, "tokensPerMinute": None}
    assert policy["limits"]["bodyBytes"] == 65536
