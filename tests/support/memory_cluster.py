"""A cluster in memory for tests of the reconcile: the verbs of `cascadia_operator.cluster.Cluster`, no more.

Controllers do not run by themselves: `run_pods` does what the StatefulSet controller, the scheduler and the
kubelet would have done after a while, and `finish_deletions` ends what is being deleted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from cascadia_operator.cluster import AlreadyExistsError, Object

START = datetime(2026, 1, 1, tzinfo=UTC)


class MemoryCluster:
    """Objects by kind, namespace and name; `now` moves only when a test moves it."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.now = START
        self.writes: list[str] = []
        self._serial = 0

    def clock(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def kinds(self, kind: str) -> list[Object]:
        return [o for (its_kind, _, _), o in sorted(self.objects.items()) if its_kind == kind]

    def put(self, document: Mapping[str, Any]) -> Object:
        """Store an object as a user's kubectl would, bumping its generation if the spec changed."""
        key = _key(document)
        before = self.objects.get(key)
        stored = copy.deepcopy(dict(document))
        metadata = stored["metadata"] = dict(stored["metadata"])
        if before is not None:
            metadata["uid"] = before["metadata"]["uid"]
            metadata["creationTimestamp"] = before["metadata"]["creationTimestamp"]
            changed = before.get("spec") != stored.get("spec")
            metadata["generation"] = before["metadata"].get("generation", 1) + changed
            if "status" in before:
                stored["status"] = before["status"]
        self._stamp(metadata)
        self.objects[key] = stored
        return stored

    def run_pods(self, *, ready: bool = True, only: str = "") -> None:
        """Give each StatefulSet its pods, all bound to nodes and, if so wanted, ready."""
        for statefulset in self.kinds("StatefulSet"):
            if only not in statefulset["metadata"]["name"]:
                continue
            for rank in range(statefulset["spec"]["replicas"]):
                self._run_pod(statefulset, rank, ready=ready)

    def _run_pod(self, statefulset: Object, rank: int, *, ready: bool) -> None:
        name = f"{statefulset['metadata']['name']}-{rank}"
        template = copy.deepcopy(statefulset["spec"]["template"])
        key = ("Pod", statefulset["metadata"]["namespace"], name)
        pod = self.objects.get(key) or {
            "kind": "Pod",
            "metadata": template["metadata"] | {"name": name, "namespace": key[1]},
            "spec": template["spec"] | {"nodeName": f"node-{name}"},
        }
        pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"] = str(rank)
        self._stamp(pod["metadata"])
        before = {c["type"]: c for c in pod.get("status", {}).get("conditions", ())}.get("Ready", {})
        status = "True" if ready else "False"
        stamp = before["lastTransitionTime"] if before.get("status") == status else _text(self.now)
        pod["status"] = {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": stamp}],
        }
        self.objects[key] = pod

    def leave_unschedulable(self, name: str) -> None:
        """Give a StatefulSet a pod that no node has room for."""
        statefulset = self.objects["StatefulSet", "serving", name]
        self._run_pod(statefulset, 0, ready=False)
        pod = self.objects["Pod", "serving", f"{name}-0"]
        del pod["spec"]["nodeName"]
        pod["status"] = {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
        }

    def finish_deletions(self) -> None:
        """End pods that are being deleted."""
        for key, pod in list(self.objects.items()):
            if key[0] == "Pod" and pod["metadata"].get("deletionTimestamp"):
                del self.objects[key]

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        found = self.objects.get((kind, namespace, name))
        return copy.deepcopy(found) if found is not None else None

    async def list(self, kind: str, namespace: str | None, *, labels: str = "", fields: str = "") -> list[Object]:
        label, _, value = labels.partition("=")
        return [
            copy.deepcopy(found)
            for (its_kind, its_namespace, _), found in sorted(self.objects.items())
            if its_kind == kind
            and namespace in (None, its_namespace)
            and (not labels or (found["metadata"].get("labels") or {}).get(label) == value)
        ]

    async def create(self, manifest: Object) -> Object:
        if "generateName" in manifest["metadata"]:
            self._serial += 1
            name = f"{manifest['metadata']['generateName']}{self._serial:04}"
            manifest = manifest | {"metadata": manifest["metadata"] | {"name": name}}
        if _key(manifest) in self.objects:
            raise AlreadyExistsError(f"{_key(manifest)} already exists")
        return await self._write("create", manifest)

    async def name_taken(self, kind: str, namespace: str, name: str) -> bool:
        return (kind, namespace, name) in self.objects

    async def apply(self, manifest: Object) -> Object:
        return await self._write("apply", manifest)

    async def _write(self, verb: str, manifest: Object) -> Object:
        key = _key(manifest)
        self.writes.append(f"{verb} {key[0]} {key[2]}")
        before = self.objects.get(key, {}).get("metadata", {})
        stored = copy.deepcopy(manifest)
        stored["metadata"] |= {k: before[k] for k in ("uid", "creationTimestamp") if k in before}
        self._stamp(stored["metadata"])
        self.objects[key] = stored
        return copy.deepcopy(stored)

    async def apply_status(self, manifest: Object) -> None:
        key = _key(manifest)
        self.writes.append(f"status {key[0]} {key[2]}")
        if key in self.objects:
            self.objects[key]["status"] = copy.deepcopy(manifest["status"])

    async def annotate(self, kind: str, namespace: str, name: str, annotations: Mapping[str, str]) -> None:
        self.writes.append(f"annotate {kind} {name}")
        self.objects[kind, namespace, name]["metadata"].setdefault("annotations", {}).update(annotations)

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        self.writes.append(f"delete {kind} {name}")
        self.objects.pop((kind, namespace, name), None)
        if kind == "StatefulSet":
            for (its_kind, _, pod_name), pod in self.objects.items():
                if its_kind == "Pod" and pod_name.rpartition("-")[0] == name:
                    pod["metadata"]["deletionTimestamp"] = _text(self.now)

    def _stamp(self, metadata: dict[str, Any]) -> None:
        if "uid" not in metadata:
            self._serial += 1
            metadata["uid"] = f"uid-{self._serial:04}"
        metadata.setdefault("creationTimestamp", _text(self.now))


def _key(document: Mapping[str, Any]) -> tuple[str, str, str]:
    metadata = document["metadata"]
    return document["kind"], metadata.get("namespace", ""), metadata["name"]


def _text(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
