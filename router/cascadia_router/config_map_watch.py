"""The policy from one named ConfigMap, listed and watched through the Kubernetes API.

A mounted ConfigMap is refreshed by kubelet after 60 to 90 s; a watch sees a change in milliseconds.
"""

from __future__ import annotations

import logging
from urllib.parse import quote

import msgspec
from msgspec import Struct

from cascadia_router.json_log import fields
from cascadia_router.list_watch import ApiServer, ListWatch
from cascadia_router.policy_store import PolicyStore

__all__ = ["ConfigMapWatch"]

log = logging.getLogger("cascadia.router.policy")


class _ConfigMap(Struct):
    data: dict[str, str] | None = None


class ConfigMapWatch:
    """Keeps a policy store at what a ConfigMap's key ``policy.json`` says."""

    KEY = "policy.json"

    def __init__(self, name: str, policies: PolicyStore, server: ApiServer) -> None:
        """Prepare.

        Args:
            name: ``namespace/name``.
            policies: Takes what is found.
            server: The API server.
        """
        self._name = name
        namespace, _, config_map = name.partition("/")
        selector = quote(f"metadata.name={config_map}", safe="")
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/configmaps?fieldSelector={selector}"
        self._policies = policies
        self._watch = ListWatch(server, path, self, f"ConfigMap {name}")

    async def run(self) -> None:
        """Watch until cancelled."""
        await self._watch.run()

    def listed(self, items: list[msgspec.Raw]) -> None:
        """See `Watcher`."""
        for item in items:
            self._take(item)
        if not items:
            log.warning("policy ConfigMap is not there yet", extra=fields(configMap=self._name))

    def changed(self, kind: str, item: msgspec.Raw) -> None:
        """See `Watcher`."""
        if kind == "DELETED":
            log.warning("policy ConfigMap deleted: the policy stays", extra=fields(configMap=self._name))
        else:
            self._take(item)

    def _take(self, item: msgspec.Raw) -> None:
        document = (msgspec.json.decode(item, type=_ConfigMap).data or {}).get(self.KEY)
        if document is None:
            log.error("policy ConfigMap has no key", extra=fields(configMap=self._name, key=self.KEY))
        else:
            self._policies.take(document.encode(), self._name)
