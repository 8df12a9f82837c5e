"""One score of several scorers' calibrated values."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

from cascadia_router.completion_body import CompletionRequest
from cascadia_router.scorers.gathering import Gathering
from cascadia_router.scorers.protocol import Case, Outcome, Pending, Scorable, Scorer, Unscored

__all__ = ["Combination", "Composite", "Part", "calibrated"]

Combination = Literal["All", "Minimum", "WeightedMean"]


class Part(NamedTuple):
    """One scorer of several.

    Attributes:
        scorer: It.
        curve: Points (raw score, calibrated value), ascending; empty: the raw score is the value.
        weight: Its weight in a mean.
    """

    scorer: Scorer
    curve: Sequence[tuple[float, float]] = ()
    weight: float = 1.0


def calibrated(score: float, curve: Sequence[tuple[float, float]]) -> float:
    """Value of a raw score: linear between the curve's points, level outside them."""
    if not curve:
        return score
    right = bisect_right(curve, (score, math.inf))
    if right == 0:
        return curve[0][1]
    left_score, left_value = curve[right - 1]
    if right == len(curve):
        return left_value
    right_score, right_value = curve[right]
    return left_value + (right_value - left_value) * (score - left_score) / (right_score - left_score)


class _PartOfCase(NamedTuple):
    """A case, as a part sees it: the outcome goes to the composite."""

    request: CompletionRequest
    request_id: str
    served_model: str
    scored: Callable[[Outcome], None]


class Composite:
    """See the module."""

    def __init__(self, identifier: str, combination: Combination, parts: Sequence[Part]) -> None:
        self.id = identifier
        self.logprobs = max(part.scorer.logprobs for part in parts)
        self._combination = combination
        self._parts = parts

    @property
    def scorers(self) -> list[Scorer]:
        """The parts' scorers, in order."""
        return [part.scorer for part in self._parts]

    def combine(self, scores: Sequence[float]) -> float:
        """Score of these raw scores of the parts, in [0, 1]."""
        values = [calibrated(score, part.curve) for score, part in zip(scores, self._parts, strict=True)]
        if self._combination == "All":
            return math.prod(values)
        if self._combination == "Minimum":
            return min(values)
        total = sum(part.weight for part in self._parts)
        return sum(value * part.weight for value, part in zip(values, self._parts, strict=True)) / total

    def at_once(self, request: CompletionRequest, answer: Scorable) -> Outcome | None:
        """See `Scorer`."""
        known = self._known(request, answer)
        if isinstance(known, Unscored):
            return known
        if self._combination != "WeightedMean" and any(
            score is not None and calibrated(score, part.curve) <= 0
            for score, part in zip(known, self._parts, strict=True)
        ):
            return 0.0
        scores = [score for score in known if score is not None]
        return self.combine(scores) if len(scores) == len(known) else None

    def _known(self, request: CompletionRequest, answer: Scorable) -> list[float | None] | Unscored:
        """What the parts say at once; None for one that has to ask."""
        known: list[float | None] = []
        for part in self._parts:
            outcome = part.scorer.at_once(request, answer)
            if isinstance(outcome, Unscored):
                return outcome
            known.append(outcome)
        return known

    def ask(self, case: Case, answer: Scorable) -> Pending:
        """See `Scorer`."""
        known = self._known(case.request, answer)
        assert not isinstance(known, Unscored)
        asking = [number for number, score in enumerate(known) if score is None]

        def combine(found: list[float]) -> float:
            missing = iter(found)
            return self.combine([next(missing) if score is None else score for score in known])

        def start(scorer: Scorer, tell: Callable[[Outcome], None]) -> Pending:
            return scorer.ask(_PartOfCase(case.request, case.request_id, case.served_model, tell), answer)

        starts = [partial(start, self._parts[number].scorer) for number in asking]
        return Gathering(starts, combine, case.scored)
