"""Several questions at the same time, and one outcome of all their answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cascadia_router.scorers.protocol import Outcome, Pending, Unscored

__all__ = ["Gathering", "Soon"]

Start = Callable[[Callable[[Outcome], None]], Pending]
"""Asks, and has the outcome told; not before it has returned."""


class Gathering:
    """Waits for every outcome; the first failure is the outcome of all, and drops the rest."""

    def __init__(
        self, starts: Sequence[Start], combine: Callable[[list[float]], float], tell: Callable[[Outcome], None]
    ) -> None:
        """Ask.

        Args:
            starts: The questions.
            combine: Makes one score of their scores, given in the questions' order.
            tell: Is told the outcome.
        """
        self._combine = combine
        self._tell: Callable[[Outcome], None] | None = tell
        self._scores: dict[int, float] = {}
        self._pending: dict[int, Pending] = {}
        for number, start in enumerate(starts):
            self._pending[number] = start(self._taker(number))

    def _taker(self, number: int) -> Callable[[Outcome], None]:
        def take(outcome: Outcome) -> None:
            del self._pending[number]
            tell = self._tell
            if tell is None:
                return
            if isinstance(outcome, Unscored):
                self.abort()
                tell(outcome)
                return
            self._scores[number] = outcome
            if not self._pending:
                self._tell = None
                tell(self._combine([self._scores[each] for each in sorted(self._scores)]))

        return take

    def abort(self) -> None:
        """See `Pending`."""
        self._tell = None
        for pending in self._pending.values():
            pending.abort()


class Soon:
    """An outcome that is known, told in the event loop's next turn."""

    def __init__(self, tell: Callable[[Outcome], None], outcome: Outcome) -> None:
        self._handle = asyncio.get_running_loop().call_soon(tell, outcome)

    def abort(self) -> None:
        """See `Pending`."""
        self._handle.cancel()
