"""The operator against a real API server, scheduler and controllers; KWOK plays the kubelets."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest
from kubernetes import client

from cascadia_api.names import (
    GROUP,
    REPLICA_LABEL,
    STAGE_LABEL,
)
from tests.integration.conftest import GpuNodes
from tests.support.control_plane import wait_for
from tests.support.operator_cascades import EXAMPLES, WAIT_S, Cascades, example, gpus, planned_shapes, shapes
from tests.support.operator_cases import LARGE, SMALL, cascade_document, plan
from tests.support.operator_process import OperatorUnderTest


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
    # A lower floor could do without the largest model, for so much less that all would be planned anew.
    chat["spec"]["objective"]["minQuality"] = "0.85"
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
