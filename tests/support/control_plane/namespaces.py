"""A namespace per test: made fresh, and emptied before the next test starts."""

import uuid
from typing import Any

from kubernetes import client

from tests.support.control_plane.deadlines import wait_for


def create(api: client.ApiClient, prefix: str = "test") -> str:
    """Create a namespace with a name nobody has, wait for its default ServiceAccount, and return the name.

    Raises:
        DeadlineExceededError: when the ServiceAccount does not appear within 20 seconds.
    """
    name = f"{prefix}-{uuid.uuid4().hex[:8]}"
    core: Any = client.CoreV1Api(api)  # Any: its annotations leave out the plain dicts it takes
    core.create_namespace({"metadata": {"name": name}})
    wait_for(
        f"the default ServiceAccount of {name}",
        lambda: bool(core.list_namespaced_service_account(name).items),
        timeout_s=20,
    )
    return name


def delete(api: client.ApiClient, name: str, *, timeout_s: float = 60.0, to_the_end: bool = False) -> None:
    """Delete the namespace, and wait until its custom resources, workloads and pods are gone.

    Args:
        api: The cluster.
        name: The namespace.
        timeout_s: Seconds for each of the three to go.
        to_the_end: Wait for the namespace itself too. It takes five seconds more, whatever is in it: the namespace
            controller lets that time pass first.

    Raises:
        DeadlineExceededError: when something is still there after `timeout_s` seconds; the message names it (an object
            with a finalizer that nobody removes any more, as a rule).
    """
    _delete_custom_resources(api, name, timeout_s)
    _delete_workloads(api, name)
    core: Any = client.CoreV1Api(api)

    # By force: the namespace controller would find them, and look again only after half their grace period, 15 seconds.
    def no_pods() -> bool:
        core.delete_collection_namespaced_pod(name, grace_period_seconds=0)
        return not core.list_namespaced_pod(name).items

    wait_for(f"the pods of {name} to go", no_pods, timeout_s=timeout_s)
    core.delete_namespace(name)
    if not to_the_end:
        return

    def gone() -> bool:
        try:
            core.read_namespace(name)
        except client.ApiException as error:
            if error.status == 404:
                return True
            raise
        return False

    def what_keeps() -> str:
        conditions = core.read_namespace(name).status.conditions or []
        return "; ".join(str(condition.message) for condition in conditions if condition.status == "True")

    wait_for(f"namespace {name} to go", gone, timeout_s=timeout_s, seen=what_keeps)


def _delete_workloads(api: client.ApiClient, name: str) -> None:
    apps, batch = client.AppsV1Api(api), client.BatchV1Api(api)
    for delete_all in (
        apps.delete_collection_namespaced_stateful_set,
        apps.delete_collection_namespaced_deployment,
        apps.delete_collection_namespaced_replica_set,
        apps.delete_collection_namespaced_daemon_set,
        batch.delete_collection_namespaced_job,
    ):
        delete_all(name, propagation_policy="Background")


def _delete_custom_resources(api: client.ApiClient, name: str, timeout_s: float) -> None:
    extensions: Any = client.ApiextensionsV1Api(api)
    custom: Any = client.CustomObjectsApi(api)
    kinds = []
    for definition in extensions.list_custom_resource_definition().items:
        if definition.spec.scope == "Namespaced":
            version = next(version.name for version in definition.spec.versions if version.served)
            kinds.append((definition.spec.group, version, name, definition.spec.names.plural))
    for kind in kinds:
        custom.delete_collection_namespaced_custom_object(*kind)

    def left() -> list[str]:
        return [
            f"{kind[3]}/{found['metadata']['name']} (finalizers: {found['metadata'].get('finalizers', [])})"
            for kind in kinds
            for found in custom.list_namespaced_custom_object(*kind)["items"]
        ]

    wait_for(f"the custom resources of {name} to go", lambda: not left(), timeout_s=timeout_s, seen=left)
