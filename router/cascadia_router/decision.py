"""How an answer says which stage gave it and why: header lines, and the `cascadia` object of its body."""

from __future__ import annotations

import msgspec
from msgspec import Struct

__all__ = ["DecisionText", "header_text"]


class _AfterScore(Struct, rename="camel"):
    threshold: float | None
    path: str
    plan: str
    policy_revision: int


def header_text(text: str) -> bytes:
    """Text from a policy as a header's value: printable ASCII, whatever the policy says."""
    return bytes(byte if 32 <= byte < 127 else 63 for byte in text.encode("ascii", "replace"))


class DecisionText:
    """What answers of one stage that came one way say: all but the score, ready for the wire.

    Args:
        stage: The answering stage.
        threshold: Its threshold.
        path: Stages that were rejected before, in order.
        plan_id: The plan that governs the request.
        revision: The policy that governs it.

    Attributes:
        head: Header lines of an answer without a score; the plan's line comes with every answer.
        unscored: The `cascadia` object of an answer without a score.
    """

    __slots__ = ("_after", "_before", "head", "unscored")

    def __init__(self, stage: str, threshold: float | None, path: tuple[str, ...], plan_id: str, revision: int) -> None:
        way = ">".join((*path, stage))
        self.head = b"x-cascadia-stage: %s\r\nx-cascadia-path: %s\r\n" % (header_text(stage), header_text(way))
        self._before = b'{"stage":%s,"score":' % msgspec.json.encode(stage)  # `stage` first: relays look for it
        self._after = b"," + msgspec.json.encode(_AfterScore(threshold, way, plan_id, revision))[1:]
        self.unscored = self._before + b"null" + self._after

    def scored(self, score: float | None) -> tuple[bytes, bytes]:
        """Header lines and `cascadia` object of an answer with this score."""
        if score is None:
            return self.head, self.unscored
        return b"%sx-cascadia-score: %.6f\r\n" % (self.head, score), b"%s%a%s" % (self._before, score, self._after)
