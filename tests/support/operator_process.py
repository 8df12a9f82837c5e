"""The operator as a process of a test, on the test's control plane and in the test's namespace."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from cascadia_operator.manifests.operator_rbac import operator_rules
from tests.support.control_plane import ControlPlane
from tests.support.control_plane.processes import ServerProcess


class OperatorUnderTest:
    """Starts, kills and stops operators of one namespace; their log is kept together."""

    def __init__(self, control_plane: ControlPlane, namespace: str, log: Path) -> None:
        self.kubeconfig = control_plane.kubeconfig
        self._namespace = namespace
        self._log = log
        self._process: ServerProcess | None = None

    def start(self, *flags: str) -> None:
        """Start one."""
        command = [
            *(sys.executable, "-W", "error", "-m", "cascadia_operator"),
            *("--namespace", self._namespace),
            # The pods of fake nodes are not real: nobody can ask their routers.
            *("--router-acknowledgement", "none"),
            *("--resync-seconds", "3"),
            *flags,
        ]
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": os.environ.get("HOME", "/"),
            "KUBECONFIG": str(self.kubeconfig),
            "NO_PROXY": "127.0.0.1",
        }
        self._process = ServerProcess("operator", command, self._log, environment)

    def kill(self) -> None:
        """Kill it as a power cut would."""
        assert self._process is not None
        self._process.check()
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait_until_stopped(10)

    def check(self) -> None:
        """Raise if it has ended by itself."""
        if self._process is not None:
            self._process.check()

    def stop(self) -> None:
        """Stop it, and see that it ends in good order."""
        if self._process is not None and self._process.running:
            self._process.ask_to_stop()
            self._process.wait_until_stopped(20)

    def log(self) -> str:
        """The end of the log."""
        return self._process.last_lines(40) if self._process is not None else "(never started)"


@contextmanager
def its_own_rights(operator: OperatorUnderTest, api: client.ApiClient, namespace: str, folder: Path) -> Iterator[None]:
    """For the length of the block, operators are started with the rights that they say they need, and no others."""
    rbac: Any = client.RbacAuthorizationV1Api(api)
    core: Any = client.CoreV1Api(api)
    rbac.create_cluster_role({"metadata": {"name": namespace}, "rules": operator_rules()})
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": namespace}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": namespace}
    rbac.create_cluster_role_binding({"metadata": {"name": namespace}, "roleRef": role, "subjects": [subject]})
    try:
        core.create_namespaced_service_account(namespace, {"metadata": {"name": "operator"}})
        token = core.create_namespaced_service_account_token("operator", namespace, {"spec": {}}).status.token
        settings = yaml.safe_load(operator.kubeconfig.read_text())
        settings["users"][0]["user"] = {"token": token}
        operator.kubeconfig = folder / "kubeconfig"
        operator.kubeconfig.write_text(yaml.safe_dump(settings))
        yield
        assert "orbidden" not in operator.log()
        assert "permission" not in operator.log()
    finally:
        rbac.delete_cluster_role_binding(namespace)
        rbac.delete_cluster_role(namespace)
