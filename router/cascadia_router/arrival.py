"""A request as it came to this router, and all that came with it."""

from __future__ import annotations

from typing import Final, Literal

from cascadia_router.completion_body import CompletionRequest
from cascadia_router.decision import Spent
from cascadia_router.http1_request import Answering, Request
from cascadia_router.policy_store import Cascade
from cascadia_router.trace import Trace

__all__ = ["Arrival"]


class Arrival:
    """What an `Exchange` begins with; nothing of it changes.

    Attributes:
        connection: Where the request came from, and its answer goes.
        http: As it came.
        request: Its body.
        cascade: The policy that governs it: the entry's.
        request_id: Its id, the same on each hop.
        remaining: Time for the answer, service s.
        escalations_left: How often it may still be passed on.
        port: That it came to; ``shadow``: for a comparison that another router asked for.
        path: Stages whose answers were rejected, in order.
        spent: What these took.
        lost: Engines and routers that were lost while they worked on it.
        pinned: Whether the client asked for one stage alone.
        end: Index of the first stage that must not be asked; None if all may be.
        session: Key of its conversation, if that is to stay with a stage.
        trace: If it is traced.
    """

    __slots__ = (
        "cascade",
        "connection",
        "end",
        "escalations_left",
        "http",
        "lost",
        "path",
        "pinned",
        "port",
        "remaining",
        "request",
        "request_id",
        "session",
        "spent",
        "trace",
    )

    def __init__(
        self,
        connection: Answering,
        http: Request,
        request: CompletionRequest,
        cascade: Cascade,
        *,
        request_id: str,
        remaining: float,
        escalations_left: int,
        port: Literal["client", "peer", "shadow"] = "client",
        path: tuple[str, ...] = (),
        spent: tuple[Spent, ...] = (),
        lost: int = 0,
        pinned: bool = False,
        end: int | None = None,
        session: int | None = None,
        trace: Trace | None = None,
    ) -> None:
        self.connection: Final = connection
        self.http: Final = http
        self.request: Final = request
        self.cascade: Final = cascade
        self.request_id: Final = request_id
        self.remaining: Final = remaining
        self.escalations_left: Final = escalations_left
        self.port: Final[Literal["client", "peer", "shadow"]] = port
        self.path: Final = path
        self.spent: Final = spent
        self.lost: Final = lost
        self.pinned: Final = pinned
        self.end: Final = end
        self.session: Final = session
        self.trace: Final = trace
