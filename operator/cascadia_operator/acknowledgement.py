"""Whether every ready router enforces a policy revision yet: no step of a transition starts before."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Protocol

from cascadia_operator.cluster import Object
from cascadia_operator.router_port import ask_router

__all__ = ["Acknowledgement", "HttpAcknowledgement", "TakenForGranted"]

_TIMEOUT_SECONDS = 2.0
_MOST_BYTES = 1024 * 1024
_REMEMBERED = 20_000


class Acknowledgement(Protocol):
    """How the operator learns what routers enforce."""

    async def lacking(self, revision: int, leaders: Sequence[Object]) -> list[str]:
        """Names of the ready leader pods whose router does not enforce the revision, or a later one, yet."""
        ...


class TakenForGranted:
    """For clusters whose pods are simulated: nobody can be asked."""

    async def lacking(self, revision: int, leaders: Sequence[Object]) -> list[str]:  # noqa: ARG002
        """Nobody."""
        return []


class HttpAcknowledgement:
    """Asks each router at ``/cascade/policy`` on its admin port.

    Revisions only grow, so an answer is remembered for the life of the pod: a cascade in order costs no request.
    """

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    async def lacking(self, revision: int, leaders: Sequence[Object]) -> list[str]:
        """See `Acknowledgement.lacking`. A router that does not answer in time lacks it."""
        behind = [pod for pod in leaders if self._known.get(pod["metadata"]["uid"], 0) < revision]
        revisions = await asyncio.gather(*(asyncio.to_thread(self._ask, pod) for pod in behind))
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        self._known |= {pod["metadata"]["uid"]: known for pod, known in zip(behind, revisions, strict=True)}
        return [pod["metadata"]["name"] for pod, known in zip(behind, revisions, strict=True) if known < revision]

    def _ask(self, pod: Object) -> int:
        try:
            status, body = ask_router(pod, "/cascade/policy", seconds=_TIMEOUT_SECONDS, most_bytes=_MOST_BYTES)
            return int(json.loads(body)["policyRevision"]) if status == 200 else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0
