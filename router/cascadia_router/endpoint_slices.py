"""Replicas' addresses and readiness from the EndpointSlices of the stages' Services.

A pod that comes back elsewhere, becomes unready or begins to end is known within the second, without a
new policy: which replicas a stage has, and their weights, stays the policy's to say.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from urllib.parse import quote

import msgspec
from msgspec import Struct

from cascadia_router.json_log import fields
from cascadia_router.list_watch import ApiServer, ListWatch
from cascadia_router.policy_store import PolicyStore
from cascadia_router.whereabouts import Place

__all__ = ["EndpointWatch", "Slice", "places_of"]

log = logging.getLogger("cascadia.router.endpoints")

SERVICE_LABEL = "kubernetes.io/service-name"
PORT_NAME = "peers"
_FIRST_RANK = "-0"
"""A replica's pods are its StatefulSet's; the one with this ending leads."""


class _Conditions(Struct):
    ready: bool | None = None


class _Target(Struct):
    kind: str = ""
    name: str = ""


class _Endpoint(Struct, rename="camel"):
    addresses: list[str]
    conditions: _Conditions = msgspec.field(default_factory=_Conditions)
    target_ref: _Target | None = None


class _Port(Struct):
    name: str | None = None
    port: int | None = None


class _Metadata(Struct):
    name: str
    labels: dict[str, str] | None = None


class Slice(Struct, rename="camel"):
    """One EndpointSlice, as far as it matters here."""

    metadata: _Metadata
    address_type: str = "IPv4"
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None

    @property
    def service(self) -> str:
        """Name of its Service."""
        return (self.metadata.labels or {}).get(SERVICE_LABEL, "")


def places_of(slices: Iterable[Slice]) -> dict[str, Place]:
    """Where the replicas of one Service are, by name.

    A replica may be in several slices, while one takes the place of another or with two address families: the
    ready entry counts, then IPv4. Endpoints without a pod, and pods that do not lead, are left out.

    Args:
        slices: All slices of the Service.
    """
    found: dict[str, Place] = {}
    for piece in sorted(slices, key=lambda each: (each.address_type, each.metadata.name)):
        port = next((each.port for each in piece.ports or () if each.name == PORT_NAME), None)
        if port is None or piece.address_type not in {"IPv4", "IPv6"}:
            continue
        for endpoint in piece.endpoints or ():
            pod = endpoint.target_ref
            if not endpoint.addresses or pod is None or pod.kind != "Pod" or not pod.name.endswith(_FIRST_RANK):
                continue
            ip = endpoint.addresses[0]
            # "A nil value should be interpreted as true", says the API.
            place = Place(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}", endpoint.conditions.ready is not False)
            name = pod.name.removesuffix(_FIRST_RANK)
            if name not in found or (place.ready and not found[name].ready):
                found[name] = place
    return found


class EndpointWatch:
    """Keeps a policy store's whereabouts at what EndpointSlices say of the Services that its policy names."""

    def __init__(self, namespace: str, policies: PolicyStore, server: ApiServer) -> None:
        """Prepare.

        Args:
            namespace: Of the cascade.
            policies: Says which Services, and is told where replicas are.
            server: The API server.
        """
        self._namespace = namespace
        self._policies = policies
        self._server = server
        self._slices: dict[str, Slice] = {}
        self._services: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Watch until cancelled: the Services of the policy in force, anew when a policy names others."""
        while True:
            taken = self._policies.taken()
            self._services = self._policies.services
            if not self._services:
                await taken
                continue
            watch = asyncio.get_running_loop().create_task(self._list_watch().run())
            try:
                while self._policies.services == self._services:
                    await asyncio.wait((watch, taken), return_when=asyncio.FIRST_COMPLETED)
                    if watch.done():
                        watch.result()
                    taken = self._policies.taken()
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)

    def _list_watch(self) -> ListWatch:
        selector = quote(f"{SERVICE_LABEL} in ({','.join(sorted(self._services))})", safe="")
        path = (
            f"/apis/discovery.k8s.io/v1/namespaces/{quote(self._namespace, safe='')}/endpointslices"
            f"?labelSelector={selector}"
        )
        return ListWatch(self._server, path, self, f"EndpointSlices in {self._namespace}")

    def listed(self, items: list[msgspec.Raw]) -> None:
        """See `Watcher`."""
        slices = [msgspec.json.decode(item, type=Slice) for item in items]
        self._slices = {piece.metadata.name: piece for piece in slices}
        self._tell(self._services)

    def changed(self, kind: str, item: msgspec.Raw) -> None:
        """See `Watcher`."""
        piece = msgspec.json.decode(item, type=Slice)
        before = self._slices.pop(piece.metadata.name, piece)
        if kind != "DELETED":
            self._slices[piece.metadata.name] = piece
        self._tell({before.service, piece.service} & self._services)

    def _tell(self, services: Iterable[str]) -> None:
        whereabouts = self._policies.whereabouts
        for service in services:
            places = places_of(piece for piece in self._slices.values() if piece.service == service)
            whereabouts.tell(service, places)
            log.debug("endpoints", extra=fields(service=service, ready=sum(p.ready for p in places.values())))
        self._policies.place()
