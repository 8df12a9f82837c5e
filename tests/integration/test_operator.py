"""The operator against a real API server, scheduler and controllers; KWOK plays the kubelets."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from cascadia_api.cascade import CascadeDeployment
from cascadia_api.names import (
    CASCADE_LABEL,
    GROUP,
    PEERS_PORT,
    PLAN_PLURAL,
    PLURAL,
    REPLICA_LABEL,
    STAGE_LABEL,
    VERSION,
)
from cascadia_api.plan import CascadePlan, Plan
from cascadia_operator import acknowledgement
from cascadia_operator.acknowledgement import HttpAcknowledgement
from cascadia_operator.manifests.operator_rbac import operator_rules
from cascadia_operator.manifests.plan_object import plan_object
from cascadia_operator.manifests.rendering import rendered
from cascadia_operator.manifests.router_config import LEADER_ANNOTATION, PEER_SECRET_KEY
from cascadia_operator.settings import Images
from tests.integration.conftest import GpuNodes
from tests.support.control_plane import ControlPlane, crash, recover, wait_for
from tests.support.control_plane.ports import free_ports
from tests.support.control_plane.processes import ServerProcess, stop_all
from tests.support.operator_cases import LARGE, SMALL, cascade, cascade_document, plan
from tests.support.operator_process import OperatorUnderTest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WAIT_S = 60.0


class Cascades:
    """One namespace as a user sees it."""

    def __init__(self, api: client.ApiClient, namespace: str, operator: OperatorUnderTest) -> None:
        self.namespace = namespace
        self._custom = client.CustomObjectsApi(api)
        self._apps: Any = client.AppsV1Api(api)
        self._core: Any = client.CoreV1Api(api)
        self._rbac: Any = client.RbacAuthorizationV1Api(api)
        self._operator = operator

    def apply(self, manifest: dict[str, Any]) -> None:
        self._custom.patch_namespaced_custom_object(
            GROUP,
            VERSION,
            self.namespace,
            PLURAL,
            manifest["metadata"]["name"],
            manifest | {"metadata": {"name": manifest["metadata"]["name"], "namespace": self.namespace}},
            field_manager="user",
            _content_type="application/apply-patch+yaml",
        )

    def calibration(self, name: str, file: Path) -> None:
        body = {"metadata": {"name": name}, "data": {file.name: file.read_text()}}
        self._core.create_namespaced_config_map(self.namespace, body)

    def get(self, name: str) -> dict[str, Any]:
        return self._custom.get_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name)

    def delete(self, name: str) -> None:
        self._custom.delete_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, name)

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        found = self.get(name)
        status = found.get("status") or {}
        if status.get("observedGeneration") != found["metadata"]["generation"]:
            return {}
        return next((c for c in status.get("conditions") or () if c["type"] == kind), {})

    def wait(self, what: str, probe: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
        def alive() -> Any:
            self._operator.check()
            return probe()

        return wait_for(what, alive, timeout_s=timeout_s, seen=self._operator.log)

    def wait_ready(self, name: str) -> dict[str, Any]:
        self.wait(f"{name} to be Ready", lambda: self.condition(name, "Ready").get("status") == "True")
        return self.get(name)

    def wait_stalled(self, name: str) -> dict[str, Any]:
        return self.wait(f"{name} to be Stalled", lambda: self.condition(name, "Stalled"))

    def replicas(self, name: str) -> dict[str, Any]:
        found = self._apps.list_namespaced_stateful_set(self.namespace, label_selector=f"{CASCADE_LABEL}={name}")
        return {s.metadata.name: s for s in found.items}

    def pods(self, name: str) -> list[Any]:
        return self._core.list_namespaced_pod(self.namespace, label_selector=f"{CASCADE_LABEL}={name}").items

    def plans(self) -> list[dict[str, Any]]:
        return self._custom.list_namespaced_custom_object(GROUP, VERSION, self.namespace, PLAN_PLURAL)["items"]

    def store_plan(self, name: str, made: Plan) -> None:
        """Store a plan as somebody would who has it in Git: owned by nobody, without labels."""
        document = plan_object(cascade(cascade_document([SMALL, LARGE])), made, inputs="", trigger="Manual")
        body = document | {"metadata": {"name": name, "namespace": self.namespace}}
        self._custom.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLAN_PLURAL, body)

    def plan_in_force(self, name: str) -> dict[str, Any]:
        in_force = self.get(name)["status"]["plan"]["name"]
        return next(plan for plan in self.plans() if plan["metadata"]["name"] == in_force)

    def leftovers(self) -> list[str]:
        """Everything in the namespace that a cascade may have made."""
        lists = [
            self._apps.list_namespaced_stateful_set,
            self._core.list_namespaced_pod,
            self._core.list_namespaced_service,
            self._core.list_namespaced_config_map,
            self._core.list_namespaced_secret,
            self._core.list_namespaced_service_account,
            self._rbac.list_namespaced_role,
            self._rbac.list_namespaced_role_binding,
        ]
        names = [
            f"{item.metadata.name}"
            for found in lists
            for item in found(self.namespace).items
            if item.metadata.name not in ("default", "kube-root-ca.crt", "chat-calibration")
        ]
        return names + [plan["metadata"]["name"] for plan in self.plans()]

    def endpoints_of(self, service: str) -> int:
        slices: Any = client.DiscoveryV1Api(self._core.api_client)
        found = slices.list_namespaced_endpoint_slice(
            self.namespace, label_selector=f"kubernetes.io/service-name={service}"
        )
        return sum(bool(endpoint.conditions.ready) for one in found.items for endpoint in one.endpoints or ())


@pytest.fixture
def operator(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[OperatorUnderTest]:
    running = OperatorUnderTest(control_plane, namespace, tmp_path / "operator.log")
    yield running
    running.stop()


@pytest.fixture
def cascades(api_client: client.ApiClient, namespace: str, operator: OperatorUnderTest) -> Cascades:
    return Cascades(api_client, namespace, operator)


def example(name: str) -> dict[str, Any]:
    return next(d for d in yaml.safe_load_all((EXAMPLES / name).read_text()) if d["kind"] == "CascadeDeployment")


def shapes(statefulsets: dict[str, Any]) -> Counter[tuple[str, str, str]]:
    keys = (STAGE_LABEL, f"{GROUP}/tensor-parallel", f"{GROUP}/pipeline-parallel")
    return Counter(tuple(s.metadata.labels[key] for key in keys) for s in statefulsets.values())  # type: ignore[misc]


def planned_shapes(stored: dict[str, Any]) -> Counter[tuple[str, str, str]]:
    plan = CascadePlan.model_validate(stored).spec.plan
    wanted: Counter[tuple[str, str, str]] = Counter()
    for stage in plan.live_stages:
        for group in stage.replicas:
            wanted[stage.name, str(group.tensor_parallel), str(group.pipeline_parallel)] += group.count
    return wanted


def gpus(pod: Any) -> int:
    return int(pod.spec.containers[0].resources.limits["nvidia.com/gpu"])


def test_the_example_from_apply_to_deletion(
    gpu_nodes: GpuNodes, cascades: Cascades, operator: OperatorUnderTest, api_client: client.ApiClient
) -> None:
    gpu_nodes.add("gpu-2")
    gpu_nodes.add("gpu-3")
    chat = example("chat.yaml")
    cascades.calibration("chat-calibration", EXAMPLES / "chat-calibration.jsonl")
    operator.start()
    cascades.apply(chat)

    # Applied: the planned replicas, with the planned degrees and GPUs, scheduled and ready.
    status = cascades.wait_ready("chat")["status"]
    (stored,) = cascades.plans()
    before = cascades.replicas("chat")
    assert status["plan"]["name"] == stored["metadata"]["name"]
    assert shapes(before) == planned_shapes(stored)
    pods = cascades.pods("chat")
    for pod in pods:
        statefulset = before[pod.metadata.labels[REPLICA_LABEL]]
        labels = statefulset.metadata.labels
        degree = int(labels[f"{GROUP}/tensor-parallel"]) * int(labels[f"{GROUP}/pipeline-parallel"])
        assert gpus(pod) * statefulset.spec.replicas == degree
    held: Counter[str] = Counter()
    for pod in pods:
        assert pod.spec.node_name in gpu_nodes.names
        held[pod.spec.node_name] += gpus(pod)
    assert max(held.values()) <= 8
    assert sum(held.values()) == sum(stage["gpus"] for stage in status["plan"]["stages"])
    assert [s["ready"] for s in status["stages"]] == [s["desired"] for s in status["stages"]]
    cascades.wait("the entry Service to have every leader", lambda: cascades.endpoints_of("chat") == len(before))
    assert {m.manager for s in before.values() for m in s.metadata.managed_fields if m.operation == "Apply"} == {
        "cascadia-operator"
    }
    assert not cascades.get("chat")["metadata"].get("finalizers")

    # The routers may watch their policy, and nothing else.
    review: Any = client.AuthorizationV1Api(api_client)

    def allowed(verb: str, resource: str, name: str) -> bool:
        attributes = {"namespace": cascades.namespace, "verb": verb, "resource": resource, "name": name}
        user = f"system:serviceaccount:{cascades.namespace}:chat-router"
        body = {"spec": {"user": user, "resourceAttributes": attributes}}
        return bool(review.create_subject_access_review(body).status.allowed)

    assert allowed("watch", "configmaps", "chat-policy")
    assert not allowed("get", "configmaps", "chat-calibration")
    assert not allowed("get", "secrets", "chat-peers")
    assert not allowed("update", "configmaps", "chat-policy")

    # Changed: another plan; what both plans have stays as it is.
    chat["spec"]["objective"]["minQuality"] = "0.80"
    cascades.apply(chat)
    cascades.wait_ready("chat")
    assert len(cascades.plans()) == 2
    after = cascades.replicas("chat")
    stored = next(
        p for p in cascades.plans() if p["metadata"]["name"] == cascades.get("chat")["status"]["plan"]["name"]
    )
    assert shapes(after) == planned_shapes(stored)
    assert stored["spec"]["trigger"] == "SpecChanged"
    both = shapes(before) & shapes(after)
    kept = {n for n, s in after.items() if n in before and s.metadata.uid == before[n].metadata.uid}
    assert len(kept) == both.total()
    assert {after[name].metadata.generation for name in kept} == {1}

    # Suspended: no GPU is held, the plans stay.
    chat["spec"]["suspend"] = True
    cascades.apply(chat)
    cascades.wait("the GPUs to be released", lambda: not cascades.replicas("chat") and not cascades.pods("chat"))
    assert len(cascades.plans()) == 2

    # Deleted: nothing is left.
    chat["spec"]["suspend"] = False
    cascades.apply(chat)
    cascades.wait_ready("chat")
    cascades.delete("chat")
    wait_for("everything to be gone", lambda: not cascades.leftovers(), timeout_s=WAIT_S, seen=cascades.leftovers)


def _kill_soon_after(
    moment: Callable[[], Any], cascades: Cascades, operator: OperatorUnderTest, jitter: random.Random
) -> None:
    operator.start()
    cascades.wait("the moment to kill at", moment)
    time.sleep(jitter.uniform(0, 0.3))
    operator.kill()


@pytest.mark.timeout(300)
def test_killed_at_ten_moments_it_ends_where_it_would_have_ended(
    gpu_nodes: GpuNodes, cascades: Cascades, operator: OperatorUnderTest
) -> None:
    gpu_nodes.add("gpu-2")
    gpu_nodes.add("gpu-3")
    chat = example("chat.yaml")
    del chat["spec"]["calibration"]
    jitter = random.Random(20261121)
    cascades.apply(chat)
    first: list[Callable[[], Any]] = [
        lambda: "looking after" in operator.log(),
        lambda: cascades.condition("chat", "Planned"),
        cascades.plans,
        lambda: cascades.replicas("chat"),
        lambda: cascades.pods("chat"),
        lambda: cascades.condition("chat", "Transitioning").get("reason") == "Done",
    ]
    for moment in first:
        _kill_soon_after(moment, cascades, operator, jitter)
    before = set(cascades.replicas("chat"))
    # A plan that shares some replicas at most, and whatever the planner chose, not those of its largest stage.
    chosen = max(cascades.plan_in_force("chat")["spec"]["plan"]["stages"], key=lambda stage: stage["gpus"])
    taken = {group["tensorParallel"] for group in chosen["replicas"]}
    reviewed: dict[str, list[tuple[int, int, int]]] = {
        "small": [(1, 1, 3)],
        "medium": [(2, 1, 2), (8, 1, 1)],
        "large": [(8, 1, 2)],
    }
    reviewed[chosen["name"]] = [(4, 1, 2)] if 8 in taken else [(8, 1, 1)]
    other = plan(reviewed)
    cascades.store_plan("reviewed", other)
    chat["spec"]["planRef"] = {"name": "reviewed"}
    cascades.apply(chat)
    second: list[Callable[[], Any]] = [
        lambda: cascades.plan_in_force("chat")["metadata"]["name"] == "reviewed",
        lambda: set(cascades.replicas("chat")) - before,
        lambda: len(set(cascades.replicas("chat")) - before) >= 4,
        lambda: before - set(cascades.replicas("chat")),
    ]
    for moment in second:
        _kill_soon_after(moment, cascades, operator, jitter)
    operator.start()
    found = cascades.wait_ready("chat")
    stored = cascades.plan_in_force("chat")
    manifest = CascadeDeployment.model_validate({k: v for k, v in found.items() if k != "status"})
    wanted = rendered(manifest, CascadePlan.model_validate(stored).spec.plan, Images())
    replicas = cascades.replicas("chat")
    # As many of each kind as an undisturbed roll-out makes, no duplicate, no orphan.
    expected: Counter[tuple[str, str, str]] = Counter(
        (
            m["metadata"]["labels"][STAGE_LABEL],
            m["metadata"]["labels"][f"{GROUP}/tensor-parallel"],
            m["metadata"]["labels"][f"{GROUP}/pipeline-parallel"],
        )
        for m in wanted
        if m["kind"] == "StatefulSet"
    )
    assert shapes(replicas) == expected
    assert {pod.metadata.labels[REPLICA_LABEL] for pod in cascades.pods("chat")} == set(replicas)
    others = {m["metadata"]["name"] for m in wanted if m["kind"] != "StatefulSet"}
    plans = {p["metadata"]["name"] for p in cascades.plans()}
    assert len(plans) == 2
    pods = {pod.metadata.name for pod in cascades.pods("chat")}
    assert set(cascades.leftovers()) == others | set(replicas) | pods | plans | {"chat-peers"}


def test_a_crash_and_its_end(
    gpu_nodes: GpuNodes, cascades: Cascades, operator: OperatorUnderTest, api_client: client.ApiClient
) -> None:
    operator.start()
    cascades.apply(example("pair.yaml"))
    cascades.wait_ready("pair")
    before = {n: s.metadata.uid for n, s in cascades.replicas("pair").items()}
    victim = next(p.metadata.name for p in cascades.pods("pair") if "-large-" in p.metadata.name)
    crash(api_client, cascades.namespace, victim)
    cascades.wait("pair not to be Ready", lambda: cascades.condition("pair", "Ready").get("status") == "False")
    recover(api_client, cascades.namespace, victim)
    cascades.wait_ready("pair")
    assert {n: s.metadata.uid for n, s in cascades.replicas("pair").items()} == before


def test_another_quality_target_changes_the_policy_and_no_replica(
    gpu_nodes: GpuNodes, cascades: Cascades, operator: OperatorUnderTest, api_client: client.ApiClient
) -> None:
    gpu_nodes.add("gpu-2")
    gpu_nodes.add("gpu-3")
    core: Any = client.CoreV1Api(api_client)
    chat = example("chat.yaml")
    cascades.calibration("chat-calibration", EXAMPLES / "chat-calibration.jsonl")
    operator.start()
    cascades.apply(chat)
    cascades.wait_ready("chat")
    first = cascades.plan_in_force("chat")

    def running() -> dict[str, Any]:
        """What a restart or a roll-out would change."""
        found = {n: (s.metadata.uid, s.metadata.generation) for n, s in cascades.replicas("chat").items()}
        return found | {p.metadata.name: (p.metadata.uid, p.metadata.generation) for p in cascades.pods("chat")}

    def policy() -> dict[str, Any]:
        return json.loads(core.read_namespaced_config_map("chat-policy", cascades.namespace).data["policy.json"])

    replicas, before = running(), policy()
    chat["spec"]["objective"]["minQuality"] = "0.83"
    cascades.apply(chat)
    status = cascades.wait_ready("chat")["status"]
    second = cascades.plan_in_force("chat")
    assert second["metadata"]["name"] != first["metadata"]["name"]
    assert second["spec"]["plan"]["replicasOf"]["planId"] == first["spec"]["plan"]["planId"]
    assert "thresholds alone, no replica moves" in status["lastReplan"]["reason"]
    assert running() == replicas
    after = policy()
    assert after["policyRevision"] > before["policyRevision"]
    assert after["planId"] == second["spec"]["plan"]["planId"]
    assert [s["threshold"] for s in after["stages"]] != [s["threshold"] for s in before["stages"]]
    endpoints = [[[e["replica"] for e in s["endpoints"]] for s in p["stages"]] for p in (before, after)]
    assert endpoints[0] == endpoints[1]


def test_a_pinned_plan_over_several_nodes(gpu_nodes: GpuNodes, cascades: Cascades, operator: OperatorUnderTest) -> None:
    gpu_nodes.add("gpu-2")
    document = cascade_document([SMALL, LARGE], planRef={"name": "reviewed"}, uid=None)
    cascades.store_plan("reviewed", plan({"small": [(1, 1, 1)], "large": [(8, 2, 1)]}))
    operator.start()
    cascades.apply(document)
    status = cascades.wait_ready("chat")["status"]
    assert status["plan"]["name"] == "reviewed"
    assert [p["metadata"]["name"] for p in cascades.plans()] == ["reviewed"]
    ranks = [pod for pod in cascades.pods("chat") if pod.metadata.labels[STAGE_LABEL] == "large"]
    assert sorted(pod.metadata.labels["apps.kubernetes.io/pod-index"] for pod in ranks) == ["0", "1"]
    assert [gpus(pod) for pod in ranks] == [8, 8]
    assert len({pod.spec.node_name for pod in ranks}) == 2
    # Clients and other stages reach leaders only; the ranks find each other.
    cascades.wait("the leaders to be called", lambda: cascades.endpoints_of("chat") == 2)
    cascades.wait("the leader of large to be called", lambda: cascades.endpoints_of("chat-large-stage") == 1)
    cascades.wait("both ranks to find each other", lambda: cascades.endpoints_of("chat-large-peers") == 2)


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
    monkeypatch.setattr(acknowledgement, "ADMIN_PORT", admin_port)
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
    namespace = cascades.namespace
    rbac: Any = client.RbacAuthorizationV1Api(api_client)
    core: Any = client.CoreV1Api(api_client)
    rbac.create_cluster_role({"metadata": {"name": namespace}, "rules": operator_rules()})
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": namespace}
    rbac.create_cluster_role_binding({"metadata": {"name": namespace}, "roleRef": role, "subjects": [subject]})
    try:
        core.create_namespaced_service_account(namespace, {"metadata": {"name": "operator"}})
        token = core.create_namespaced_service_account_token("operator", namespace, {"spec": {}}).status.token
        settings = yaml.safe_load(operator.kubeconfig.read_text())
        settings["users"][0]["user"] = {"token": token}
        operator.kubeconfig = tmp_path / "kubeconfig"
        operator.kubeconfig.write_text(yaml.safe_dump(settings))
        operator.start()
        pair = example("pair.yaml")
        pair["spec"]["routing"] = {"apiKeysSecretRef": {"name": "pair-keys"}}
        cascades.apply(pair)
        assert cascades.wait_stalled("pair")["reason"] == "SecretNotFound"
        core.create_namespaced_secret(namespace, {"metadata": {"name": "pair-keys"}})
        cascades.wait_ready("pair")
        pair["spec"]["suspend"] = True
        cascades.apply(pair)
        cascades.wait("the GPUs to be released", lambda: not cascades.replicas("pair") and not cascades.pods("pair"))
        assert "orbidden" not in operator.log()
        assert "permission" not in operator.log()
    finally:
        rbac.delete_cluster_role_binding(namespace)
        rbac.delete_cluster_role(namespace)


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


def test_infeasible_is_stalled_with_numbers_until_it_is_not(
    no_nodes: GpuNodes, cascades: Cascades, operator: OperatorUnderTest
) -> None:
    no_nodes.add("half-empty", 2)
    operator.start()
    pair = example("pair.yaml")
    cascades.apply(pair)
    stalled = cascades.wait_stalled("pair")
    assert stalled["reason"] == "InsufficientGPUs"
    assert re.search(r"GPUs of pool h100: needs \d+, has 2", stalled["message"])
    assert cascades.condition("pair", "Planned")["status"] == "False"
    no_nodes.add("gpu-0")
    before = cascades.wait_ready("pair")["status"]["plan"]["id"]

    pair["spec"]["objective"]["minQuality"] = "0.99"
    cascades.apply(pair)
    stalled = cascades.wait_stalled("pair")
    assert stalled["reason"] == "QualityOutOfReach"
    assert re.search(r"needs 0\.99, has 0\.\d+", stalled["message"])
    found = cascades.get("pair")["status"]
    assert found["plan"]["id"] == before
    assert len(cascades.replicas("pair")) == sum(s["desired"] for s in found["stages"])


def test_invalid_manifests_are_refused(cascades: Cascades) -> None:
    pair = example("pair.yaml")
    pair["spec"]["models"][0]["engine"] = {"extraArgs": ["--tp-size=4"]}
    with pytest.raises(client.ApiException) as refused:
        cascades.apply(pair)
    assert refused.value.status == 422
    assert "extraArgs must not set or abbreviate" in str(refused.value.body)
    with pytest.raises(client.ApiException):
        cascades.get("pair")
