"""What the scorers have in common.

A scorer is asked at once: it gives a score, a reason why there is none, or None: it has to ask somebody. Then
`Scorer.ask` sends its question, and the outcome is told later. Scores are in [0, 1]; they are raw: what a
threshold is compared with, and what calibration sets hold under the scorer's id.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from cascadia_router.completion_body import CompletionRequest
from cascadia_router.said import Said
from cascadia_router.scoring import TokenStatistic

__all__ = ["Case", "Outcome", "Pending", "Scorable", "Scorer", "Unscored"]


class Unscored(NamedTuple):
    """Why there is no score.

    Attributes:
        scorer: Id of the scorer that failed; of a composite, the part's.
        reason: A few words for a metric's label, as in ``timeout``: docs/metrics.md lists them.
    """

    scorer: str
    reason: str


Outcome = float | Unscored


class Scorable(Protocol):
    """An answer that can be scored: `WholeAnswer`, `HeldStream` or `GatedStream`."""

    def score(self, statistic: TokenStatistic) -> float | None:
        """Score by the tokens' log-probabilities; None if it has none."""

    def said(self) -> list[Said]:
        """Its choices. Raises `msgspec.DecodeError` if they cannot be read."""


class Case(Protocol):
    """The request whose answer is being scored, to be told the outcome.

    Attributes:
        request: What the client asked.
        request_id: Its id.
        served_model: The `model` that the engine which answered goes by.
    """

    @property
    def request(self) -> CompletionRequest: ...  # noqa: D102
    @property
    def request_id(self) -> str: ...  # noqa: D102
    @property
    def served_model(self) -> str: ...  # noqa: D102

    def scored(self, outcome: Outcome) -> None:
        """The score is known, or known not to be. Called once, and not before `Scorer.ask` has returned."""


class Pending(Protocol):
    """A question that was asked."""

    def abort(self) -> None:
        """Drop it: nobody wants the outcome any more, and nobody is told it."""


class Scorer(Protocol):
    """Scores answers.

    Attributes:
        id: Key of its scores in calibration sets.
        logprobs: What it needs of the engine's answer: 0, no log-probabilities; 1, each token's; 2, those of
            each token's two likeliest candidates.
    """

    id: str
    logprobs: int

    def at_once(self, request: CompletionRequest, answer: Scorable) -> Outcome | None:
        """The outcome; None if somebody has to be asked."""

    def ask(self, case: Case, answer: Scorable) -> Pending:
        """Ask. Called only after `at_once` has returned None for the same answer."""
