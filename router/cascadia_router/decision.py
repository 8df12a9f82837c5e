"""How an answer says which stage gave it and why: header lines, and the `cascadia` object of its body."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from cascadia_router.json_shapes import AfterScore, Usage

__all__ = ["DecisionText", "Spent", "header_text", "tokens_said"]

Spent = tuple[str, int, int]
"""Tokens that a stage's complete answer took: stage, prompt tokens, completion tokens."""
_SPENT: Final = b'"promptTokens":%d,"completionTokens":%d'
_SAID: Final = re.compile(rb'"usage":\{"promptTokens":([0-9]{1,15}),"completionTokens":([0-9]{1,15})')
_NOTHING: Final = Usage()


def header_text(text: str) -> bytes:
    """Text from a policy as a header's value: printable ASCII, whatever the policy says."""
    return bytes(byte if 32 <= byte < 127 else 63 for byte in text.encode("ascii", "replace"))


def tokens_said(text: bytes) -> int | None:
    """Tokens of all stages, by the last `cascadia` object in the text; None if it has none that says.

    Args:
        text: The end of an answer, or all of it. Quotes within its strings are escaped, so no string can
            look like the object.
    """
    said = _SAID.search(text, max(0, text.rfind(b'"usage":{"promptTokens"')))
    return int(said[1]) + int(said[2]) if said is not None else None


class DecisionText:
    """What answers of one stage that came one way say: all but the score and the tokens, ready for the wire.

    Args:
        stage: The answering stage.
        threshold: Its threshold.
        path: Stages that were rejected before, in order.
        plan_id: The plan that governs the request.
        revision: The policy that governs it.
        rung: Index in the ladder of the thresholds that govern it, where they are not the policy's own.

    Attributes:
        head: Header lines of an answer without a score; the plan's line comes with every answer.
    """

    __slots__ = ("_scored", "_unscored", "head")

    def __init__(
        self,
        stage: str,
        threshold: float | None,
        path: tuple[str, ...],
        plan_id: str,
        revision: int,
        rung: int | None = None,
    ) -> None:
        way = ">".join((*path, stage))
        self.head = b"x-cascadia-stage: %s\r\nx-cascadia-path: %s\r\n" % (header_text(stage), header_text(way))
        if rung is not None:
            self.head += b"x-cascadia-ladder: %d\r\n" % rung
        name = msgspec.json.encode(stage).replace(b"%", b"%%")
        before = b'{"stage":%s,"score":' % name  # `stage` first: relays look for it
        after = msgspec.json.encode(
            AfterScore(threshold, way, plan_id, revision, msgspec.UNSET if rung is None else rung)
        )[1:-1].replace(b"%", b"%%")
        after = b',%s,"usage":{%s,"stages":{%%s%s:{%s}}}}' % (after, _SPENT, name, _SPENT)
        self._scored = b"%s%%a%s" % (before, after)
        self._unscored = b"%snull%s" % (before, after)

    def lines(self, score: float | None, reason: str = "") -> bytes:
        """Header lines of an answer with this score; the reason is as in `document`."""
        head = self.head if score is None else b"%sx-cascadia-score: %.6f\r\n" % (self.head, score)
        return b"%sx-cascadia-reason: %s\r\n" % (head, reason.encode()) if reason else head

    def document(
        self, score: float | None, usage: Usage | None, spent: tuple[Spent, ...] = (), reason: str = ""
    ) -> bytes:
        """JSON of the `cascadia` object.

        Args:
            score: The answer's.
            usage: Its tokens, as far as its engine said.
            spent: Those of the answers before it, which were rejected.
            reason: Why it is given although it is not good enough; empty where it is.
        """
        if reason:
            return b'%s,"reason":"%s"}' % (self.document(score, usage, spent)[:-1], reason.encode())
        if usage is None:
            usage = _NOTHING
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        if not spent and score is not None:
            return self._scored % (score, prompt, completion, b"", prompt, completion)
        stages = b"".join(b"%s:{%s}," % (msgspec.json.encode(name), _SPENT % (p, c)) for name, p, c in spent)
        all_prompts = prompt + sum(each[1] for each in spent)
        all_completions = completion + sum(each[2] for each in spent)
        counts = (all_prompts, all_completions, stages, prompt, completion)
        return self._unscored % counts if score is None else self._scored % (score, *counts)
