"""Makes the scorer that a policy names."""

from __future__ import annotations

from msgspec import UNSET

from cascadia_api.policy import ScorerPolicy
from cascadia_router.scorers.log_prob import LogProb
from cascadia_router.scorers.protocol import Scorer

__all__ = ["Workbench"]


class Workbench:
    """Makes scorers, and keeps the one in use while policies come and go."""

    def __init__(self) -> None:
        self._made: tuple[ScorerPolicy, Scorer] | None = None

    def scorer(self, policy: ScorerPolicy) -> Scorer:
        """The scorer of a policy: the same one for the same options."""
        if self._made is None or self._made[0] != policy:
            self._made = (policy, self._make(policy))
        return self._made[1]

    def _make(self, policy: ScorerPolicy) -> Scorer:
        return LogProb(policy.id, policy.statistic, 0.1 if policy.quantile is UNSET else policy.quantile)
