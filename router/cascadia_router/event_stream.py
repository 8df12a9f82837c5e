"""Server-sent events of a streamed completion: relayed as they come, or held until they are scored.

`StraightStream` relays, `HeldStream` holds the whole stream, `GatedStream` its beginning. All take the
engine's bytes as they arrive and end the stream with the cascade's decision: in the engine's usage chunk
where the client asked for usage, in a chunk of its own (`choices: []`) otherwise. openai-python,
openai-node and the AI SDK take such a chunk; they also need `[DONE]` last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from cascadia_router.completion_body import Answer, Usage, keep_candidates, read_answer, strip_logprobs, with_field
from cascadia_router.json_shapes import chunk_head_decoder
from cascadia_router.said import Said, said_by_chunks
from cascadia_router.scoring import TokenStatistic, TokenTally, worst

__all__ = ["KEEP_ALIVE", "GatedStream", "HeldStream", "StraightStream"]

KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment, which every client skips. An empty `data:` line breaks them."""

_MAX_EVENT_BYTES: Final = 1024 * 1024
"""An event that grows longer is passed on without waiting for its end."""
_CARRIAGE_RETURN: Final = ord("\r")
_DONE: Final = b"data: [DONE]\n\n"


class _EventStream:
    """Common to all: splits bytes into events and keeps what ends the stream.

    Attributes:
        usage: The engine's count of tokens, once it has come.
        done: Whether the engine has ended the stream with `[DONE]`.
        failed: Whether the engine has sent an error in place of a chunk.
    """

    def __init__(self, *, wants_usage: bool) -> None:
        self.usage: Usage | None = None
        self.done = False
        self.failed = False
        self._wants_usage = wants_usage
        self._tail = b""
        self._head: bytes | None = None
        self._usage_payload: bytes | None = None

    def _complete_events(self, data: bytes) -> bytes:
        """Return what is complete of what has come; the rest waits for more."""
        if self._tail:
            data = self._tail + data
        if _CARRIAGE_RETURN in data:
            # Raw carriage returns are line ends only: within JSON they are escaped.
            cr = b"\r" if data.endswith(b"\r") else b""
            data = data.removesuffix(cr).replace(b"\r\n", b"\n") + cr
        end = data.rfind(b"\n\n")
        if data.endswith(b"\n\n") or (end < 0 and len(data) > _MAX_EVENT_BYTES):
            self._tail = b""
            return data
        cut = end + 2 if end >= 0 else 0
        self._tail = data[cut:]
        return data[:cut]

    def _payload(self, event: bytes) -> bytes | None:
        """Payload of an event's `data` line; None for a comment."""
        for line in event.split(b"\n"):
            if line.startswith(b"data:"):
                payload = line[5:].strip()
                if self._head is None and payload.startswith(b"{"):
                    self._keep_head(payload)
                return payload
        return None

    def _keep_head(self, payload: bytes) -> None:
        try:
            head = chunk_head_decoder.decode(payload)
        except msgspec.DecodeError:
            return
        # `object` of a chat's chunk is chat.completion.chunk, of a completion's text_completion.
        self._head = b'{"id":%s,"object":%s,"created":%s,"model":%s,"choices":[]}' % (
            bytes(head.id),
            bytes(head.object),
            bytes(head.created),
            bytes(head.model),
        )

    def _ending(self, decision: bytes) -> bytes:
        """The chunk that carries the decision, and the end."""
        chunk = self._usage_payload if self._wants_usage else None
        chunk = chunk or self._head or b'{"choices":[]}'
        return b"data: %s\n\n%s" % (with_field(chunk, b"cascadia", decision), _DONE)


def _may_end(events: bytes) -> bool:
    """Whether these events may end a stream: with `[DONE]`, or with the chunk of the usage, which has no choices."""
    return (
        events.find(b"[DONE]") >= 0 or events.find(b'"choices":[]') >= 0 or events.find(b'"choices": []') >= 0
    )  # `find` and not `in`, which makes an error and drops it before it looks for bytes


