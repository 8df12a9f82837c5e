"""A service of the user's: it is sent the request and one choice of the answer, and returns the score.

docs/scorers.md documents both bodies.
"""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from cascadia_router.said import Said
from cascadia_router.scorers.asking import Asking
from cascadia_router.scorers.endpoint import Endpoint
from cascadia_router.scorers.protocol import Case
from cascadia_router.scorers.question import Asked
from cascadia_router.scorers.surroundings import Surroundings

__all__ = ["HttpScorer"]


class _Score(Struct):
    score: float


_decoder = msgspec.json.Decoder(_Score)


class HttpScorer(Asking):
    """See the module."""

    def __init__(self, identifier: str, endpoint: Endpoint, surroundings: Surroundings) -> None:
        super().__init__(identifier, endpoint, b"", surroundings)

    def question(self, case: Case, asked: Asked, said: Said) -> bytes | None:
        """See `Asking`."""
        return msgspec.json.encode(
            {
                "schemaVersion": 1,
                "scorer": self.id,
                "requestId": case.request_id,
                "model": case.served_model,
                "request": Raw(case.request.body),
                "question": asked.text,
                "answer": {
                    "text": said.text,
                    "toolCalls": [{"name": call.name, "arguments": call.arguments} for call in said.tool_calls],
                },
            }
        )

    def read(self, document: bytes) -> float | None:
        """See `Asking`."""
        return _decoder.decode(document).score
