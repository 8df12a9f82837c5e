"""The harness on the real thing: what the other integration tests take for granted about their control plane."""

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from kubernetes import client

from tests.support.control_plane import (
    ControlPlane,
    GpuNodes,
    crash,
    recover,
    wait_for,
)

ENGINE_IMAGE = "engine.example/engine:1"
ROUTER_IMAGE = "router.example/router:1"


@pytest.fixture
def core(api_client: client.ApiClient) -> Any:
    return client.CoreV1Api(api_client)


@pytest.fixture
def apps(api_client: client.ApiClient) -> Any:
    return client.AppsV1Api(api_client)


def pod_spec(gpus: int) -> dict[str, Any]:
    """A pod as the operator makes them: an engine, and a router as its native sidecar."""
    resources = {"limits": {"nvidia.com/gpu": str(gpus)}} if gpus else {}
    probe = {"httpGet": {"path": "/readyz", "port": 8081}}
    return {
        "initContainers": [
            {"name": "router", "image": ROUTER_IMAGE, "restartPolicy": "Always", "readinessProbe": probe},
            {"name": "fetch", "image": ROUTER_IMAGE},
        ],
        "containers": [{"name": "engine", "image": ENGINE_IMAGE, "resources": resources, "startupProbe": probe}],
    }


def pod(name: str, gpus: int = 0, **annotations: str) -> dict[str, Any]:
    prefixed = {f"test.cascadia.dev/{key.replace('_', '-')}": value for key, value in annotations.items()}
    return {"metadata": {"name": name, "annotations": prefixed}, "spec": pod_spec(gpus)}


def stateful_set(name: str, replicas: int, gpus: int) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "serviceName": name,
            "podManagementPolicy": "Parallel",
            "updateStrategy": {"type": "OnDelete"},
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod_spec(gpus)},
        },
    }


def condition(seen: Any, kind: str) -> Any:
    return next((c for c in seen.status.conditions or [] if c.type == kind), None)


def is_ready(seen: Any) -> bool:
    return any(c.type == "Ready" and c.status == "True" for c in seen.status.conditions or [])


def wait_for_pod(
    core: Any, namespace: str, name: str, what: str, test: Callable[[Any], bool], timeout_s: float = 15
) -> Any:
    def probe() -> Any:
        seen = core.read_namespaced_pod(name, namespace)
        return seen if test(seen) else None

    def last() -> object:
        return core.read_namespaced_pod(name, namespace).status

    return wait_for(f"pod {name} {what}", probe, timeout_s=timeout_s, seen=last)


def test_everything_runs_and_the_server_is_ready(control_plane: ControlPlane, api_client: client.ApiClient) -> None:
    assert set(control_plane.pids) == {"etcd", "apiserver", "controller-manager", "scheduler", "kwok"}
    ready = api_client.call_api("GET", f"{api_client.configuration.host}/readyz")
    assert ready.status == 200
    assert client.VersionApi(api_client).get_code().git_version.startswith("v1.")


def test_kubectl_reads_the_kubeconfig(control_plane: ControlPlane) -> None:
    command = [str(control_plane.binaries["kubectl"]), "version", "-o", "yaml"]
    environment = {"KUBECONFIG": str(control_plane.kubeconfig), "HOME": str(control_plane.folder)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=True)
    versions = yaml.safe_load(result.stdout)
    # Built without its version it would call itself v0.0.0-master.
    assert all(versions[key]["gitVersion"].startswith("v1.") for key in ("clientVersion", "serverVersion"))


def test_pod_with_gpus_lands_on_a_node_and_its_statuses_look_real(
    core: Any, namespace: str, gpu_nodes: GpuNodes
) -> None:
    core.create_namespaced_pod(namespace, pod("fits", gpus=8))
    seen = wait_for_pod(core, namespace, "fits", "to be Ready", is_ready)
    assert seen.spec.node_name in gpu_nodes.names
    assert seen.status.phase == "Running"
    assert seen.status.pod_ip.startswith("10.244.")
    [engine] = seen.status.container_statuses
    router, fetch = seen.status.init_container_statuses
    assert (engine.name, engine.ready, engine.started, engine.restart_count) == ("engine", True, True, 0)
    assert engine.state.running is not None
    assert (router.name, router.ready, router.started, router.restart_count) == ("router", True, True, 0)
    assert router.state.running is not None
    assert (fetch.name, fetch.ready, fetch.state.terminated.exit_code) == ("fetch", True, 0)


