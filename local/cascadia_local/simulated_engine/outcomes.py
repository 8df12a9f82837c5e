"""Where an engine gets the outcome of a request from: the difficulty model, or recorded answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from cascadia_local.simulated_engine.completion_request import CompletionRequest
from cascadia_local.simulated_engine.difficulty import DifficultyModel, Outcome
from cascadia_local.simulated_engine.recorded import RecordedRequest

__all__ = ["DrawnOutcomes", "Outcomes", "RecordedOutcomes"]


class Outcomes(Protocol):
    """Decides how a request turns out."""

    def outcome(self, request: CompletionRequest) -> tuple[int, Outcome]:
        """Return the prompt's tokens and the answer's outcome."""


class DrawnOutcomes:
    """Outcomes of the difficulty model."""

    def __init__(self, difficulty: DifficultyModel) -> None:
        self._difficulty = difficulty

    def outcome(self, request: CompletionRequest) -> tuple[int, Outcome]:
        """Draw from the request's key, hardness and base length."""
        outcome = self._difficulty.outcome(request.key, hardness=request.hardness, base_tokens=request.base_tokens)
        return request.input_tokens or request.estimated_tokens, outcome


class RecordedOutcomes:
    """Outcomes of one model in a calibration set, by `simulation.row`; others are drawn.

    Args:
        rows: The calibration set.
        model: The model's name in it.
        scorer_id: Which of its scores to use.
        otherwise: Asked where a request names no row or one without this model's answer, and for the
            score where the row has none in (0, 1].
    """

    def __init__(self, rows: Iterable[RecordedRequest], model: str, scorer_id: str, otherwise: Outcomes) -> None:
        self._otherwise = otherwise
        self._rows: dict[str, tuple[int, float | None, float, int]] = {}
        for row in rows:
            answer = row.answers.get(model)
            if answer is not None:
                score = answer.scores.get(scorer_id)
                usable = score if score is not None and 0 < score <= 1 else None
                self._rows[row.id] = (round(row.input_tokens), usable, answer.quality, round(answer.output_tokens))

    def __len__(self) -> int:
        return len(self._rows)

    def outcome(self, request: CompletionRequest) -> tuple[int, Outcome]:
        """Look the request's row up."""
        recorded = self._rows.get(request.row) if request.row is not None else None
        if recorded is None:
            return self._otherwise.outcome(request)
        input_tokens, score, quality, output_tokens = recorded
        if score is None:
            score = self._otherwise.outcome(request)[1].score
        return request.input_tokens or input_tokens, Outcome(score, quality, output_tokens)
