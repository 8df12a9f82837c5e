"""The words of a simulated answer, as OpenAI's JSON: bodies, stream chunks, log-probabilities.

Every answer repeats one sentence of ten tokens that says what it is. Per-token entries repeat too,
with two alternating values whose mean is the logarithm of the score; so an answer of any length is
sliced from repeated bytes, without work per token.
"""

from __future__ import annotations

import math

import msgspec

from cascadia_local.simulated_engine.completion_request import CompletionRequest
from cascadia_local.simulated_engine.difficulty import Outcome

__all__ = ["Answer", "ChatFormat", "RepeatedPieces", "TextFormat"]

TOKENS = ("This", " is", " a", " simulated", " answer", ":", " no", " model", " ran", ". ")
_SWING = 0.4
"""How far the alternating log-probabilities lie from their mean, as a share of it."""


class RepeatedPieces:
    """An endless repetition of byte strings, sliced by piece number."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._period = len(pieces)
        self._starts = [0]
        for piece in pieces:
            self._starts.append(self._starts[-1] + len(piece))
        self._sentence = b"".join(pieces)
        self._length = len(self._sentence)

    def slice(self, start: int, stop: int) -> bytes:
        """Return pieces start … stop - 1, joined."""
        begin = start % self._period
        end = begin + stop - start
        rounds, rest = divmod(end, self._period)
        return (self._sentence * (rounds + 1))[self._starts[begin] : rounds * self._length + self._starts[rest]]


_WORDS = RepeatedPieces([token.encode() for token in TOKENS])
_NO_OFFSETS = RepeatedPieces([b"-1,"])


class Answer:
    """One answer in the making: what is asked, how it turns out, and when (engine's virtual seconds).

    Attributes:
        identifier: The answer's `id`.
        request: What was asked.
        outcome: Score, quality and full length.
        input_tokens: Prompt tokens.
        output_tokens: Tokens that it will have: the full length, unless `max_tokens` cuts it.
        arrived, first_token, finished: When; the latter two are infinite until they have happened.
        lateness: Virtual seconds between `finished` and the moment the process got to send it.
    """

    __slots__ = (
        "arrived",
        "finished",
        "first_token",
        "identifier",
        "input_tokens",
        "lateness",
        "outcome",
        "output_tokens",
        "request",
    )

    def __init__(
        self,
        identifier: str,
        request: CompletionRequest,
        outcome: Outcome,
        input_tokens: int,
        limit: int,
        arrived: float,
    ) -> None:
        self.identifier = identifier
        self.request = request
        self.outcome = outcome
        self.input_tokens = input_tokens
        self.output_tokens = min(outcome.output_tokens, limit)
        self.arrived = arrived
        self.first_token = self.finished = math.inf
        self.lateness = 0.0

    @property
    def finish_reason(self) -> str:
        """Why it ends: ``stop``, or ``length`` when cut short."""
        return "length" if self.output_tokens < self.outcome.output_tokens else "stop"

    @property
    def quality(self) -> float:
        """Judged worth; an answer cut short is worth nothing."""
        return self.outcome.quality if self.output_tokens == self.outcome.output_tokens else 0.0

    def usage(self) -> bytes:
        """The `usage` object."""
        prompt, answer = self.input_tokens, self.output_tokens
        return (
            b'{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":null,'
            b'"reasoning_tokens":0}' % (prompt, prompt + answer, answer)
        )

    def simulated(self) -> bytes:
        """The `cascadia_simulated` object: that it is simulated, what it would be worth, exact virtual times."""
        quality = self.quality
        return b'"system_fingerprint":"cascadia-simulated","cascadia_simulated":' + msgspec.json.encode(
            {
                "simulated": True,
                "correct": quality >= 0.5,
                "quality": quality,
                "score": self.outcome.score,
                "inputTokens": self.input_tokens,
                "outputTokens": self.output_tokens,
                "arrivedAt": self.arrived,
                "firstTokenAt": self.first_token,
                "finishedAt": self.finished,
                "latenessSeconds": self.lateness,
            }
        )


class _Logprobs:
    """Per-token values of one answer: alternating around their mean, an odd last one on it."""

    def __init__(self, answer: Answer) -> None:
        mean = math.log(answer.outcome.score)
        self.values = (mean * (1 - _SWING), mean * (1 + _SWING))
        self.mean = mean
        self.count = answer.output_tokens

    def pieces(self, templates: tuple[bytes, ...]) -> RepeatedPieces:
        """Fill one template a token, each with as many places for the value as it has."""
        even, odd = (repr(value).encode() for value in self.values)
        return RepeatedPieces([t.replace(b"@", odd if k % 2 else even) for k, t in enumerate(templates)])

    def slice(self, pieces: RepeatedPieces, templates: tuple[bytes, ...], start: int, stop: int) -> bytes:
        """Return the entries of tokens start … stop - 1, commas between them."""
        if stop == self.count and stop % 2 and stop > start:
            last = templates[(stop - 1) % len(templates)].replace(b"@", repr(self.mean).encode())
            return (pieces.slice(start, stop - 1) + last)[:-1]
        return pieces.slice(start, stop)[:-1]


def _chat_entries(alternatives: bool) -> tuple[bytes, ...]:
    entries = []
    for token in TOKENS:
        entry = b'{"token":%s,"bytes":null,"logprob":@' % msgspec.json.encode(token)
        entries.append(entry + (b',"top_logprobs":[' + entry + b"}]}," if alternatives else b',"top_logprobs":[]},'))
    return tuple(entries)


_CHAT_ENTRIES = {False: _chat_entries(False), True: _chat_entries(True)}
_TEXT_TOKENS = RepeatedPieces([msgspec.json.encode(token) + b"," for token in TOKENS])
_TEXT_VALUES = tuple(b"@," for _ in TOKENS)
_TEXT_TOPS = tuple(b"{%s:@}," % msgspec.json.encode(token) for token in TOKENS)


class ChatFormat:
    """Renders one answer as `/v1/chat/completions` does."""

    def __init__(self, answer: Answer, model: bytes, created: int) -> None:
        self._answer = answer
        self._tail = b',"created":%d,"model":%s,' % (created, model)
        self._logprobs: _Logprobs | None = None
        if answer.request.logprobs:
            self._logprobs = _Logprobs(answer)
            self._entries = _CHAT_ENTRIES[answer.request.top_logprobs > 0]
            self._pieces = self._logprobs.pieces(self._entries)

    def _head(self, kind: bytes) -> bytes:
        return b'{"id":"%s","object":"%s"%s' % (self._answer.identifier.encode(), kind, self._tail)

    def _logprobs_of(self, start: int, stop: int) -> bytes:
        if self._logprobs is None:
            return b"null"
        return b'{"content":[%s]}' % self._logprobs.slice(self._pieces, self._entries, start, stop)

    def body(self) -> bytes:
        """The whole answer."""
        answer = self._answer
        return (
            b'%s"choices":[{"index":0,"message":{"role":"assistant","content":"%s","reasoning_content":null,'
            b'"tool_calls":null},"logprobs":%s,"finish_reason":"%s","matched_stop":null}],"usage":%s,%s}'
        ) % (
            self._head(b"chat.completion"),
            _WORDS.slice(0, answer.output_tokens),
            self._logprobs_of(0, answer.output_tokens),
            answer.finish_reason.encode(),
            answer.usage(),
            answer.simulated(),
        )

    def _chunk(self, delta: bytes, logprobs: bytes, reason: bytes) -> bytes:
        return (
            b'data: %s"choices":[{"index":0,"delta":%s,"logprobs":%s,"finish_reason":%s,"matched_stop":null}],'
            b'"usage":null' % (self._head(b"chat.completion.chunk"), delta, logprobs, reason)
        )

    def opening(self) -> bytes:
        """The first event of a stream: the role."""
        return self._chunk(b'{"role":"assistant","content":""}', b"null", b"null") + b"}\n\n"

    def chunk(self, start: int, stop: int) -> bytes:
        """The event that brings tokens start … stop - 1."""
        delta = b'{"content":"%s"}' % _WORDS.slice(start, stop)
        return self._chunk(delta, self._logprobs_of(start, stop), b"null") + b"}\n\n"

    def closing(self) -> bytes:
        """The last events: finish reason, usage if asked for, end mark."""
        answer = self._answer
        events = self._chunk(b'{"content":null}', b"null", b'"%s"' % answer.finish_reason.encode())
        events += b",%s}\n\n" % answer.simulated()
        if answer.request.include_usage:
            head = self._head(b"chat.completion.chunk")
            events += b'data: %s"choices":[],"usage":%s,%s}\n\n' % (head, answer.usage(), answer.simulated())
        return events + b"data: [DONE]\n\n"


class TextFormat:
    """Renders one answer as `/v1/completions` does."""

    def __init__(self, answer: Answer, model: bytes, created: int) -> None:
        self._answer = answer
        self._head = b'{"id":"%s","object":"text_completion","created":%d,"model":%s,' % (
            answer.identifier.encode(),
            created,
            model,
        )
        self._logprobs: _Logprobs | None = None
        if answer.request.logprobs:
            self._logprobs = _Logprobs(answer)
            self._values = self._logprobs.pieces(_TEXT_VALUES)
            self._tops = self._logprobs.pieces(_TEXT_TOPS)

    def _logprobs_of(self, start: int, stop: int) -> bytes:
        logprobs = self._logprobs
        if logprobs is None:
            return b"null"
        tops = b"null"
        if self._answer.request.top_logprobs:
            tops = b"[%s]" % logprobs.slice(self._tops, _TEXT_TOPS, start, stop)
        return b'{"text_offset":[%s],"token_logprobs":[%s],"tokens":[%s],"top_logprobs":%s}' % (
            _NO_OFFSETS.slice(start, stop)[:-1],
            logprobs.slice(self._values, _TEXT_VALUES, start, stop),
            _TEXT_TOKENS.slice(start, stop)[:-1],
            tops,
        )

    def _choice(self, start: int, stop: int, reason: bytes) -> bytes:
        return b'"choices":[{"index":0,"text":"%s","logprobs":%s,"finish_reason":%s,"matched_stop":null}]' % (
            _WORDS.slice(start, stop),
            self._logprobs_of(start, stop),
            reason,
        )

    def body(self) -> bytes:
        """The whole answer."""
        answer = self._answer
        choice = self._choice(0, answer.output_tokens, b'"%s"' % answer.finish_reason.encode())
        return b'%s%s,"usage":%s,%s}' % (self._head, choice, answer.usage(), answer.simulated())

    def opening(self) -> bytes:
        """Text completions have no opening event."""
        return b""

    def chunk(self, start: int, stop: int) -> bytes:
        """The event that brings tokens start … stop - 1."""
        return b'data: %s%s,"usage":null}\n\n' % (self._head, self._choice(start, stop, b"null"))

    def closing(self) -> bytes:
        """The last events: finish reason, usage if asked for, end mark."""
        answer = self._answer
        choice = b'"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"%s","matched_stop":null}]'
        ended = choice % answer.finish_reason.encode()
        events = b'data: %s%s,"usage":null,%s}\n\n' % (self._head, ended, answer.simulated())
        if answer.request.include_usage:
            events += b'data: %s"choices":[],"usage":%s,%s}\n\n' % (self._head, answer.usage(), answer.simulated())
        return events + b"data: [DONE]\n\n"
