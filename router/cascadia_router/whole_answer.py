"""An engine's answer that came in one piece, held until it is judged.

Two ways to read it. Nearly every answer is of one choice with one `logprobs` value: that is cut out first
and both parts are decoded, which scans each byte once. Any other answer is decoded whole with its
`logprobs` left raw, then each of these.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from cascadia_router.completion_body import Answer, Usage, read_answer, strip_logprobs, with_field
from cascadia_router.scoring import TokenTally, log_probabilities, score_of, statistic_of

__all__ = ["WholeAnswer"]

_KEY = b'"logprobs":'
_FOLLOWERS = (b',"finish_reason":', b'}],"created":')
"""What engines write after a choice's `logprobs`: SGLang and vLLM; llama.cpp."""
_OPENERS = b"{,"


class _Choice(Struct, gc=False):
    logprobs: UnsetType | None = UNSET


class _Rest(Struct, gc=False):
    """An answer without the log-probabilities' value."""

    choices: list[_Choice]
    usage: Usage | None = None


_rest_decoder = msgspec.json.Decoder(_Rest)


class WholeAnswer:
    """An answer that came in one piece.

    Attributes:
        usage: The engine's count of tokens.
    """

    __slots__ = ("_answer", "_document", "_stripped", "_values", "_wants_logprobs", "usage")

    def __init__(self, document: bytes, *, wants_logprobs: bool) -> None:
        """Read the answer.

        Raises:
            msgspec.DecodeError: It is not an answer.
        """
        self._document = document
        self._wants_logprobs = wants_logprobs
        self._answer: Answer | None = None
        self.usage: Usage | None = None
        if self._cut(document):
            return
        self._answer = read_answer(document)
        if not self._answer.choices:
            raise msgspec.ValidationError("the answer has no choices")
        self.usage = self._answer.usage

    def _cut(self, document: bytes) -> bool:
        """Read the answer as one `logprobs` value and the rest; False if that cannot be done for certain.

        A JSON object ends where it ends: if what was cut out is one, starting after a key of the document,
        the cut is right. That the key is the only one, and the only choice's, the rest shows.
        """
        key = document.find(_KEY)
        start = key + len(_KEY)
        if key < 1 or document[key - 1] not in _OPENERS or not document.startswith(b"{", start):
            return False
        for follower in _FOLLOWERS:
            end = document.find(follower, start)
            if end >= 0:
                break
        else:
            return False
        if document.find(_KEY, end) >= 0:
            return False
        stripped = b"%snull%s" % (document[:start], document[end:])
        try:
            rest = _rest_decoder.decode(stripped)
            values = log_probabilities(document[start:end])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False
        if len(rest.choices) != 1 or rest.choices[0].logprobs is not None:
            return False
        self._stripped = stripped
        self._values = values
        self.usage = rest.usage
        return True

    def score(self, statistic: Literal["Mean", "Minimum"]) -> float | None:
        """Score of the answer; None if it cannot be scored."""
        if self._answer is None:
            return statistic_of(self._values, statistic)
        tallies = []
        for choice in self._answer.choices:
            tally = TokenTally()
            try:
                tally.add(choice.logprobs)
            except msgspec.DecodeError:
                return None
            tallies.append(tally)
        return score_of(tallies, statistic)

    def replay(self, decision: bytes) -> bytes:
        """The body to send, decision included.

        Args:
            decision: JSON of the `cascadia` object.
        """
        if self._wants_logprobs:
            document = self._document
        elif self._answer is None:
            document = self._stripped
        else:
            document = strip_logprobs(self._document, self._answer)
        return with_field(document, b"cascadia", decision)
