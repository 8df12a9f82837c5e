"""Scores of an answer from its tokens' log-probabilities.

Of each choice the tokens' log-probabilities (or margins) are reduced to one number in [0, 1]:

- `Mean`: exp of the mean log-probability, the geometric mean of the tokens' probabilities;
- `Minimum`: the least token's probability;
- `Quantile`: the q-quantile of the tokens' probabilities, log-linear between two tokens; it does not
  fall with an answer's length, as the least does (Gupta et al., https://arxiv.org/abs/2404.10136);
- `Margin`: the mean, over the tokens, of the two likeliest candidates' difference in probability.

An answer of several choices scores as its worst choice: all of them are returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Final, Literal

from msgspec import Raw

from cascadia_router.json_shapes import choosing_decoder, logprobs_decoder

__all__ = ["TokenStatistic", "TokenTally", "log_probabilities", "margins", "worst"]


_logprob: Final = attrgetter("logprob")
_decode_logprobs: Final = logprobs_decoder.decode


def log_probabilities(document: bytes | Raw) -> list[float]:
    """Log-probabilities of the tokens in one `logprobs` value; the first token of an echoed prompt has none.

    Raises:
        msgspec.DecodeError: It does not have the shape that OpenAI's API gives it.
    """
    piece = _decode_logprobs(document)
    if piece is None:
        return []
    if piece.content is not None:
        return list(map(_logprob, piece.content))
    return [value for value in piece.token_logprobs or () if value is not None]


def margins(document: bytes | Raw) -> list[float]:
    """Margins, in [0, 1], of the tokens in one `logprobs` value that come with two candidates or more.

    Raises:
        msgspec.DecodeError: It does not have the shape that OpenAI's API gives it.
    """
    piece = choosing_decoder.decode(document)
    if piece is None:
        return []
    candidates: list[list[float]]
    if piece.content is not None:
        candidates = [list(map(_logprob, token.top_logprobs or ())) for token in piece.content]
    else:
        candidates = [list(token.values()) for token in piece.top_logprobs or () if token]
    return [_margin(values) for values in candidates if len(values) > 1]


def _margin(values: list[float]) -> float:
    first, second = sorted(values, reverse=True)[:2]
    return min(math.exp(first), 1.0) - min(math.exp(second), 1.0)


def _mean(values: list[float]) -> float | None:
    return math.exp(sum(values) / len(values)) if values else None


def _minimum(values: list[float]) -> float | None:
    return math.exp(min(values)) if values else None


def _mean_margin(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _quantile(quantile: float, values: list[float]) -> float | None:
    if not values:
        return None
    ordered = sorted(values)
    place = quantile * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return math.exp(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


class TokenStatistic:
    """What a scorer takes of an answer's tokens.

    Args:
        kind: See the module.
        quantile: `Quantile` only: q, in [0, 1].

    Attributes:
        margins: Whether it is of margins, not of log-probabilities.
        of: Returns the score in [0, 1] of one choice with these log-probabilities ≤ 0, or margins; None if there
            are none.
    """

    __slots__ = ("margins", "of")

    def __init__(self, kind: Literal["Mean", "Minimum", "Quantile", "Margin"], quantile: float = 0.1) -> None:
        self.margins = kind == "Margin"
        kinds: dict[str, Callable[[list[float]], float | None]] = {
            "Mean": _mean,
            "Minimum": _minimum,
            "Quantile": partial(_quantile, quantile),
            "Margin": _mean_margin,
        }
        self.of = kinds[kind]


class TokenTally:
    """What the statistics need of one choice's tokens, piece by piece.

    Args:
        first: Keep those of the first so many tokens only; None for all.
        margins: Whether to keep the margins, too.

    Attributes:
        values: Log-probabilities.
        margins: Margins; empty unless they are kept.
    """

    __slots__ = ("_first", "_keeps_margins", "margins", "values")

    def __init__(self, first: int | None = None, *, margins: bool = False) -> None:
        self._first = first
        self._keeps_margins = margins
        self.values: list[float] = []
        self.margins: list[float] = []

    def add(self, logprobs: bytes | Raw) -> None:
        """Count the tokens of one `logprobs` value.

        Raises:
            msgspec.DecodeError: It does not have the shape that OpenAI's API gives it.
        """
        values, first = log_probabilities(logprobs), self._first
        self.values += values if first is None else values[: first - len(self.values)]
        if self._keeps_margins:
            values = margins(logprobs)
            self.margins += values if first is None else values[: first - len(self.margins)]

    def score(self, statistic: TokenStatistic) -> float | None:
        """Score in [0, 1]; None if there were no tokens."""
        return statistic.of(self.margins if statistic.margins else self.values)


def worst(scores: Sequence[float | None]) -> float | None:
    """Score of an answer whose choices have these scores; None if one of them cannot be scored."""
    known = [score for score in scores if score is not None]
    return min(known) if known and len(known) == len(scores) else None
