"""The engine's own log-probabilities as a score: they come with the answer and cost next to nothing."""

from __future__ import annotations

from typing import Literal, NoReturn

from cascadia_router.completion_body import CompletionRequest
from cascadia_router.scorers.protocol import Case, Outcome, Scorable, Unscored
from cascadia_router.scoring import TokenStatistic

__all__ = ["LogProb"]


class LogProb:
    """See `cascadia_router.scoring` for the statistics."""

    def __init__(
        self, identifier: str, kind: Literal["Mean", "Minimum", "Quantile", "Margin"], quantile: float = 0.1
    ) -> None:
        self.id = identifier
        self.statistic = TokenStatistic(kind, quantile)
        self.logprobs = 2 if self.statistic.margins else 1
        self._none = Unscored(identifier, "no_logprobs")

    def at_once(self, request: CompletionRequest, answer: Scorable) -> Outcome | None:  # noqa: ARG002
        """See `Scorer`."""
        score = answer.score(self.statistic)
        return self._none if score is None else score

    def ask(self, case: Case, answer: Scorable) -> NoReturn:  # noqa: ARG002
        """See `Scorer`: never called."""
        raise AssertionError("log-probabilities need no asking")
