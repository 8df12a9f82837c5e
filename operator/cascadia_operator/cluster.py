"""All Kubernetes IO of the operator: a handful of verbs on plain dictionaries.

The official client runs in threads of its own, so the event loop never blocks. Every request has a
deadline. What passes by itself (429, 5xx, a lost connection) is tried again a few times, further and
further apart; everything else is raised as an error that says which object it was about.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import urllib3
import yaml
from kubernetes import client, config

from cascadia_api.errors import CascadiaError, InputError, Problem
from cascadia_api.names import API_VERSION, FIELD_MANAGER, KIND, PLAN_KIND, PLAN_PLURAL, PLURAL

__all__ = [
    "AlreadyExistsError",
    "Cluster",
    "ClusterError",
    "ForbiddenError",
    "KubernetesCluster",
    "NotFoundError",
    "Object",
    "RefusedError",
]

Object = dict[str, Any]
"""One Kubernetes object as JSON."""

_KINDS: dict[str, tuple[str, str]] = {
    KIND: (f"/apis/{API_VERSION}", PLURAL),
    PLAN_KIND: (f"/apis/{API_VERSION}", PLAN_PLURAL),
    "StatefulSet": ("/apis/apps/v1", "statefulsets"),
    "Role": ("/apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("/apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Event": ("/api/v1", "events"),
    "Node": ("/api/v1", "nodes"),
    "Pod": ("/api/v1", "pods"),
    "Secret": ("/api/v1", "secrets"),
    "Service": ("/api/v1", "services"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
}

_CONNECT_SECONDS = 5.0
_REQUEST_SECONDS = 30.0
_ATTEMPTS = 5
_FIRST_BACKOFF_SECONDS = 0.2
_LONGEST_BACKOFF_SECONDS = 10.0
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
_PAGE = 500


class ClusterError(CascadiaError):
    """The API server cannot be reached or failed, again and again: worth trying later."""


class NotFoundError(ClusterError):
    """The object is not there."""


class AlreadyExistsError(ClusterError):
    """An object of this name is there already."""


class ForbiddenError(ClusterError):
    """The operator's account lacks the right."""


class RefusedError(ClusterError):
    """The API server refuses the object: invalid, or against a policy of the cluster."""


