"""What a user sees of cascades on a real control plane, and of their plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client

from cascadia_api.names import (
    CASCADE_LABEL,
    GROUP,
    PLAN_PLURAL,
    PLURAL,
    STAGE_LABEL,
    VERSION,
)
from cascadia_api.plan import CascadePlan, Plan
from cascadia_operator.manifests.plan_object import plan_object
from tests.support.control_plane import wait_for
from tests.support.operator_cases import LARGE, SMALL, cascade, cascade_document
from tests.support.operator_process import OperatorUnderTest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WAIT_S = 60.0
"""Until what a test waits for has come."""


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
