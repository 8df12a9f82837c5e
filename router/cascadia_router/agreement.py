"""How far two answers to one request say the same: what can be told without a judge.

The measure is the token F1 of extractive question answering (Rajpurkar et al., SQuAD,
https://arxiv.org/abs/1606.05250): the harmonic mean of precision and recall of one text's words in the
other's, counted with multiplicity, case and punctuation aside. It is 1 for texts of the same words and 0 for
texts without a common one. It suits labels, extractions and short answers; long free texts that mean the same
share only some of their words.
"""

from __future__ import annotations

import re
from collections import Counter

import msgspec
from msgspec import Struct

__all__ = ["agreement", "answer_text"]

_MOST_CHARACTERS = 100_000
"""Of a text; the rest is not compared."""
_WORD = re.compile(r"\w+")


class _Message(Struct):
    content: str | None = None


class _Choice(Struct):
    index: int = 0
    message: _Message | None = None
    delta: _Message | None = None
    text: str | None = None


class _Answer(Struct):
    choices: list[_Choice] = msgspec.field(default_factory=list)


_decoder = msgspec.json.Decoder(_Answer)


def answer_text(body: bytes) -> str:
    """Text of the first choice of an answer, or of its stream's events; empty if it has none (or is no answer)."""
    payloads = [body]
    if not body.lstrip().startswith(b"{"):
        payloads = [line[5:] for line in body.split(b"\n") if line.startswith(b"data:")]
    pieces = []
    for payload in payloads:
        try:
            choices = _decoder.decode(payload).choices
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # `[DONE]`, or a message of another shape
        for choice in choices:
            if choice.index == 0:
                message = choice.message or choice.delta
                pieces.append((message.content if message is not None else choice.text) or "")
    return "".join(pieces)


def agreement(one: str, other: str) -> float | None:
    """Token F1 of two texts, in [0, 1]; None if one of them has no words."""
    first = Counter(_WORD.findall(one[:_MOST_CHARACTERS].casefold()))
    second = Counter(_WORD.findall(other[:_MOST_CHARACTERS].casefold()))
    total = first.total() + second.total()
    if not (first and second):
        return None
    return 2 * (first & second).total() / total