class Cluster(Protocol):
    """What the operator needs of a cluster."""

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """Return one object; None if it is not there."""
        ...

    async def list(self, kind: str, namespace: str | None, *, labels: str = "", fields: str = "") -> list[Object]:
        """Return the objects of a namespace (None: of the cluster) that match both selectors."""
        ...

    async def create(self, manifest: Object) -> Object:
        """Create an object.

        Raises:
            AlreadyExistsError: There is one of this name.
        """
        ...

    async def name_taken(self, kind: str, namespace: str, name: str) -> bool:
        """Whether there is an object of this name, told without the right to read it: a creation is tried out.

        Where the trial is refused for another reason (a quota, a policy of the cluster), it is taken to be there.
        """
        ...

    async def apply(self, manifest: Object) -> Object:
        """Apply a manifest server-side as the operator's field manager."""
        ...

    async def apply_status(self, manifest: Object) -> None:
        """Apply the status of an object server-side; does nothing if the object is gone."""
        ...

    async def annotate(self, kind: str, namespace: str, name: str, annotations: Mapping[str, str]) -> None:
        """Set annotations of an object; does nothing if it is gone."""
        ...

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object and, in the background, what it owns; does nothing if it is gone."""
        ...


class KubernetesCluster:
    """A cluster behind its API server, as configured by a service account or a kubeconfig.

    Raises:
        InputError: There is neither, or the kubeconfig is of no use.
    """

    def __init__(self, threads: int = 16) -> None:
        settings = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]  # typed in part only
        except config.ConfigException:
            _load_kubeconfig(settings)
        settings.connection_pool_maxsize = threads
        # Retries are ours: urllib3's own would hide time-outs.
        settings.retries = False
        self._api = client.ApiClient(settings)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="kubernetes")

    def close(self) -> None:
        """Give up connections and threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._api.close()  # type: ignore[no-untyped-call]  # typed in part only

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """See `Cluster.get`."""
        try:
            return await self._request("GET", _path(kind, namespace, name))
        except NotFoundError:
            return None

    async def list(self, kind: str, namespace: str | None, *, labels: str = "", fields: str = "") -> list[Object]:
        """See `Cluster.list`."""
        query = {"limit": str(_PAGE)}
        query |= {"labelSelector": labels} if labels else {}
        query |= {"fieldSelector": fields} if fields else {}
        items: list[Object] = []
        while True:
            page = await self._request("GET", _path(kind, namespace), query=query)
            items += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return items
            query["continue"] = token

    async def create(self, manifest: Object) -> Object:
        """See `Cluster.create`."""
        path = _path(manifest["kind"], manifest["metadata"]["namespace"])
        return await self._request("POST", path, body=manifest, query={"fieldManager": FIELD_MANAGER})

    async def name_taken(self, kind: str, namespace: str, name: str) -> bool:
        """See `Cluster.name_taken`."""
        trial = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}}
        try:
            await self._request("POST", _path(kind, namespace), body=trial, query={"dryRun": "All"})
        except (AlreadyExistsError, ForbiddenError, RefusedError):
            return True
        return False

    async def apply(self, manifest: Object) -> Object:
        """See `Cluster.apply`."""
        metadata = manifest["metadata"]
        return await self._apply(_path(manifest["kind"], metadata["namespace"], metadata["name"]), manifest)

    async def apply_status(self, manifest: Object) -> None:
        """See `Cluster.apply_status`."""
        metadata = manifest["metadata"]
        path = _path(manifest["kind"], metadata["namespace"], metadata["name"]) + "/status"
        try:
            await self._apply(path, manifest)
        except NotFoundError:
            return

    async def annotate(self, kind: str, namespace: str, name: str, annotations: Mapping[str, str]) -> None:
        """See `Cluster.annotate`."""
        body = {"metadata": {"annotations": dict(annotations)}}
        try:
            await self._request(
                "PATCH", _path(kind, namespace, name), body=body, content_type="application/merge-patch+json"
            )
        except NotFoundError:
            return

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        """See `Cluster.delete`."""
        try:
            await self._request("DELETE", _path(kind, namespace, name), query={"propagationPolicy": "Background"})
        except NotFoundError:
            return

    async def _apply(self, path: str, manifest: Object) -> Object:
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        # JSON is YAML: the server takes it under this type, which means server-side apply.
        return await self._request(
            "PATCH", path, body=manifest, query=query, content_type="application/apply-patch+yaml"
        )

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        loop = asyncio.get_running_loop()
        pause = _FIRST_BACKOFF_SECONDS
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return await loop.run_in_executor(
                    self._threads, self._call, method, path, body, dict(query or {}), content_type
                )
            except client.ApiException as error:
                if error.status not in _TRANSIENT or attempt == _ATTEMPTS:
                    raise _translated(error, method, path) from error
                pause = max(pause, _retry_after(error))
            except (urllib3.exceptions.HTTPError, OSError) as error:
                if attempt == _ATTEMPTS:
                    raise ClusterError(f"the API server cannot be reached ({method} {path}): {error}") from error
            # Jitter keeps many reconciles from coming back together.
            await asyncio.sleep(min(pause, _LONGEST_BACKOFF_SECONDS) * random.uniform(0.5, 1.0))  # noqa: S311
            pause *= 2
        raise AssertionError("unreachable")

    def _call(self, method: str, path: str, body: Object | None, query: dict[str, str], content_type: str) -> Object:
        """Make one request; runs in a thread."""
        headers = {"Accept": "application/json", "Content-Type": content_type}
        serialized = self._api.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        response = self._api.call_api(*serialized, _request_timeout=(_CONNECT_SECONDS, _REQUEST_SECONDS))
        content: bytes = response.read()  # type: ignore[no-untyped-call]  # typed in part only
        self._api.response_deserialize(response, {"2XX": None})
        result: Object = json.loads(content)
        return result


def _load_kubeconfig(settings: client.Configuration) -> None:
    """Take the settings of the kubeconfig.

    Raises:
        InputError: There is none, or it is of no use.
    """
    file = os.environ.get("KUBECONFIG")
    try:
        # The client's package is typed in part only.
        config.load_kube_config(config_file=file, client_configuration=settings)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError, ValueError, yaml.YAMLError, TypeError, AttributeError) as error:
        known = isinstance(error, config.ConfigException | OSError)
        reason = str(error).rstrip(".") if known else f"{file} is no kubeconfig"
        advice = "run in a pod, or name the kubeconfig of a cluster"
        raise InputError(Problem("KUBECONFIG", f"no cluster to work on: {reason}; {advice}")) from None


def _path(kind: str, namespace: str | None, name: str = "") -> str:
    group, plural = _KINDS[kind]
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{group}{scope}/{plural}" + (f"/{name}" if name else "")


def _retry_after(error: client.ApiException) -> float:
    value = (error.headers or {}).get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0


def _translated(error: client.ApiException, method: str, path: str) -> ClusterError:
    try:
        status = json.loads(error.body or "{}")
    except ValueError:
        status = None
    if not isinstance(status, dict):  # what a proxy before the API server says
        status = {}
    message = f"{method} {path}: {status.get('message') or error.reason or error.status}"
    if error.status == 404:
        return NotFoundError(message)
    if error.status == 403:
        return ForbiddenError(message)
    if error.status == 409 and status.get("reason") == "AlreadyExists":
        return AlreadyExistsError(message)
    if error.status in (400, 422):
        return RefusedError(message)
    return ClusterError(message)
