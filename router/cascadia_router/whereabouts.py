"""Where replicas are now, and which are ready, as far as the cluster or DNS has told.

A policy says which replicas a stage has and their weights; where each is, it says only as of its writing.
What is known here overrides that, and is never taken back for want of news: a source that falls silent, or
has nothing, leaves the last places known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from cascadia_api.policy import Endpoint, StagePolicy

__all__ = ["Place", "Whereabouts"]


class Place(NamedTuple):
    """Where a replica is.

    Attributes:
        address: ``host:port`` of its stage port.
        ready: Whether it takes requests.
    """

    address: str
    ready: bool


class Whereabouts:
    """What is known of replicas' places beyond the policy.

    Attributes:
        resolved: Addresses (``ip:port``) that a policy's address with a host name leads to now.
    """

    def __init__(self) -> None:
        self.resolved: dict[str, tuple[str, ...]] = {}
        self._of_service: dict[str, dict[str, Place]] = {}

    def tell(self, service: str, places: Mapping[str, Place]) -> None:
        """Take what the cluster says of a Service's replicas now.

        Replicas that it no longer names stay known where they were, as not ready.

        Args:
            service: The Service's name.
            places: By replica name.
        """
        known = self._of_service.get(service, {})
        gone = {name: Place(place.address, ready=False) for name, place in known.items() if name not in places}
        self._of_service[service] = gone | dict(places)

    def keep_only(self, stages: Iterable[StagePolicy]) -> None:
        """Forget replicas that are not ready and that none of these policies names."""
        named: dict[str, set[str]] = {}
        for stage in stages:
            if stage.service is not None:
                named.setdefault(stage.service, set()).update(endpoint.replica for endpoint in stage.endpoints)
        self._of_service = {
            service: {name: place for name, place in known.items() if place.ready or name in named[service]}
            for service, known in self._of_service.items()
            if service in named
        }

    def told(self, stage: StagePolicy) -> bool:
        """Whether the cluster has named any replica of the stage."""
        return stage.service is not None and bool(self._of_service.get(stage.service))

    def places(self, stage: StagePolicy, endpoint: Endpoint) -> tuple[Place, ...]:
        """Where an endpoint is; a host name may lead to several places."""
        known = self._of_service.get(stage.service, {}) if stage.service is not None else {}
        if known:
            # A replica that the cluster does not name has no address yet.
            return (known.get(endpoint.replica) or Place(endpoint.address, ready=False),)
        return tuple(Place(each, ready=True) for each in self.resolved.get(endpoint.address, (endpoint.address,)))
