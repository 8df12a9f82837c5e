"""Starting and stopping control planes: side by side, with CRDs, and when something dies."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from tests.support.control_plane import ControlPlane, ControlPlaneError, DeadlineExceededError, namespaces, wait_for

WIDGETS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.test.cascadia.dev"},
    "spec": {
        "group": "test.cascadia.dev",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def own_and_delete_widget(running: ControlPlane) -> float:
    """Let a custom resource own a ConfigMap, delete it, and return the seconds until the ConfigMap is gone."""
    with running.api() as api:
        custom: Any = client.CustomObjectsApi(api)
        core: Any = client.CoreV1Api(api)
        where = ("test.cascadia.dev", "v1", "default", "widgets")
        body = {"apiVersion": "test.cascadia.dev/v1", "kind": "Widget", "metadata": {"name": "owner"}}
        owner = custom.create_namespaced_custom_object(*where, body)
        reference = {key: body[key] for key in ("apiVersion", "kind")} | {
            "name": "owner",
            "uid": owner["metadata"]["uid"],
        }
        core.create_namespaced_config_map("default", {"metadata": {"name": "child", "ownerReferences": [reference]}})
        custom.delete_namespaced_custom_object(*where, "owner")
        started = time.monotonic()

        def names() -> set[str]:
            return {found.metadata.name for found in core.list_namespaced_config_map("default").items}

        wait_for("the child to go", lambda: "child" not in names(), timeout_s=60, seen=names)
        return time.monotonic() - started


def test_second_control_plane_is_apart_and_collects_garbage_of_its_crds_at_once(
    control_plane: ControlPlane, api_client: client.ApiClient, namespace: str, tmp_path: Path
) -> None:
    widgets = tmp_path / "widgets.yaml"
    widgets.write_text(yaml.safe_dump(WIDGETS))
    with ControlPlane(load_seconds=0, crds=[widgets]) as other:
        assert not set(other.pids.values()) & set(control_plane.pids.values())
        with other.api() as api:
            core: Any = client.CoreV1Api(api)
            assert namespace not in {found.metadata.name for found in core.list_namespace().items}
        assert own_and_delete_widget(other) < 15
        pids = other.pids
        folder = other.folder
    assert_gone(list(pids.values()))
    assert not folder.exists()
    control_plane.check()
    client.CoreV1Api(api_client).read_namespace(namespace)


def test_restarted_controller_manager_knows_a_later_crd(tmp_path: Path) -> None:
    widgets = tmp_path / "widgets.yaml"
    widgets.write_text(yaml.safe_dump(WIDGETS))
    with ControlPlane() as running:
        running.install_crds(widgets)
        running.restart_controller_manager()
        assert own_and_delete_widget(running) < 15


def test_dead_process_is_named_with_the_end_of_its_log() -> None:
    with ControlPlane() as running:
        os.kill(running.pids["scheduler"], signal.SIGKILL)
        wait_for("the scheduler to be gone", lambda: "scheduler" not in running.pids, timeout_s=5)
        with pytest.raises(ControlPlaneError, match="scheduler was killed by SIGKILL"):
            running.check()


# A shell starts background jobs with SIGINT ignored, which Python inherits: the child asks for Ctrl-C to count.
CHILD = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from tests.support.control_plane import ControlPlane
running = ControlPlane().start()
print(*running.pids.values(), running.folder, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["SIGINT", "SIGKILL"])
def test_processes_die_with_their_parent(number: signal.Signals) -> None:
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, "-c", CHILD], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with parent:
        try:
            assert parent.stdout is not None
            *pids, folder = parent.stdout.readline().split()
            assert len(pids) == 5
            assert all(alive(int(pid)) for pid in pids)
            os.kill(parent.pid, number)
            parent.wait(timeout=30)
        finally:
            parent.kill()
    assert_gone([int(pid) for pid in pids])
    if number == signal.SIGINT:
        assert not Path(folder).exists()
    shutil.rmtree(folder, ignore_errors=True)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # an orphan may wait for its new parent to take note


def assert_gone(pids: list[int]) -> None:
    wait_for("the processes to be gone", lambda: not any(map(alive, pids)), timeout_s=10, seen=lambda: pids)


def test_namespace_that_a_finalizer_keeps_is_reported(api_client: client.ApiClient) -> None:
    core: Any = client.CoreV1Api(api_client)
    name = namespaces.create(api_client)
    body = {"metadata": {"name": "kept", "finalizers": ["test.cascadia.dev/nobody-removes-it"]}}
    core.create_namespaced_config_map(name, body)
    with pytest.raises(DeadlineExceededError, match="nobody-removes-it"):
        namespaces.delete(api_client, name, timeout_s=10, to_the_end=True)
    core.patch_namespaced_config_map("kept", name, {"metadata": {"finalizers": None}})
