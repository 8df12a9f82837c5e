"""What one router tells the next about a request; `signing` says how it is believed."""

from __future__ import annotations

from msgspec import Struct

__all__ = ["Hop"]


class Hop(Struct, array_like=True, frozen=True):
    """One hop of a request from a router to another.

    Attributes:
        request_id: The request's id, the same on each hop.
        revision: Policy revision at the entry; it governs the whole request.
        plan_id: Plan at the entry.
        stage: Stage that is asked: the receiver must be a router of it.
        path: Stages whose answers were rejected, in order.
        escalations_left: How often the request may still be passed on.
        remaining: Time to the request's deadline, service s. Relative, so that clocks need not agree.
        signed_at: Wall clock of the sender, Unix s.
        pinned: Whether the client asked for this stage alone.
        lost: How many engines or routers were lost while they worked on the request.
        max_stage: The last stage that may be asked; empty: any.
        shadow: Whether no client waits for it: see `cascadia_router.shadow`.
        spent: Tokens of the answers that were rejected: stage, prompt tokens, completion tokens.
        rung: Index in the policy's ladder of the thresholds that the entry goes by; None: the policy's own.
    """

    request_id: str
    revision: int
    plan_id: str
    stage: str
    path: tuple[str, ...]
    escalations_left: int
    remaining: float
    signed_at: float
    pinned: bool
    lost: int
    max_stage: str = ""
    spent: tuple[tuple[str, int, int], ...] = ()
    shadow: bool = False
    rung: int | None = None
