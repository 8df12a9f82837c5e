"""An engine's answer that came in one piece, held until it is judged.

Two ways to read it. Nearly every answer is of one choice with one `logprobs` value: that is cut out first
and both parts are decoded, which scans each byte once. Any other answer is decoded whole with its
`logprobs` left raw, then each of these.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cascadia_router.completion_body import Answer, Usage, keep_candidates, read_answer, strip_logprobs, with_field
from cascadia_router.json_shapes import rest_decoder
from cascadia_router.said import Said, said_by
from cascadia_router.scoring import TokenStatistic, TokenTally, log_probabilities, margins, worst

__all__ = ["WholeAnswer"]

_KEY: Final = b'"logprobs":{'
_VALUE: Final = len(_KEY) - 1
_FOLLOWER: Final = b',"finish_reason":'
"""What SGLang and vLLM write after a choice's `logprobs`."""
_OTHER_FOLLOWER: Final = b'}],"created":'
"""What llama.cpp writes there."""
_OPENERS: Final = b"{,"
_decode_rest: Final = rest_decoder.decode


class WholeAnswer:
    """An answer that came in one piece.

    Attributes:
        usage: The engine's count of tokens.
    """

    __slots__ = ("_answer", "_candidates", "_document", "_first", "_stripped", "_values", "_wants_logprobs", "usage")

    def __init__(
        self, document: bytes, wants_logprobs: bool, first: int | None = None, *, candidates: int | None = None
    ) -> None:
        """Read the answer.

        Args:
            document: The engine's JSON.
            wants_logprobs: Whether the client asked for log-probabilities itself.
            first: Score the first so many tokens only; None for all.
            candidates: How many candidates a token the client asked for, if the engine was asked for more.

        Raises:
            msgspec.DecodeError: It is not an answer.
        """
        self._document = document
        self._wants_logprobs = wants_logprobs
        self._first = first
        self._candidates = candidates
        self._answer: Answer | None = None
        # A JSON object ends where it ends: if what is cut out is one, starting after a key of the document,
        # the cut is right. That the key is the only one, and the only choice's, the rest shows.
        key = document.find(_KEY)
        if key > 0 and document[key - 1] in _OPENERS:
            start = key + _VALUE
            end = document.find(_FOLLOWER, start)
            if end < 0:
                end = document.find(_OTHER_FOLLOWER, start)
            if end > 0 and document.find(_KEY, end) < 0:
                self._stripped = stripped = b"%snull%s" % (document[:start], document[end:])
                try:
                    rest = _decode_rest(stripped)
                    self._values = log_probabilities(document[start:end])
                except (msgspec.DecodeError, UnicodeDecodeError):
                    pass
                else:
                    choices = rest.choices
                    if len(choices) == 1 and choices[0].logprobs is None:
                        self.usage: Usage | None = rest.usage
                        return
        self._answer = answer = read_answer(document)
        if not answer.choices:
            raise msgspec.ValidationError("the answer has no choices")
        self.usage = answer.usage

    def score(self, statistic: TokenStatistic) -> float | None:
        """Score of the answer by its log-probabilities; None if it cannot be scored."""
        if self._answer is None and not statistic.margins:
            values = self._values
            return statistic.of(values if self._first is None else values[: self._first])
        try:
            if self._answer is None:
                return statistic.of(margins(self._cut())[: self._first])
            tallies = []
            for choice in self._answer.choices:
                tally = TokenTally(self._first, margins=statistic.margins)
                tally.add(choice.logprobs)
                tallies.append(tally)
        except msgspec.DecodeError:
            return None
        return worst([tally.score(statistic) for tally in tallies])

    def _cut(self) -> bytes:
        """The `logprobs` value that was cut out."""
        left = self._document.index(_KEY) + _VALUE
        return self._document[left : len(self._document) - (len(self._stripped) - left - len(b"null"))]

    def said(self) -> list[Said]:
        """See `Scorable`."""
        return said_by(self._document)

    def replay(self, decision: bytes) -> bytes:
        """The body to send, decision included.

        Args:
            decision: JSON of the `cascadia` object.
        """
        if self._wants_logprobs:
            document = self._document
            if self._candidates is not None:
                document = keep_candidates(document, self._candidates)
        elif self._answer is None:
            document = self._stripped
        else:
            document = strip_logprobs(self._document, self._answer)
        return with_field(document, b"cascadia", decision)