def test_pod_too_large_for_every_node_is_refused_by_name_of_the_resource(
    core: Any, namespace: str, gpu_nodes: GpuNodes
) -> None:
    core.create_namespaced_pod(namespace, pod("too-large", gpus=9))

    def refused(seen: Any) -> bool:
        scheduled = condition(seen, "PodScheduled")
        return bool(scheduled and scheduled.reason == "Unschedulable")

    seen = wait_for_pod(core, namespace, "too-large", "to be refused", refused)
    assert "Insufficient nvidia.com/gpu" in condition(seen, "PodScheduled").message
    selector = "reason=FailedScheduling,involvedObject.name=too-large"
    events = wait_for(
        "the event", lambda: core.list_namespaced_event(namespace, field_selector=selector).items, timeout_s=10
    )
    assert "Insufficient nvidia.com/gpu" in events[0].message
    gpu_nodes.add("gpu-large", gpus=16)
    wait_for_pod(core, namespace, "too-large", "to be Ready on the new node", is_ready)


def test_gpus_are_given_out_once(core: Any, namespace: str, gpu_nodes: GpuNodes) -> None:
    for index in range(5):
        core.create_namespaced_pod(namespace, pod(f"four-{index}", gpus=4))

    def placed() -> dict[str, int]:
        names = [seen.spec.node_name for seen in core.list_namespaced_pod(namespace).items if is_ready(seen)]
        return {name: names.count(name) for name in names}

    wait_for("four of five pods", lambda: placed() == {"gpu-0": 2, "gpu-1": 2}, timeout_s=15, seen=placed)
    core.delete_namespaced_pod("four-0", namespace)
    wait_for("room for the fifth", lambda: len(core.list_namespaced_pod(namespace).items) == 4, timeout_s=15)
    wait_for("the fifth pod", lambda: placed() == {"gpu-0": 2, "gpu-1": 2}, timeout_s=15, seen=placed)


def test_stateful_set_of_two_gets_ready_and_goes(core: Any, apps: Any, namespace: str, gpu_nodes: GpuNodes) -> None:
    apps.create_namespaced_stateful_set(namespace, stateful_set("ranks", replicas=2, gpus=8))

    def ready_replicas() -> int:
        return apps.read_namespaced_stateful_set("ranks", namespace).status.ready_replicas or 0

    wait_for("two ready replicas", lambda: ready_replicas() == 2, timeout_s=20, seen=ready_replicas)
    nodes = {seen.spec.node_name for seen in core.list_namespaced_pod(namespace).items}
    assert nodes == {"gpu-0", "gpu-1"}
    apps.delete_namespaced_stateful_set("ranks", namespace)
    wait_for("its pods to go", lambda: not core.list_namespaced_pod(namespace).items, timeout_s=15)


def test_load_delay_is_honoured_and_survives_changes_of_the_pod(core: Any, namespace: str, gpu_nodes: GpuNodes) -> None:
    created = time.monotonic()
    core.create_namespaced_pod(namespace, pod("slow", gpus=1, load_seconds="4"))
    loading = wait_for_pod(core, namespace, "slow", "to start", lambda seen: seen.status.phase == "Running")
    [engine] = loading.status.container_statuses
    router = loading.status.init_container_statuses[0]
    assert (engine.started, engine.ready) == (False, False)
    # Its readiness probe asks for the engine, so the router cannot be ready before it; it is running, though.
    assert (router.started, router.ready) == (True, False)
    time.sleep(2.5)
    core.patch_namespaced_pod("slow", namespace, {"metadata": {"labels": {"touched": "yes"}}})
    seen = wait_for_pod(core, namespace, "slow", "to be Ready", is_ready)
    assert time.monotonic() - created > 4
    # The pod's own times have whole seconds; a delay begun anew by the change would make it 6 and a half.
    assert (condition(seen, "Ready").last_transition_time - seen.status.start_time).total_seconds() in (4, 5)


def test_load_time_can_be_changed_for_all_pods(
    control_plane: ControlPlane, core: Any, namespace: str, gpu_nodes: GpuNodes
) -> None:
    control_plane.set_load_seconds(3600)
    try:
        core.create_namespaced_pod(namespace, pod("for-ever", gpus=1))
        wait_for_pod(core, namespace, "for-ever", "to start", lambda seen: seen.status.phase == "Running")
    finally:
        control_plane.set_load_seconds(0)
    core.create_namespaced_pod(namespace, pod("at-once", gpus=1))
    wait_for_pod(core, namespace, "at-once", "to be Ready", is_ready)
    assert not is_ready(core.read_namespaced_pod("for-ever", namespace))


