"""The probability that a model says yes, from the log-probabilities of the first token of its reply."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from msgspec import Struct

__all__ = ["CANDIDATES", "probability_of_yes", "yes_no_fields"]

CANDIDATES = 20
"""The most that OpenAI's API gives."""


class _Token(Struct):
    token: str
    logprob: float
    top_logprobs: list[_Token] | None = None


class _Logprobs(Struct):
    content: list[_Token] | None = None


class _Choice(Struct):
    logprobs: _Logprobs | None = None


class _Answer(Struct):
    choices: list[_Choice]


_decoder = msgspec.json.Decoder(_Answer)


def yes_no_fields() -> dict[str, Any]:
    """What a request needs for its answer to be read by `probability_of_yes`."""
    return {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": CANDIDATES, "stream": False}


def probability_of_yes(document: bytes) -> float | None:
    """P(yes) ÷ (P(yes) + P(no)) in a chat completion; None if neither is among the candidates.

    Raises:
        msgspec.DecodeError: It has another shape.
    """
    choices = _decoder.decode(document).choices
    tokens = choices[0].logprobs.content if choices and choices[0].logprobs is not None else None
    if not tokens:
        return None
    shares = {"yes": 0.0, "no": 0.0}
    for candidate in tokens[0].top_logprobs or tokens[:1]:
        word = candidate.token.strip(" \t\r\n*\"'.,:▁Ġ").lower()
        if word in shares:
            shares[word] += math.exp(min(candidate.logprob, 0.0))
    total = shares["yes"] + shares["no"]
    return shares["yes"] / total if total > 0 else None