class StraightStream(_EventStream):
    """A stream that goes to the client chunk by chunk.

    Args:
        wants_usage: Whether the client asked for usage.
        decide: Gives the JSON of the `cascadia` object at the end, when the tokens are known.
    """

    def __init__(self, *, wants_usage: bool, decide: Callable[[Usage | None], bytes]) -> None:
        super().__init__(wants_usage=wants_usage)
        self._decide = decide

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the engine, as read; return what to send on now."""
        if (
            data.endswith(b"\n\n")
            and not (self._tail or _CARRIAGE_RETURN in data or _may_end(data))
            and self._head is not None
        ):
            return data  # whole events, and nothing in them that ends a stream
        events = self._complete_events(data)
        if self._head is None and events:
            for event in events.split(b"\n\n"):
                self._payload(event)
        if not _may_end(events):
            return events
        kept = []
        for event in events.split(b"\n\n")[:-1]:
            payload = self._payload(event)
            if payload == b"[DONE]":
                self.done = True
                kept.append(self._ending(self._decide(self.usage)))
            elif payload is None or not self._takes_usage(payload):
                kept.append(event + b"\n\n")
        return b"".join(kept)

    def _takes_usage(self, payload: bytes) -> bool:
        try:
            chunk = read_answer(payload)
        except msgspec.DecodeError:
            return False
        if chunk.choices or chunk.usage is None:
            return False
        self.usage = chunk.usage
        self._usage_payload = payload
        return True


class HeldStream(_EventStream):
    """A stream that is held until it is scored, then replayed as it came or dropped.

    Args:
        wants_usage: Whether the client asked for the usage.
        wants_logprobs: Whether the client asked for log-probabilities itself.
        first: Score the first so many tokens only; None for all.
        margins: Whether the score is of the tokens' margins.
        candidates: How many candidates a token the client asked for, if the engine was asked for more.

    Attributes:
        size: Bytes taken.
        unreadable: Whether an event was not an answer's chunk.
    """

    def __init__(
        self,
        *,
        wants_usage: bool,
        wants_logprobs: bool,
        first: int | None = None,
        margins: bool = False,
        candidates: int | None = None,
    ) -> None:
        super().__init__(wants_usage=wants_usage)
        self.size = 0
        self.unreadable = False
        self._first = first
        self._wants_logprobs = wants_logprobs
        self._margins = margins
        self._candidates = candidates
        self._events: list[bytes] = []
        self._tallies: dict[int, TokenTally] = {}

    def feed(self, data: bytes) -> None:
        """Take bytes of the engine."""
        self.size += len(data)
        events = self._complete_events(data)
        if events:
            for event in events.split(b"\n\n")[:-1]:
                self._take(event)

    def _take(self, event: bytes) -> None:
        payload = self._payload(event)
        if payload is None:
            self._take_comment(event)
            return
        if payload == b"[DONE]":
            self.done = True
            return
        try:
            chunk = read_answer(payload)
            self._tally(chunk)
        except msgspec.DecodeError:
            self.unreadable = True
            self._events.append(b"data: " + payload)
            return
        if bytes(chunk.error) != b"null":
            self.failed = True
        if chunk.usage is not None:
            self.usage = chunk.usage
            if not chunk.choices:
                self._usage_payload = payload
                return
        self._events.append(b"data: " + self._as_asked(payload, chunk))

    def _as_asked(self, payload: bytes, chunk: Answer) -> bytes:
        """A chunk with the log-probabilities that the client asked for, and no others."""
        if not self._wants_logprobs:
            return strip_logprobs(payload, chunk)
        return payload if self._candidates is None else keep_candidates(payload, self._candidates)

    def _take_comment(self, event: bytes) -> None:
        """A comment of the engine's is dropped: we send our own."""

    def _tally(self, chunk: Answer) -> None:
        for choice in chunk.choices:
            tally = self._tallies.get(choice.index)
            if tally is None:
                tally = self._tallies[choice.index] = TokenTally(self._first, margins=self._margins)
            tally.add(choice.logprobs)

    def score(self, statistic: TokenStatistic) -> float | None:
        """Score of what has come, by its log-probabilities; None if it cannot be scored."""
        return worst([tally.score(statistic) for tally in self._tallies.values()])

    def said(self) -> list[Said]:
        """See `Scorable`."""
        return said_by_chunks(event.removeprefix(b"data: ") for event in self._events)

    def replay(self, decision: bytes) -> bytes:
        """The whole stream, decision included.

        Args:
            decision: JSON of the `cascadia` object.
        """
        self._events.append(self._ending(decision))
        return b"\n\n".join(self._events)


class GatedStream(HeldStream):
    """A stream whose first tokens are held and scored; then the rest goes on as it comes, or all is dropped.

    Args:
        wants_usage: Whether the client asked for the usage.
        wants_logprobs: Whether the client asked for log-probabilities itself.
        first: Tokens of each choice that are held and scored.
        choices: Choices that the answer will have; None if unknown: it is then held to its end.
        margins: See `HeldStream`.
        candidates: See `HeldStream`.

    Attributes:
        opened: Whether what comes goes on.
        accepted_score: The score with which it was opened.
    """

    def __init__(
        self,
        *,
        wants_usage: bool,
        wants_logprobs: bool,
        first: int,
        choices: int | None,
        margins: bool = False,
        candidates: int | None = None,
    ) -> None:
        super().__init__(
            wants_usage=wants_usage,
            wants_logprobs=wants_logprobs,
            first=first,
            margins=margins,
            candidates=candidates,
        )
        self._tokens = first
        self._choices = choices
        self._decide: Callable[[Usage | None], bytes] | None = None
        self._ended = False  # the end has been sent on
        self.opened = False
        self.accepted_score: float | None = None

    @property
    def decidable(self) -> bool:
        """Whether the first tokens of every choice are here; a shorter answer is decided at its end."""
        tallies = self._tallies
        return (
            len(tallies) == self._choices
            and not (self.failed or self.unreadable)
            and all(len(tally.values) >= self._tokens for tally in tallies.values())
        )

    @property
    def scored_tokens(self) -> int:
        """Tokens that the score was taken from, of all choices."""
        return sum(len(tally.values) for tally in self._tallies.values())

    def open(self, score: float | None, decide: Callable[[Usage | None], bytes]) -> None:
        """Accept the answer.

        Args:
            score: Its score.
            decide: See `StraightStream`.
        """
        self.opened = True
        self.accepted_score = score
        self._decide = decide

    def released(self) -> bytes:
        """What may be sent on now: everything held so far, and the end once it has come."""
        events = b"".join([event + b"\n\n" for event in self._events])
        self._events.clear()
        if not self.done or self._ended:
            return events
        assert self._decide is not None
        self._ended = True
        return events + self._ending(self._decide(self.usage))

    def _tally(self, chunk: Answer) -> None:
        if not self.opened:
            super()._tally(chunk)

    def _take_comment(self, event: bytes) -> None:
        if self.opened:
            self._events.append(event)
