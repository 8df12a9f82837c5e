"""Recorded answers: the calibration set's JSON lines (one request a line), read and written.

The shape is the planner's: ``{"id", "inputTokens", "answers": {model: {"scores": {scorer: score},
"quality", "outputTokens"}}}``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from cascadia_api.errors import InputError, Problem

__all__ = ["RecordedAnswer", "RecordedRequest", "decode_rows", "encode_rows"]

Share = Annotated[float, Meta(ge=0, le=1)]
Tokens = Annotated[float, Meta(ge=1)]
"""Token counts; planners scale lengths, so they need not be whole."""


class RecordedAnswer(Struct, frozen=True, rename="camel", kw_only=True):
    """One model's answer: scores by scorer id (null where there is none), judged quality, length."""

    scores: dict[str, float | None]
    quality: Share
    output_tokens: Tokens


class RecordedRequest(Struct, frozen=True, rename="camel", kw_only=True):
    """One request and what every model made of it."""

    id: str
    input_tokens: Tokens
    answers: dict[str, RecordedAnswer]


_DECODER = msgspec.json.Decoder(RecordedRequest)


def decode_rows(lines: Iterable[bytes]) -> Iterable[RecordedRequest]:
    """Yield the rows of a calibration file; blank lines are skipped.

    Raises:
        InputError: A line does not fit; the message has its number and the field.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _DECODER.decode(line)
        except msgspec.MsgspecError as error:
            raise InputError(Problem(f"line {number}", f"{error}; each line must be one calibration row")) from None


def encode_rows(rows: Iterable[RecordedRequest]) -> bytes:
    """Return rows as JSON lines."""
    return b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