def test_crash_shows_in_the_engine_only_and_can_be_ended(
    api_client: client.ApiClient, core: Any, namespace: str, gpu_nodes: GpuNodes
) -> None:
    core.create_namespaced_pod(namespace, pod("crasher", gpus=1))
    wait_for_pod(core, namespace, "crasher", "to be Ready", is_ready)
    crash(api_client, namespace, "crasher", reason="OOMKilled", restarts=3)
    seen = wait_for_pod(core, namespace, "crasher", "to be not Ready", lambda seen: not is_ready(seen))
    [engine] = seen.status.container_statuses
    assert engine.state.waiting.reason == "CrashLoopBackOff"
    assert (engine.ready, engine.started, engine.restart_count) == (False, False, 3)
    assert (engine.last_state.terminated.reason, engine.last_state.terminated.exit_code) == ("OOMKilled", 137)
    assert seen.status.init_container_statuses[0].state.running is not None
    recover(api_client, namespace, "crasher")
    seen = wait_for_pod(core, namespace, "crasher", "to be Ready again", is_ready)
    [engine] = seen.status.container_statuses
    assert (engine.state.running is not None, engine.state.waiting, engine.restart_count) == (True, None, 3)


def test_pod_can_crash_before_it_was_ever_ready(core: Any, namespace: str, gpu_nodes: GpuNodes) -> None:
    core.create_namespaced_pod(namespace, pod("stillborn", gpus=1, crash="true"))

    def crashed(seen: Any) -> bool:
        return any(
            c.state.waiting and c.state.waiting.reason == "CrashLoopBackOff"
            for c in seen.status.container_statuses or []
        )

    seen = wait_for_pod(core, namespace, "stillborn", "to crash", crashed)
    assert (is_ready(seen), seen.status.container_statuses[0].restart_count) == (False, 1)


def test_new_sidecar_image_restarts_the_sidecar_alone(core: Any, namespace: str, gpu_nodes: GpuNodes) -> None:
    core.create_namespaced_pod(namespace, pod("upgraded", gpus=1))
    wait_for_pod(core, namespace, "upgraded", "to be Ready", is_ready)
    patch = [{"op": "replace", "path": "/spec/initContainers/0/image", "value": "router.example/router:2"}]
    core.patch_namespaced_pod("upgraded", namespace, patch, _content_type="application/json-patch+json")

    def restarted(seen: Any) -> bool:
        return bool(seen.status.init_container_statuses[0].restart_count == 1)

    seen = wait_for_pod(core, namespace, "upgraded", "to restart its sidecar", restarted)
    router, fetch = seen.status.init_container_statuses
    assert (router.image, router.ready, router.started) == ("router.example/router:2", True, True)
    assert (fetch.restart_count, seen.status.container_statuses[0].restart_count) == (0, 0)
    assert is_ready(seen)


def test_job_completes(api_client: client.ApiClient, namespace: str, gpu_nodes: GpuNodes) -> None:
    batch: Any = client.BatchV1Api(api_client)
    spec = pod_spec(gpus=1) | {"restartPolicy": "Never"}
    batch.create_namespaced_job(namespace, {"metadata": {"name": "once"}, "spec": {"template": {"spec": spec}}})
    wait_for(
        "the Job to complete", lambda: batch.read_namespaced_job("once", namespace).status.succeeded == 1, timeout_s=20
    )


def test_deleted_pod_may_take_its_time(core: Any, namespace: str, gpu_nodes: GpuNodes) -> None:
    core.create_namespaced_pod(namespace, pod("draining", gpus=1, terminate_seconds="2"))
    wait_for_pod(core, namespace, "draining", "to be Ready", is_ready)
    started = time.monotonic()
    core.delete_namespaced_pod("draining", namespace)
    assert core.read_namespaced_pod("draining", namespace).metadata.deletion_timestamp is not None
    wait_for("the pod to go", lambda: not core.list_namespaced_pod(namespace).items, timeout_s=15)
    assert time.monotonic() - started > 1.9


def test_children_go_with_their_owner(core: Any, namespace: str) -> None:
    owner = core.create_namespaced_config_map(namespace, {"metadata": {"name": "owner"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid}
    core.create_namespaced_config_map(namespace, {"metadata": {"name": "child", "ownerReferences": [reference]}})
    core.delete_namespaced_config_map("owner", namespace)

    def names() -> set[str]:
        return {found.metadata.name for found in core.list_namespaced_config_map(namespace).items}

    wait_for("the child to go", lambda: "child" not in names(), timeout_s=20, seen=names)


def test_server_side_apply_owns_fields_and_sees_conflicts(apps: Any, namespace: str) -> None:
    def apply(manager: str, replicas: int, *, force: bool) -> Any:
        return apps.patch_namespaced_stateful_set(
            "applied",
            namespace,
            stateful_set("applied", replicas, gpus=1),
            field_manager=manager,
            force=force,
            _content_type="application/apply-patch+yaml",
        )

    first = apply("cascadia", 1, force=False)
    assert apply("cascadia", 1, force=False).metadata.generation == first.metadata.generation == 1
    with pytest.raises(client.ApiException) as refusal:
        apply("somebody", 2, force=False)
    assert refusal.value.status == 409
    assert apply("somebody", 2, force=True).spec.replicas == 2
