"""Replicas behind DNS names: resolved in the background, again and again, never in a request's way.

A policy written by hand (embedded mode, other platforms) may name hosts instead of addresses. A name that
leads to several addresses stands for that many replicas, which share its weight.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import socket

from cascadia_router.json_log import fields
from cascadia_router.policy_store import PolicyStore

__all__ = ["EndpointNames", "is_name"]

log = logging.getLogger("cascadia.router.endpoints")


def is_name(address: str) -> bool:
    """Whether the host of ``host:port`` has to be resolved."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


class EndpointNames:
    """Keeps a policy store's whereabouts at what DNS says of the names in its policy.

    Replicas that the cluster has told of itself are not asked for.
    """

    EVERY_SECONDS = 5.0
    """Between two questions for a name, wall s: DNS answers at the machine's speed."""
    ANSWER_SECONDS = 5.0

    def __init__(self, policies: PolicyStore) -> None:
        self._policies = policies
        self._failing: set[str] = set()

    async def run(self) -> None:
        """Resolve until cancelled."""
        while True:
            taken = self._policies.taken()
            await self.resolve()
            pause = self.EVERY_SECONDS * random.uniform(0.8, 1.2)  # noqa: S311 - spreads routers
            await asyncio.wait((taken,), timeout=pause)

    async def resolve(self) -> None:
        """Ask once for every name that matters; a name without an answer stays where it was."""
        names = sorted(address for address in self._policies.unplaced() if is_name(address))
        known = self._policies.whereabouts.resolved
        self._failing.intersection_update(names)
        answers = await asyncio.gather(*map(self._addresses, names))
        found = {name: answer or known.get(name, ()) for name, answer in zip(names, answers, strict=True)}
        found = {name: addresses for name, addresses in found.items() if addresses}
        if found != known:
            self._policies.whereabouts.resolved = found
            self._policies.place()

    async def _addresses(self, address: str) -> tuple[str, ...]:
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(self.ANSWER_SECONDS):
                answers = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            if address not in self._failing:
                log.warning("a name is not resolved", extra=fields(host=host, reason=str(error)))
            self._failing.add(address)
            return ()
        self._failing.discard(address)
        four = {f"{place[0]}:{port}" for family, _, _, _, place in answers if family == socket.AF_INET}
        six = {f"[{place[0]}]:{port}" for family, _, _, _, place in answers if family == socket.AF_INET6}
        return tuple(sorted(four or six))  # both families lead to the same servers
