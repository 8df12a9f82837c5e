"""Score of an answer from its tokens' log-probabilities.

`Mean` is the exponential of the mean token log-probability, the geometric mean of the tokens'
probabilities; `Minimum` is the least token's probability. An answer of several choices scores as its
worst choice: all of them are returned.
"""

from __future__ import annotations

import math
from operator import attrgetter
from typing import Literal

import msgspec
from msgspec import Raw, Struct

__all__ = ["TokenTally", "log_probabilities", "score_of", "statistic_of"]


class _Token(Struct, gc=False):
    logprob: float


class _Logprobs(Struct, gc=False):
    """`logprobs` of a choice: `content` in chat completions, `token_logprobs` in completions."""

    content: list[_Token] | None = None
    token_logprobs: list[float | None] | None = None


_logprob = attrgetter("logprob")
_decoder = msgspec.json.Decoder(_Logprobs | None)


def log_probabilities(document: bytes | Raw) -> list[float]:
    """Log-probabilities of the tokens in one `logprobs` value; the first token of an echoed prompt has none.

    Raises:
        msgspec.DecodeError: It does not have the shape that OpenAI's API gives it.
    """
    piece = _decoder.decode(document)
    if piece is None:
        return []
    if piece.content is not None:
        return list(map(_logprob, piece.content))
    return [value for value in piece.token_logprobs or () if value is not None]


def statistic_of(values: list[float], statistic: Literal["Mean", "Minimum"]) -> float | None:
    """Score in [0, 1] of one choice with these log-probabilities ≤ 0; None if there are none."""
    if not values:
        return None
    return math.exp(sum(values) / len(values) if statistic == "Mean" else min(values))


class TokenTally:
    """Sum and least of the log-probabilities of one choice's tokens, piece by piece.

    Args:
        first: Count the first so many tokens only; None for all.
    """

    __slots__ = ("_first", "count", "least", "sum")

    def __init__(self, first: int | None = None) -> None:
        self._first = first
        self.count = 0
        self.sum = 0.0
        self.least = 0.0

    def add(self, logprobs: Raw) -> None:
        """Count the tokens of one `logprobs` value.

        Raises:
            msgspec.DecodeError: It does not have the shape that OpenAI's API gives it.
        """
        values = log_probabilities(logprobs)
        if self._first is not None:
            values = values[: self._first - self.count]
        if values:
            self.count += len(values)
            self.sum += sum(values)
            self.least = min(self.least, min(values))  # noqa: PLW3301 - without unpacking a list into arguments

    def score(self, statistic: Literal["Mean", "Minimum"]) -> float | None:
        """Score in [0, 1] for log-probabilities ≤ 0; None if there were no tokens."""
        if not self.count:
            return None
        return math.exp(self.sum / self.count if statistic == "Mean" else self.least)


def score_of(tallies: list[TokenTally], statistic: Literal["Mean", "Minimum"]) -> float | None:
    """Score of an answer with these choices; None if one of them cannot be scored."""
    least: float | None = None
    for tally in tallies:
        score = tally.score(statistic)
        if score is None:
            return None
        if least is None or score < least:
            least = score
    return least
