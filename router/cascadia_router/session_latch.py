"""Session latch: a conversation that has escalated goes straight to that stage from then on.

Known to this router alone, for as many conversations as there is room, while they go on.
"""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["SessionLatch"]


class SessionLatch:
    """Stages of conversations, the longest unused forgotten first."""

    MOST = 16_384

    def __init__(self) -> None:
        self._stages: OrderedDict[int, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stages)

    def stage_of(self, session: int, now: float, seconds: float) -> str | None:
        """Stage that a conversation stays with, and keep it for that; None if it is free.

        Args:
            session: Key of the conversation.
            now: Service time, s.
            seconds: Silence after which a conversation is free again, service s.
        """
        found = self._stages.get(session)
        if found is None:
            return None
        stage, used = found
        if now - used > seconds:
            del self._stages[session]
            return None
        self._stages[session] = (stage, now)
        self._stages.move_to_end(session)
        return stage

    def note(self, session: int, stage: str, now: float) -> None:
        """A conversation has escalated to a stage."""
        self._stages[session] = (stage, now)
        self._stages.move_to_end(session)
        if len(self._stages) > self.MOST:
            self._stages.popitem(last=False)
